// Counts what a test program allocates through operator new. Replaces it: include this in one source of a program.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace octavo::tests {

inline std::atomic<std::int64_t> allocations{0};

inline void* allocate(std::size_t size, std::size_t alignment) noexcept {
  ++allocations;
  void* memory = nullptr;
  if (alignment < alignof(std::max_align_t)) alignment = alignof(std::max_align_t);
  return posix_memalign(&memory, alignment, size == 0 ? 1 : size) == 0 ? memory : nullptr;
}

inline void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* memory = allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace octavo::tests

// Not inlined: a compiler that sees through one of a pair, and not the other, warns of memory that is freed by another
// means than it was allocated. Under AddressSanitizer what is not replaced here would be its own, so all that may meet
// in a pair are.
#define OCTAVO_REPLACED [[gnu::noinline]]
OCTAVO_REPLACED void* operator new(std::size_t size) { return octavo::tests::allocate_or_throw(size, 0); }
OCTAVO_REPLACED void* operator new[](std::size_t size) { return octavo::tests::allocate_or_throw(size, 0); }
OCTAVO_REPLACED void* operator new(std::size_t size, std::align_val_t alignment) {
  return octavo::tests::allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
OCTAVO_REPLACED void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return octavo::tests::allocate(size, 0);
}
OCTAVO_REPLACED void operator delete(void* memory) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete[](void* memory) noexcept { std::free(memory); }
OCTAVO_REPLACED void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
#undef OCTAVO_REPLACED
