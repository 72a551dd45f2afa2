#include "step.hpp"

#include <stdexcept>
#include <string>

#include "kernels/attention.hpp"

namespace octavo {
namespace {

[[noreturn]] void fail(const char* field, const std::string& index, std::int64_t value, const std::string& hint) {
  throw std::invalid_argument(std::string(field) + "[" + index + "] = " + std::to_string(value) +
                              " is invalid: " + hint);
}

[[noreturn]] void fail(const char* field, std::int64_t index, std::int64_t value, const std::string& hint) {
  fail(field, std::to_string(index), value, hint);
}

void check_length(const char* field, std::size_t length, std::int64_t expected, const char* of) {
  if (static_cast<std::int64_t>(length) == expected) return;
  throw std::invalid_argument(std::string(field) + " has " + std::to_string(length) + " entries, but there are " +
                              std::to_string(expected) + " " + of);
}

void check_limit(const char* field, std::int64_t length, const char* option, std::int64_t limit) {
  if (length <= limit) return;
  throw std::invalid_argument(std::string(field) + " has " + std::to_string(length) +
                              " entries, but the program was compiled for " + option + "=" + std::to_string(limit));
}

void check_sequence(const Step& step, const StepLimits& limits, std::int64_t s) {
  const std::int64_t begin = step.query_start_loc[s], end = step.query_start_loc[s + 1], length = step.seq_lens[s];
  if (length < end - begin) fail("seq_lens", s, length, "shorter than the sequence's rows of this step");
  if (length > limits.max_model_len) {
    fail("seq_lens", s, length, "more than max_model_len=" + std::to_string(limits.max_model_len));
  }
  const std::int64_t blocks = (length + kBlockSize - 1) / kBlockSize;
  if (blocks > step.table_width) {
    fail("seq_lens", s, length,
         "needs more blocks than the " + std::to_string(step.table_width) + " columns of block_tables");
  }
  const std::int32_t* table = step.block_tables + s * step.table_width;
  for (std::int64_t b = 0; b < blocks; ++b) {
    if (table[b] < 0 || table[b] >= limits.num_blocks) {
      fail("block_tables", std::to_string(s) + ", " + std::to_string(b), table[b],
           "must be in [0, " + std::to_string(limits.num_blocks) + ")");
    }
  }
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t position = length - (end - t);
    if (step.positions[t] != position) {
      fail("positions", t, step.positions[t], "positions are consecutive and end at seq_lens - 1");
    }
    const std::int64_t slot = table[position / kBlockSize] * kBlockSize + position % kBlockSize;
    if (step.slot_mapping[t] != slot) {
      fail("slot_mapping", t, step.slot_mapping[t], "is not the slot that block_tables gives for the position");
    }
  }
}

}  // namespace

void check_step(const Step& step, const StepLimits& limits) {
  const std::int64_t tokens = step.num_tokens(), sequences = step.num_sequences();
  check_limit("token_ids", tokens, "max_tokens", limits.max_tokens);
  check_limit("logits_rows", step.num_logits(), "max_logits_rows", limits.max_logits_rows);
  check_length("positions", step.positions.size(), tokens, "token_ids");
  check_length("slot_mapping", step.slot_mapping.size(), tokens, "token_ids");
  check_length("query_start_loc", step.query_start_loc.size(), sequences + 1, "seq_lens plus one");
  check_length("block_tables", static_cast<std::size_t>(step.table_rows), sequences, "seq_lens");

  if (step.query_start_loc[0] != 0)
    fail("query_start_loc", 0, step.query_start_loc[0], "the first sequence starts at row 0");
  for (std::int64_t s = 0; s < sequences; ++s) {
    if (step.query_start_loc[s + 1] <= step.query_start_loc[s]) {
      fail("query_start_loc", s + 1, step.query_start_loc[s + 1], "every sequence needs at least one row");
    }
  }
  if (step.query_start_loc[sequences] != tokens) {
    fail("query_start_loc", sequences, step.query_start_loc[sequences],
         "the last sequence ends at row " + std::to_string(tokens));
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (step.token_ids[t] < 0 || step.token_ids[t] >= limits.vocab_size) {
      fail("token_ids", t, step.token_ids[t], "must be in [0, " + std::to_string(limits.vocab_size) + ")");
    }
  }
  for (std::int64_t s = 0; s < sequences; ++s) check_sequence(step, limits, s);
  for (std::int64_t i = 0; i < step.num_logits(); ++i) {
    const std::int64_t row = step.logits_rows[i];
    if (row < 0 || row >= tokens) fail("logits_rows", i, row, "must be in [0, " + std::to_string(tokens) + ")");
    if (i > 0 && row <= step.logits_rows[i - 1]) fail("logits_rows", i, row, "must be ascending");
  }
}

}  // namespace octavo
