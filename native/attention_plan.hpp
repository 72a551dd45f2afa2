// How one step's attention is cut into work: tiles of query rows times KV heads, and times splits where there would
// otherwise be too little for all threads. The plan is made once per step and serves every layer.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention.hpp"
#include "memory.hpp"
#include "step.hpp"

namespace octavo {

class AttentionPlan {
 public:
  AttentionPlan(std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t max_group, std::int64_t max_tokens,
                std::int64_t max_model_len, int num_threads);

  // Cuts a step for `group` query heads per KV head. Allocates nothing.
  void prepare(const Step& step, std::int64_t group);

  std::int64_t num_items() const { return static_cast<std::int64_t>(items_.size()); }
  // Products of a row, a key and an element: what the step's attention costs.
  double cost() const { return cost_; }

  void run(std::int64_t item, const AttentionKernels& kernels, const AttentionCall& call, float* scratch);

 private:
  struct Item {
    std::int64_t cost;
    std::int32_t tile, kv_head;
    std::int32_t split;  // -1: all of them, one after the other
    std::int32_t pair;   // (tile, KV head) among those that are split
  };
  struct Pair {
    float* states;
    std::int32_t num_splits;
  };

  void add_items(std::int32_t tile, std::int64_t group, bool split);

  std::int64_t num_kv_heads_, head_dim_, max_pairs_;
  std::vector<AttentionTile> tiles_;
  std::vector<Item> items_;
  std::vector<Pair> pairs_;
  std::unique_ptr<std::atomic<std::int32_t>[]> unfinished_;  // splits of each pair; the last one to finish merges them
  MappedMemory states_;
  std::int64_t states_used_ = 0;  // floats
  double cost_ = 0;
};

}  // namespace octavo
