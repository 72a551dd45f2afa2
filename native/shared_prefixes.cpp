#include "shared_prefixes.hpp"

#include "kernels/attention.hpp"

namespace octavo {
namespace {

constexpr std::int32_t kBlocks = kPartition / kBlockSize;  // of a partition

std::int32_t blocks_in_common(const std::int32_t* a, const std::int32_t* b, std::int32_t limit) {
  std::int32_t i = 0;
  while (i < limit && a[i] == b[i]) ++i;
  return i;
}

}  // namespace

SharedPrefixes::SharedPrefixes(std::int64_t max_tables) { tables_.reserve(static_cast<std::size_t>(max_tables)); }

void SharedPrefixes::sort() {
  std::sort(tables_.begin(), tables_.end(), [](const Table& a, const Table& b) {
    const std::int32_t limit = std::min(a.num_partitions, b.num_partitions) * kBlocks;
    const std::int32_t i = blocks_in_common(a.blocks, b.blocks, limit);
    if (i < limit) return a.blocks[i] < b.blocks[i];
    return a.num_partitions != b.num_partitions ? a.num_partitions < b.num_partitions : a.tag < b.tag;
  });
  for (std::size_t i = 1; i < tables_.size(); ++i) {
    const Table &a = tables_[i - 1], &b = tables_[i];
    const std::int32_t limit = std::min(a.num_partitions, b.num_partitions) * kBlocks;
    tables_[i].common = blocks_in_common(a.blocks, b.blocks, limit) / kBlocks;
  }
}

}  // namespace octavo
