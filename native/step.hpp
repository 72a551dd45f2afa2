// One step's arrays as the caller gave them, and the check that nothing in them can lead a kernel astray.
#pragma once
#include <cstdint>
#include <span>

namespace octavo {

struct Step {
  std::span<const std::int32_t> token_ids;        // (T,)
  std::span<const std::int32_t> positions;        // (T,)
  std::span<const std::int32_t> query_start_loc;  // (S + 1,)
  std::span<const std::int32_t> seq_lens;         // (S,)
  const std::int32_t* block_tables;               // (S, table_width)
  std::int64_t table_rows, table_width;
  std::span<const std::int64_t> slot_mapping;  // (T,)
  std::span<const std::int32_t> logits_rows;   // (L,)

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(token_ids.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(seq_lens.size()); }
  std::int64_t num_logits() const { return static_cast<std::int64_t>(logits_rows.size()); }
};

struct StepLimits {
  std::int64_t vocab_size, max_tokens, max_logits_rows, max_model_len, num_blocks;
};

// Throws std::invalid_argument naming the field, the index and the value of the first thing that is wrong.
void check_step(const Step& step, const StepLimits& limits);

}  // namespace octavo
