// What a program is lowered to. Instructions read and write slices of one arena; their order is their dependency.
#pragma once
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

namespace octavo {

// A ragged matrix of floats in the arena, one row per token or per logits row.
struct Slice {
  std::int64_t offset;  // bytes from the arena's start
  std::int64_t stride;  // floats from row to row
  std::int64_t width;
  bool logits;  // a row per logits row instead of one per token
};

// The same matrix quantised: bytes, scales and scaled sums per group of 32, sums per 16, each dense.
struct QuantisedSlice {
  std::int64_t q, scale, sum, part_sum;  // bytes from the arena's start
  std::int64_t width;
  bool logits;
};

struct EmbeddingOp {
  int matrix;
  Slice out;
};

struct RmsNormOp {
  Slice x;
  int vector;
  float eps;
  std::optional<Slice> out;
  std::optional<QuantisedSlice> quantised;
};

struct QuantizeOp {
  Slice x;
  QuantisedSlice out;
};

struct LinearPart {
  int matrix;
  int bias;  // a vector, or -1
};

struct LinearOp {
  std::optional<Slice> x;                   // if a part's weights are float
  std::optional<QuantisedSlice> quantised;  // if a part's weights are integers
  std::vector<LinearPart> parts;            // side by side
  std::optional<Slice> residual;
  Slice out;
  // `out` has room for so many rows, which the SiluMulOp that follows takes from there; 0: all.
  std::int64_t window = 0;
};

struct RopeOp {
  Slice x;
  int table;
  std::int64_t head_dim;
  Slice out;
};

struct WriteKvOp {
  Slice k, v;
  int table;  // rotates k on the way, or -1
  std::int64_t layer;
};

struct AttentionOp {
  Slice q;    // as out: rows of all tokens or of the logits rows
  int table;  // rotates q on the way, or -1
  std::int64_t layer;
  std::int64_t num_heads;
  float scale;
  Slice out;
};

struct SiluMulOp {
  Slice gate, up;
  std::optional<Slice> out;
  std::optional<QuantisedSlice> quantised;
};

struct AddOp {
  Slice x, y, out;
};

struct SelectRowsOp {
  Slice x, out;
};

using Instruction = std::variant<EmbeddingOp, RmsNormOp, QuantizeOp, LinearOp, RopeOp, WriteKvOp, AttentionOp,
                                 SiluMulOp, AddOp, SelectRowsOp>;

// Names of the alternatives, for profiles.
inline constexpr const char* kInstructionNames[] = {"embedding", "rms_norm",  "quantize", "linear", "rope",
                                                    "write_kv",  "attention", "silu_mul", "add",    "select_rows"};
static_assert(std::variant_size_v<Instruction> == sizeof(kInstructionNames) / sizeof(*kInstructionNames));

}  // namespace octavo
