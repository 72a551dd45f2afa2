#include "attention_plan.hpp"

#include <algorithm>

namespace octavo {
namespace {

constexpr std::int64_t kItemsPerThread = 4;  // fewer than that and tiles are cut into splits
constexpr std::int64_t kMaxStateFloats = std::int64_t{8} << 20;

}  // namespace

AttentionPlan::AttentionPlan(std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t max_group,
                             std::int64_t max_tokens, std::int64_t max_model_len, int num_threads)
    : num_kv_heads_(num_kv_heads), head_dim_(head_dim), max_pairs_(kItemsPerThread * num_threads) {
  const std::int64_t max_splits = (max_model_len + kSplit - 1) / kSplit;
  const std::int64_t floats = max_pairs_ * max_splits * state_floats(tile_rows(max_group), head_dim);
  tiles_.reserve(static_cast<std::size_t>(max_tokens));
  items_.reserve(static_cast<std::size_t>(std::max(max_tokens * num_kv_heads, max_pairs_ * max_splits)));
  pairs_.reserve(static_cast<std::size_t>(max_pairs_));
  unfinished_ = std::make_unique<std::atomic<std::int32_t>[]>(static_cast<std::size_t>(max_pairs_));
  states_ = MappedMemory(static_cast<std::size_t>(std::min(floats, kMaxStateFloats)) * sizeof(float));
}

void AttentionPlan::prepare(const Step& step, std::int64_t group) {
  tiles_.clear();
  items_.clear();
  pairs_.clear();
  states_used_ = 0;
  cost_ = 0;
  const std::int64_t positions = tile_positions(group);
  for (std::int64_t s = 0; s < step.num_sequences(); ++s) {
    const std::int64_t end = step.query_start_loc[s + 1];
    for (std::int64_t row = step.query_start_loc[s]; row < end; row += positions) {
      tiles_.push_back(
          {step.block_tables + s * step.table_width, row, step.positions[row], std::min(positions, end - row)});
    }
  }
  const std::int64_t pairs = static_cast<std::int64_t>(tiles_.size()) * num_kv_heads_;
  const bool split = pairs < max_pairs_;
  for (std::size_t tile = 0; tile < tiles_.size(); ++tile) add_items(static_cast<std::int32_t>(tile), group, split);
  std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.tile != b.tile) return a.tile < b.tile;
    return a.kv_head != b.kv_head ? a.kv_head < b.kv_head : a.split < b.split;
  });
}

void AttentionPlan::add_items(std::int32_t tile, std::int64_t group, bool split) {
  const AttentionTile& t = tiles_[static_cast<std::size_t>(tile)];
  const std::int64_t rows = t.num_positions * group, keys = t.first_position + t.num_positions;
  const auto splits = static_cast<std::int32_t>(t.num_splits());
  cost_ += static_cast<double>(rows * keys * head_dim_ * num_kv_heads_);
  for (std::int32_t head = 0; head < num_kv_heads_; ++head) {
    const std::int64_t floats = splits * state_floats(rows, head_dim_);
    const bool fits = (states_used_ + floats) * static_cast<std::int64_t>(sizeof(float)) <=
                      static_cast<std::int64_t>(states_.bytes());
    if (!split || splits == 1 || !fits) {
      items_.push_back({rows * keys, tile, head, -1, -1});
      continue;
    }
    const auto pair = static_cast<std::int32_t>(pairs_.size());
    pairs_.push_back({reinterpret_cast<float*>(states_.data()) + states_used_, splits});
    unfinished_[static_cast<std::size_t>(pair)].store(splits, std::memory_order_relaxed);
    states_used_ += floats;
    for (std::int32_t i = 0; i < splits; ++i) {
      items_.push_back({rows * std::min(kSplit, keys - i * kSplit), tile, head, i, pair});
    }
  }
}

void AttentionPlan::run(std::int64_t index, const AttentionKernels& kernels, const AttentionCall& call,
                        float* scratch) {
  const Item& item = items_[static_cast<std::size_t>(index)];
  const AttentionTile& tile = tiles_[static_cast<std::size_t>(item.tile)];
  if (item.split < 0) {
    kernels.attend(call, tile, item.kv_head, scratch);
    return;
  }
  const Pair& pair = pairs_[static_cast<std::size_t>(item.pair)];
  std::atomic<std::int32_t>& unfinished = unfinished_[static_cast<std::size_t>(item.pair)];
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  float* state = pair.states + item.split * state_floats(tile.num_positions * group, head_dim_);
  kernels.attend_split(call, tile, item.kv_head, item.split, state, scratch);
  if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    kernels.merge_splits(call, tile, item.kv_head, pair.states);
    unfinished.store(pair.num_splits, std::memory_order_relaxed);  // for the next layer
  }
}

}  // namespace octavo
