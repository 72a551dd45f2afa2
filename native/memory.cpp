#include "memory.hpp"

#include <sys/mman.h>

#include <limits>
#include <new>

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

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, mapped_);
}

}  // namespace octavo
