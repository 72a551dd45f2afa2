#include "memory.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <limits>
#include <new>
#include <system_error>

namespace octavo {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;

}  // namespace

MappedMemory::MappedMemory(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const std::size_t unit = bytes >= kHugePage ? kHugePage : kPage;
  if (bytes > std::numeric_limits<std::ptrdiff_t>::max() - 2 * kHugePage) throw std::bad_alloc();
  const std::size_t rounded = (bytes + unit - 1) / unit * unit;
  const std::size_t slack = unit == kHugePage ? kHugePage : 0;  // to begin at a huge page
  void* raw = mmap(nullptr, rounded + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::uint8_t*>(raw);
  if (slack != 0) {
    const std::size_t lead = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
    if (lead != 0) munmap(begin, lead);
    if (lead != slack) munmap(begin + lead + rounded, slack - lead);
    begin += lead;
#ifdef MADV_HUGEPAGE
    madvise(begin, rounded, MADV_HUGEPAGE);
#endif
  }
  data_ = begin;
  mapped_ = rounded;
}

MappedMemory MappedMemory::of_file(int descriptor, std::size_t bytes, bool writable) {
  MappedMemory memory;
  if (bytes == 0) return memory;
  void* raw = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, descriptor, 0);
  if (raw == MAP_FAILED) {
    if (errno == ENOMEM) throw std::bad_alloc();
    throw std::system_error(errno, std::generic_category(), "mmap");
  }
  memory.data_ = static_cast<std::uint8_t*>(raw);
  memory.bytes_ = memory.mapped_ = bytes;
#ifdef MADV_HUGEPAGE
  madvise(raw, bytes, MADV_HUGEPAGE);  // where the file system has large folios for it
#endif
  if (!writable) madvise(raw, bytes, MADV_WILLNEED);
  return memory;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, mapped_);
}

void MappedMemory::protect() {
  if (data_ != nullptr) mprotect(data_, mapped_, PROT_READ);
}

bool make_present(std::uint8_t* begin, std::size_t bytes) {
#ifdef __linux__
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, of Linux 5.14, which older headers do not have
  const auto first = reinterpret_cast<std::uintptr_t>(begin) / kPage * kPage;
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes + kPage - 1) / kPage * kPage;
  return madvise(reinterpret_cast<void*>(first), last - first, kPopulateWrite) == 0;
#else
  static_cast<void>(begin), static_cast<void>(bytes);
  return false;
#endif
}

void release_pages(const void* begin, std::size_t bytes) {
#ifdef MADV_PAGEOUT
  const auto first = (reinterpret_cast<std::uintptr_t>(begin) + kPage - 1) / kPage * kPage;
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);
#else
  static_cast<void>(begin), static_cast<void>(bytes);
#endif
}

}  // namespace octavo
