#include "attention_plan.hpp"

#include <algorithm>

namespace octavo {
namespace {

constexpr std::int64_t kItemsPerThread = 4;        // fewer than that and tiles are cut into splits
constexpr std::int64_t kSharedItemsPerThread = 4;  // fewer than that and shared rows are cut into smaller chunks
constexpr std::int64_t kManyRows = 24;             // of a tile that needs no company
constexpr std::int64_t kLeastRows = 12;            // of such a chunk
constexpr std::int64_t kLeastRun = 4;              // partitions whose walk is worth gathering rows twice
constexpr std::int64_t kLeastSaved = 8;            // walks over a partition, or another wave costs more than it saves
constexpr std::int64_t kMaxChunks = 1024;
constexpr std::int64_t kMaxStateFloats = std::int64_t{8} << 20;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t splits_of(std::int64_t keys) { return ceil_div(keys, kSplit); }

}  // namespace

AttentionPlan::AttentionPlan(std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t max_group,
                             std::int64_t max_tokens, std::int64_t max_model_len, int num_threads)
    : num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      max_pairs_(kItemsPerThread * num_threads),
      num_threads_(num_threads),
      prefixes_(max_tokens) {
  const std::int64_t max_splits = splits_of(max_model_len);
  const std::int64_t split_floats = max_pairs_ * max_splits * state_floats(tile_rows(max_group), head_dim);
  const std::int64_t shared_floats = max_tokens * num_kv_heads * max_splits * state_floats(max_group, head_dim);
  max_floats_ = std::min(std::max(split_floats, shared_floats), kMaxStateFloats);
  states_ = MappedMemory(static_cast<std::size_t>(max_floats_) * sizeof(float));
  tiles_.reserve(static_cast<std::size_t>(max_tokens));
  items_.reserve(static_cast<std::size_t>(std::max(max_tokens * num_kv_heads, max_pairs_ * max_splits) +
                                          kMaxChunks * num_kv_heads));
  tokens_.reserve(static_cast<std::size_t>(max_tokens));
  first_token_.reserve(static_cast<std::size_t>(max_tokens + 1));
  chunks_.reserve(static_cast<std::size_t>(kMaxChunks));
  num_unfinished_.reserve(static_cast<std::size_t>(max_pairs_));
  unfinished_ = std::make_unique<std::atomic<std::int32_t>[]>(static_cast<std::size_t>(max_pairs_));
}

void AttentionPlan::prepare(const Step& step, std::int64_t group, bool logits, bool share) {
  tiles_.clear();
  items_.clear();
  chunks_.clear();
  num_unfinished_.clear();
  num_waves_ = 1;
  floats_used_ = floats_promised_ = 0;
  const std::int64_t positions = tile_positions(group);
  if (logits) add_logits_tiles(step, positions);
  for (std::int64_t s = 0; !logits && s < step.num_sequences(); ++s) {
    const std::int64_t end = step.query_start_loc[s + 1];
    for (std::int64_t row = step.query_start_loc[s]; row < end; row += positions) {
      tiles_.push_back(
          {{step.block_tables + s * step.table_width, row, step.positions[row], std::min(positions, end - row)}});
    }
  }
  if (share && step.num_sequences() > 1) share_prefixes(group);
  const bool split = static_cast<std::int64_t>(tiles_.size()) * num_kv_heads_ < max_pairs_;
  for (std::size_t tile = 0; tile < tiles_.size(); ++tile) add_items(static_cast<std::int32_t>(tile), group, split);
  std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
    if (a.wave != b.wave) return a.wave < b.wave;
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.tile != b.tile) return a.tile < b.tile;
    if (a.chunk != b.chunk) return a.chunk < b.chunk;
    return a.kv_head != b.kv_head ? a.kv_head < b.kv_head : a.split < b.split;
  });
  std::size_t item = 0;
  for (std::int32_t wave = 0; wave < num_waves_; ++wave) {
    while (item < items_.size() && items_[item].wave == wave) ++item;
    wave_begin_[wave + 1] = static_cast<std::int64_t>(item);
  }
}

// Neighbours among the logits rows that follow one another in a sequence share a tile.
void AttentionPlan::add_logits_tiles(const Step& step, std::int64_t positions) {
  std::int64_t s = 0;
  for (std::int64_t row = 0; row < step.num_logits();) {
    const std::int64_t token = step.logits_rows[row];
    while (step.query_start_loc[s + 1] <= token) ++s;
    const std::int64_t most = std::min({positions, step.query_start_loc[s + 1] - token, step.num_logits() - row});
    std::int64_t count = 1;
    while (count < most && step.logits_rows[row + count] == token + count) ++count;
    tiles_.push_back({{step.block_tables + s * step.table_width, row, step.positions[token], count}});
    row += count;
  }
}

std::int64_t AttentionPlan::floats_of(const Tile& tile, std::int64_t num_states, std::int64_t group) const {
  return num_states * num_kv_heads_ * state_floats(tile.num_positions * group, head_dim_);
}

bool AttentionPlan::take_states(Tile& tile, std::int64_t num_states, std::int64_t group) {
  const std::int64_t promised = floats_of(tile, splits_of(tile.num_carried), group);
  const std::int64_t floats = floats_of(tile, num_states, group);
  if (floats_used_ + floats + floats_promised_ - promised > max_floats_) return false;
  tile.states = reinterpret_cast<float*>(states_.data()) + floats_used_;
  tile.num_states = static_cast<std::int32_t>(num_states);
  floats_used_ += floats;
  floats_promised_ -= promised;
  return true;
}

// A tile of many rows gains nothing from company: it keeps the registers full alone, and reads its keys once for all.
void AttentionPlan::share_prefixes(std::int64_t group) {
  prefixes_.clear();
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    const Tile& tile = tiles_[i];
    if (tile.num_positions * group >= kManyRows || tile.first_position < kPartition) continue;
    prefixes_.add(tile.block_table, static_cast<std::int32_t>(tile.first_position / kPartition),
                  static_cast<std::int32_t>(i));
  }
  if (prefixes_.size() < 2) return;
  prefixes_.sort();
  tokens_.clear();
  first_token_.clear();
  for (std::int32_t i = 0; i < prefixes_.size(); ++i) {
    first_token_.push_back(static_cast<std::int32_t>(tokens_.size()));
    const std::int32_t tile = prefixes_.tag(i);
    for (std::int32_t j = 0; j < tiles_[static_cast<std::size_t>(tile)].num_positions; ++j)
      tokens_.push_back({tile, j});
  }
  first_token_.push_back(static_cast<std::int32_t>(tokens_.size()));
  prefixes_.visit([&](const SharedPrefixes::Run& run) { return share_run(run, group); });
}

// Plans the walks over a run of shared partitions, if they save enough and there is memory for the states.
bool AttentionPlan::share_run(const SharedPrefixes::Run& run, std::int64_t group) {
  const std::int64_t first = first_token_[static_cast<std::size_t>(run.first)];
  const std::int64_t tokens = first_token_[static_cast<std::size_t>(run.first + run.count)] - first;
  std::int64_t walks = ceil_div(tokens, tile_positions(group));
  const std::int64_t partitions = run.end - run.begin;
  if (partitions < kLeastRun || (run.count - walks) * partitions < kLeastSaved) return false;

  const std::int64_t begin = run.begin * kPartition, end = run.end * kPartition;
  std::int64_t floats = 0;
  for (std::int32_t i = run.first; i < run.first + run.count; ++i) {
    const Tile& tile = tiles_[static_cast<std::size_t>(prefixes_.tag(i))];
    floats += floats_of(tile, splits_of(end) - splits_of(tile.num_carried), group);
  }
  if (floats_promised_ + floats > max_floats_) return false;

  const std::int64_t splits = splits_of(end) - begin / kSplit;
  while (walks * splits * num_kv_heads_ < kSharedItemsPerThread * num_threads_ && 4 * walks <= run.count &&
         ceil_div(tokens, 2 * walks) * group >= kLeastRows) {
    walks *= 2;
  }
  if (static_cast<std::int64_t>(chunks_.size()) + walks * splits > kMaxChunks) return false;

  floats_promised_ += floats;
  for (std::int32_t i = run.first; i < run.first + run.count; ++i) {
    tiles_[static_cast<std::size_t>(prefixes_.tag(i))].num_carried = end;
  }
  num_waves_ = std::max(num_waves_, run.depth + 2);
  const std::int64_t step = ceil_div(tokens, walks);
  for (std::int64_t token = 0; token < tokens; token += step) {
    const std::int64_t count = std::min(step, tokens - token);
    for (std::int64_t key = begin; key < end;) {
      const std::int64_t stop = std::min(end, (key / kSplit + 1) * kSplit);
      const auto chunk = static_cast<std::int32_t>(chunks_.size());
      chunks_.push_back({static_cast<std::int32_t>(first + token), static_cast<std::int32_t>(count), key, stop});
      for (std::int32_t head = 0; head < num_kv_heads_; ++head) {
        items_.push_back({count * group * (stop - key), run.depth, head, -1, chunk, -1, -1});
      }
      key = stop;
    }
  }
  return true;
}

void AttentionPlan::add_items(std::int32_t index, std::int64_t group, bool split) {
  Tile& tile = tiles_[static_cast<std::size_t>(index)];
  const std::int64_t rows = tile.num_positions * group, keys = tile.num_keys();
  const std::int32_t wave = tile.num_carried > 0 ? num_waves_ - 1 : 0;
  const std::int64_t splits = tile.num_splits();
  const auto first_split = static_cast<std::int32_t>(tile.num_carried / kSplit);
  split = split && splits - first_split > 1 && take_states(tile, splits, group);
  if (!split && tile.num_carried > 0) take_states(tile, splits_of(tile.num_carried), group);
  for (std::int32_t head = 0; head < num_kv_heads_; ++head) {
    if (!split) {
      items_.push_back({rows * (keys - tile.num_carried), wave, head, index, -1, -1, -1});
      continue;
    }
    const auto pair = static_cast<std::int32_t>(num_unfinished_.size());
    num_unfinished_.push_back(static_cast<std::int32_t>(splits) - first_split);
    unfinished_[static_cast<std::size_t>(pair)].store(num_unfinished_.back(), std::memory_order_relaxed);
    for (std::int32_t i = first_split; i < splits; ++i) {
      const std::int64_t begin = std::max(i * kSplit, tile.num_carried);
      items_.push_back({rows * (std::min((i + 1) * kSplit, keys) - begin), wave, head, index, -1, i, pair});
    }
  }
}

// Items are dealt to threads like cards: a thread's next one is as many further as there are threads.
KeysAhead AttentionPlan::keys_ahead(std::int64_t index) const {
  const std::int64_t next = index + num_threads_;
  const Item& item = items_[static_cast<std::size_t>(index)];
  if (next >= static_cast<std::int64_t>(items_.size())) return {};
  const Item& later = items_[static_cast<std::size_t>(next)];
  if (later.wave != item.wave) return {};
  if (later.chunk >= 0) {
    const Chunk& chunk = chunks_[static_cast<std::size_t>(later.chunk)];
    const Token& token = tokens_[static_cast<std::size_t>(chunk.first_token)];
    return {tiles_[static_cast<std::size_t>(token.tile)].block_table, chunk.begin, chunk.end, later.kv_head};
  }
  const Tile& tile = tiles_[static_cast<std::size_t>(later.tile)];
  const std::int64_t begin = std::max(later.split < 0 ? 0 : later.split * kSplit, tile.num_carried);
  const std::int64_t end = later.split < 0 ? tile.num_keys() : std::min(tile.num_keys(), (later.split + 1) * kSplit);
  return {tile.block_table, begin, end, later.kv_head};
}

void AttentionPlan::run(std::int64_t index, const AttentionKernels& kernels, AttentionCall call, float* scratch) {
  const Item& item = items_[static_cast<std::size_t>(index)];
  call.ahead = keys_ahead(index);
  if (item.chunk >= 0) {
    return run_chunk(chunks_[static_cast<std::size_t>(item.chunk)], item.kv_head, kernels, call, scratch);
  }
  const Tile& tile = tiles_[static_cast<std::size_t>(item.tile)];
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  const std::int64_t floats = state_floats(tile.num_positions * group, head_dim_);
  float* states = tile.states == nullptr ? nullptr : tile.states + item.kv_head * tile.num_states * floats;
  if (item.split < 0) return kernels.attend(call, tile, item.kv_head, states, scratch);

  const auto pair = static_cast<std::size_t>(item.pair);
  kernels.attend_split(call, tile, item.kv_head, item.split, states + item.split * floats, scratch);
  if (unfinished_[pair].fetch_sub(1, std::memory_order_acq_rel) == 1) {
    kernels.merge_splits(call, tile, item.kv_head, states);
    unfinished_[pair].store(num_unfinished_[pair], std::memory_order_relaxed);  // for the next layer
  }
}

void AttentionPlan::run_chunk(const Chunk& chunk, std::int64_t kv_head, const AttentionKernels& kernels,
                              const AttentionCall& call, float* scratch) const {
  const std::int64_t group = call.num_heads / call.num_kv_heads, split = chunk.begin / kSplit;
  SharedToken tokens[kTileRows];
  const std::int32_t* block_table = nullptr;
  for (std::int32_t i = 0; i < chunk.num_tokens; ++i) {
    const Token& token = tokens_[static_cast<std::size_t>(chunk.first_token + i)];
    const Tile& tile = tiles_[static_cast<std::size_t>(token.tile)];
    const std::int64_t rows = tile.num_positions * group;
    float* state = tile.states + (kv_head * tile.num_states + split) * state_floats(rows, head_dim_);
    float* max = state + rows * head_dim_ + token.index * group;
    tokens[i] = {tile.first_row + token.index, tile.first_position + token.index,
                 state + token.index * group * head_dim_, max, max + rows};
    block_table = tile.block_table;
  }
  kernels.attend_shared(call, {block_table, chunk.begin, chunk.end, tokens, chunk.num_tokens}, kv_head, scratch);
}

}  // namespace octavo
