// How one step's attention is cut into work: tiles of query rows times KV heads, and times splits where there would
// otherwise be too little for all threads. Partitions that several tiles have in common are walked first, once for all
// their rows. The plan is made once per step and serves every layer that asks for the same rows.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention.hpp"
#include "memory.hpp"
#include "shared_prefixes.hpp"
#include "step.hpp"

namespace octavo {

class AttentionPlan {
 public:
  // Items of a wave need what the waves before have done: shared partitions, from the root of their tree down, and then
  // the tiles that go on from them.
  static constexpr std::int32_t kMaxWaves = SharedPrefixes::kMaxDepth + 1;

  AttentionPlan(std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t max_group, std::int64_t max_tokens,
                std::int64_t max_model_len, int num_threads);

  // Cuts a step for `group` query heads per KV head. Allocates nothing. With `logits`, rows of q and out are the step's
  // logits rows, and no others are computed. Without `share`, tiles walk alone: the same bits, to compare with.
  void prepare(const Step& step, std::int64_t group, bool logits, bool share);

  // At least one; each has items, but for the first where no rows are asked for.
  std::int32_t num_waves() const { return num_waves_; }
  std::int64_t wave_begin(std::int32_t wave) const { return wave_begin_[wave]; }
  std::int64_t wave_end(std::int32_t wave) const { return wave_begin_[wave + 1]; }

  // `call` but for what comes after the item.
  void run(std::int64_t item, const AttentionKernels& kernels, AttentionCall call, float* scratch);

 private:
  struct Tile : AttentionTile {
    float* states = nullptr;  // [KV head][num_states] states of the tile's rows, one per split
    std::int32_t num_states = 0;
  };
  struct Token {
    std::int32_t tile, index;
  };
  struct Chunk {  // tokens that walk shared keys together
    std::int32_t first_token, num_tokens;
    std::int64_t begin, end;
  };
  struct Item {
    std::int64_t cost;
    std::int32_t wave, kv_head;
    std::int32_t tile;   // or -1
    std::int32_t chunk;  // or -1
    std::int32_t split;  // of the tile; -1: all of them, one after the other
    std::int32_t pair;   // (tile, KV head) among those that are split
  };

  void add_logits_tiles(const Step& step, std::int64_t positions);
  void share_prefixes(std::int64_t group);
  bool share_run(const SharedPrefixes::Run& run, std::int64_t group);
  void add_items(std::int32_t tile, std::int64_t group, bool split);
  bool take_states(Tile& tile, std::int64_t num_states, std::int64_t group);
  std::int64_t floats_of(const Tile& tile, std::int64_t num_states, std::int64_t group) const;
  KeysAhead keys_ahead(std::int64_t item) const;
  void run_chunk(const Chunk& chunk, std::int64_t kv_head, const AttentionKernels& kernels, const AttentionCall& call,
                 float* scratch) const;

  std::int64_t num_kv_heads_, head_dim_, max_pairs_;
  int num_threads_;
  std::vector<Tile> tiles_;
  std::vector<Item> items_;
  std::int32_t num_waves_ = 1;
  std::int64_t wave_begin_[kMaxWaves + 1] = {};

  SharedPrefixes prefixes_;
  std::vector<Token> tokens_;              // of the tables of prefixes_, in its order
  std::vector<std::int32_t> first_token_;  // of each table, and the end
  std::vector<Chunk> chunks_;

  // Splits of each pair that are not finished; the last one merges them.
  std::vector<std::int32_t> num_unfinished_;
  std::unique_ptr<std::atomic<std::int32_t>[]> unfinished_;
  MappedMemory states_;
  std::int64_t max_floats_;
  std::int64_t floats_used_ = 0;
  std::int64_t floats_promised_ = 0;  // to tiles that carry keys, and not yet used
};

}  // namespace octavo
