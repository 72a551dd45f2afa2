// Token choice: allowed set, edits, penalties, greedy or temperature / min_p / top_k / top_p / typical_p, a
// counter-based draw, log-probabilities. The rule is stated once, by ChoiceBatch in octavo/backends/base.py. Each
// choice is independent of all others, and costs only what it asks for.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/elementwise.hpp"

namespace octavo {

struct ChoiceRequest {
  const float* logits;  // (num_rows, vocab_size), row stride `stride`
  std::int64_t num_rows, vocab_size, stride;
  std::span<const std::int32_t> rows;
  std::span<const float> temperature;
  std::span<const std::int32_t> top_k;
  std::span<const float> top_p, min_p;
  std::span<const std::uint64_t> seed;
  std::span<const std::uint32_t> branch, position;
  std::span<const std::int32_t> num_logprobs;
  std::span<const float> typical_p, repetition_penalty, frequency_penalty, presence_penalty;  // or empty: neutral
  std::span<const std::int32_t> report_rows;                                                  // or empty: rows
  std::span<const std::int32_t> edit_choices, edit_tokens;
  std::span<const float> edit_values;
  std::span<const std::int32_t> count_choices, count_tokens, counts;
  std::span<const std::int32_t> allowed_choices, allowed_tokens;

  std::int64_t num_choices() const { return static_cast<std::int64_t>(rows.size()); }
};

struct ChoiceResult {
  std::int32_t* token_ids;  // (R,)
  float* logprobs;          // (R,), or null, like all that follow, if nobody asks for log-probabilities
  std::int32_t* ranks;      // (R,)
  std::int32_t* top_ids;    // (R, width)
  float* top_logprobs;      // (R, width)
  std::int64_t width;       // the largest num_logprobs, at least 0
};

// Throws std::invalid_argument naming the field, the index and the value.
void check_choices(const ChoiceRequest& request);

// Floats of scratch that choose_one needs.
constexpr std::int64_t choice_scratch_floats(std::int64_t vocab_size) { return 5 * (vocab_size + 8); }

// Choice r of a checked request. Scratch is 64-byte aligned.
void choose_one(const ChoiceRequest& request, std::int64_t r, const ElementwiseKernels& kernels, float* scratch,
                const ChoiceResult& result);

}  // namespace octavo
