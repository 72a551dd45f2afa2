// Paged attention in scalar code. A partition of 64 keys is read as floats once, then each row of the tile that sees
// any of it goes over it: scores are FMA chains over head_dim, the softmax runs in eight lanes, and outputs are FMA
// chains over the visible keys. The scales of int8 keys and values are multiplied into scores and weights; other types'
// are one.
#include "math.hpp"
#include "scalar.hpp"

namespace octavo {
namespace scalar {
namespace {

constexpr float kInfinity = __builtin_inff();

// A tile's rows seen from one KV head, and the pieces of the scratch memory.
struct Rows {
  std::int64_t count, group, head_dim, first_position;
  float* q;  // [count][head_dim], rotated and scaled
  float* k;  // of one partition, a block after the other: [head_dim][16]
  float* v;  // [64][head_dim]

  std::int64_t position(std::int64_t row) const { return first_position + row / group; }
};

// The scales of a partition's K and V.
struct Scales {
  float k[kPartition];
  float v[kPartition];
};

struct State {
  float* output;
  float* max;
  float* sum;
  State(float* memory, const Rows& rows)
      : output(memory), max(memory + rows.count * rows.head_dim), sum(max + rows.count) {}
};

Rows describe_rows(const AttentionCall& call, const AttentionTile& tile) {
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  return {tile.num_positions * group, group, call.head_dim, tile.first_position, nullptr, nullptr, nullptr};
}

struct TokenPlace {
  std::int64_t row, position;
};

// Rotated and scaled queries of token(0), token(1), … in scratch.
template <class Token>
void gather_rows(const AttentionCall& call, std::int64_t kv_head, float* scratch, Rows& rows, Token&& token) {
  rows.k = scratch;
  rows.v = rows.k + kPartition * rows.head_dim;
  rows.q = rows.v + kPartition * rows.head_dim;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const TokenPlace place = token(r / rows.group);
    const float* q = call.q + place.row * call.ldq + (kv_head * rows.group + r % rows.group) * rows.head_dim;
    float* row = rows.q + r * rows.head_dim;
    if (call.rope != nullptr) {
      rotate_head(q, call.rope->row(place.position), call.rope->rotary_dim, call.rope->style, rows.head_dim, row);
      q = row;
    }
    for (std::int64_t d = 0; d < rows.head_dim; ++d) row[d] = q[d] * call.scale;
  }
}

Rows gather_tile(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* scratch) {
  Rows rows = describe_rows(call, tile);
  gather_rows(call, kv_head, scratch, rows,
              [&](std::int64_t i) { return TokenPlace{tile.first_row + i, tile.first_position + i}; });
  return rows;
}

// K and V of `keys` keys from position `base` on. V rows beyond them are not touched; K's are, but nobody reads them.
template <class Element>
void read_partition(const AttentionCall& call, const std::int32_t* block_table, std::int64_t kv_head, std::int64_t base,
                    std::int64_t keys, const Rows& rows, Scales& scales) {
  const std::int64_t part = kBlockSize * rows.head_dim;
  for (std::int64_t t = 0; t < keys; t += kBlockSize) {
    const std::uint8_t* block = call.kv + block_table[(base + t) / kBlockSize] * call.block_bytes;
    const auto* k = reinterpret_cast<const Element*>(block + kv_head * kv_head_bytes(call.kv_type, rows.head_dim));
    const Element* v = k + part;
    const auto* given = reinterpret_cast<const float*>(v + part);
    const std::int64_t seen = keys - t < kBlockSize ? keys - t : kBlockSize;
    for (std::int64_t i = 0; i < part; ++i) rows.k[t * rows.head_dim + i] = to_float(k[i]);
    for (std::int64_t i = 0; i < seen * rows.head_dim; ++i) rows.v[t * rows.head_dim + i] = to_float(v[i]);
    for (std::int64_t i = 0; i < seen; ++i) {
      scales.k[t + i] = sizeof(Element) == 1 ? given[i] : 1.0f;
      scales.v[t + i] = sizeof(Element) == 1 ? given[kBlockSize + i] : 1.0f;
    }
  }
}

// Brings row r's state forward by the first `visible` keys of the partition.
void attend_partition(const Rows& rows, const Scales& scales, const State& state, std::int64_t r,
                      std::int64_t visible) {
  const std::int64_t head_dim = rows.head_dim;
  float p[kPartition] = {};  // scores, then their exponentials
  for (std::int64_t t = 0; t < visible; t += kBlockSize) {
    const float* k = rows.k + t * head_dim;
    for (std::int64_t d = 0; d < head_dim; ++d, k += kBlockSize) {
      const float q = rows.q[r * head_dim + d];
      for (int lane = 0; lane < kBlockSize; ++lane) p[t + lane] = std::fma(q, k[lane], p[t + lane]);
    }
  }
  float max = state.max[r];
  for (std::int64_t t = 0; t < visible; ++t) {
    p[t] *= scales.k[t];
    max = p[t] > max ? p[t] : max;
  }
  const float factor = exp(state.max[r] - max);
  float lanes[8] = {};
  for (std::int64_t t = 0; t < visible; ++t) {
    p[t] = exp(p[t] - max);
    lanes[t % 8] += p[t];
    p[t] *= scales.v[t];
  }
  state.max[r] = max;
  state.sum[r] = state.sum[r] * factor + sum_of_lanes(lanes);

  float* output = state.output + r * head_dim;
  for (std::int64_t d = 0; d < head_dim; ++d) output[d] *= factor;
  for (std::int64_t t = 0; t < visible; ++t) {
    const float* v = rows.v + t * head_dim;
    for (std::int64_t d = 0; d < head_dim; ++d) output[d] = std::fma(p[t], v[d], output[d]);
  }
}

void reset(const Rows& rows, const State& state) {
  for (std::int64_t i = 0; i < rows.count * rows.head_dim; ++i) state.output[i] = 0.0f;
  for (std::int64_t r = 0; r < rows.count; ++r) state.max[r] = -kInfinity, state.sum[r] = 0.0f;
}

// Brings a state forward by keys begin … end-1; begin is a partition's.
void walk(const AttentionCall& call, const std::int32_t* block_table, std::int64_t kv_head, std::int64_t begin,
          std::int64_t end, const Rows& rows, const State& state) {
  for (std::int64_t base = begin; base < end; base += kPartition) {
    const std::int64_t keys = end - base < kPartition ? end - base : kPartition;
    const auto read = call.kv_type == KvType::F32   ? read_partition<float>
                      : call.kv_type == KvType::F16 ? read_partition<std::uint16_t>
                                                    : read_partition<std::int8_t>;
    Scales scales;
    read(call, block_table, kv_head, base, keys, rows, scales);
    for (std::int64_t r = 0; r < rows.count; ++r) {
      const std::int64_t seen = rows.position(r) + 1 - base;
      if (seen > 0) attend_partition(rows, scales, state, r, seen < keys ? seen : keys);
    }
  }
}

// One split of a tile into a state, which holds the tile's carried keys of that split.
void walk_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                const Rows& rows, const State& state) {
  const std::int64_t last = tile.first_position + tile.num_positions;  // keys seen by the last position
  const std::int64_t end = (split + 1) * kSplit < last ? (split + 1) * kSplit : last;
  std::int64_t begin = split * kSplit;
  if (begin < tile.num_carried) {
    begin = tile.num_carried;
  } else {
    reset(rows, state);
  }
  walk(call, tile.block_table, kv_head, begin, end, rows, state);
}

// Adds a later split's state to the states of the rows that see it.
void merge(const Rows& rows, std::int64_t split, const State& into, const State& from) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    if (rows.position(r) < split * kSplit) continue;
    const float max = from.max[r] > into.max[r] ? from.max[r] : into.max[r];
    const float a = exp(into.max[r] - max), b = exp(from.max[r] - max);
    into.max[r] = max;
    into.sum[r] = std::fma(from.sum[r], b, into.sum[r] * a);
    float* output = into.output + r * rows.head_dim;
    const float* other = from.output + r * rows.head_dim;
    for (std::int64_t d = 0; d < rows.head_dim; ++d) output[d] = std::fma(b, other[d], a * output[d]);
  }
}

void finish(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, const Rows& rows,
            const State& state) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const float factor = 1.0f / state.sum[r];
    float* out = call.out + (tile.first_row + r / rows.group) * call.ldo +
                 (kv_head * rows.group + r % rows.group) * rows.head_dim;
    for (std::int64_t d = 0; d < rows.head_dim; ++d) out[d] = factor * state.output[r * rows.head_dim + d];
  }
}

void attend(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states, float* scratch) {
  const Rows rows = gather_tile(call, tile, kv_head, scratch);
  float* memory = rows.q + rows.count * rows.head_dim;
  const std::int64_t floats = state_floats(rows.count, rows.head_dim);
  const State total(tile.num_carried > 0 ? states : memory, rows);
  for (std::int64_t split = 0; split < tile.num_splits(); ++split) {
    const bool carried = split * kSplit < tile.num_carried;
    const State state = split == 0 ? total : State(carried ? states + split * floats : memory + floats, rows);
    walk_split(call, tile, kv_head, split, rows, state);
    if (split > 0) merge(rows, split, total, state);
  }
  finish(call, tile, kv_head, rows, total);
}

void attend_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                  float* state, float* scratch) {
  const Rows rows = gather_tile(call, tile, kv_head, scratch);
  walk_split(call, tile, kv_head, split, rows, State(state, rows));
}

void merge_splits(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states) {
  const Rows rows = describe_rows(call, tile);
  const State total(states, rows);
  for (std::int64_t split = 1; split < tile.num_splits(); ++split) {
    merge(rows, split, total, State(states + split * state_floats(rows.count, rows.head_dim), rows));
  }
  finish(call, tile, kv_head, rows, total);
}

void copy(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
}

void attend_shared(const AttentionCall& call, const SharedTile& tile, std::int64_t kv_head, float* scratch) {
  const std::int64_t group = call.num_heads / call.num_kv_heads, head_dim = call.head_dim;
  // All rows see all keys, as if they were at the position after the last.
  Rows rows{tile.num_tokens * group, group, head_dim, tile.end, nullptr, nullptr, nullptr};
  gather_rows(call, kv_head, scratch, rows,
              [&](std::int64_t i) { return TokenPlace{tile.tokens[i].row, tile.tokens[i].position}; });
  const State state(rows.q + rows.count * head_dim, rows);
  if (tile.begin % kSplit == 0) {
    reset(rows, state);
  } else {
    for (std::int64_t i = 0; i < tile.num_tokens; ++i) {
      copy(tile.tokens[i].output, group * head_dim, state.output + i * group * head_dim);
      copy(tile.tokens[i].max, group, state.max + i * group);
      copy(tile.tokens[i].sum, group, state.sum + i * group);
    }
  }
  walk(call, tile.block_table, kv_head, tile.begin, tile.end, rows, state);
  for (std::int64_t i = 0; i < tile.num_tokens; ++i) {
    copy(state.output + i * group * head_dim, group * head_dim, tile.tokens[i].output);
    copy(state.max + i * group, group, tile.tokens[i].max);
    copy(state.sum + i * group, group, tile.tokens[i].sum);
  }
}

void store(float x, float* out) { *out = x; }
void store(float x, std::uint16_t* out) { *out = to_half(x); }

// What is stored of one head's K, as rotated, and V.
template <class Element>
void write_head(const float* k, const float* v, std::int64_t head_dim, Element* part, std::int64_t offset) {
  for (std::int64_t d = 0; d < head_dim; ++d) {
    store(k[d], part + d * kBlockSize + offset);
    store(v[d], part + (kBlockSize + offset) * head_dim + d);
  }
}

// The scale by which x is to be divided before it is rounded: 0 if it becomes zeros, NaN if not all of it is finite.
float scale_of(const float* x, std::int64_t head_dim) {
  float most = 0.0f;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    const float magnitude = std::fabs(x[d]);
    if (!(magnitude < kInfinity)) return __builtin_nanf("");
    most = magnitude > most ? magnitude : most;
  }
  return most < kLeastMagnitude ? 0.0f : most / 127.0f;
}

std::int8_t divided(float x, float scale) {
  return scale > 0.0f ? static_cast<std::int8_t>(round_to_even(x / scale)) : std::int8_t{0};
}

template <>
void write_head(const float* k, const float* v, std::int64_t head_dim, std::int8_t* part, std::int64_t offset) {
  auto* scales = reinterpret_cast<float*>(part + 2 * kBlockSize * head_dim);
  const float k_scale = scale_of(k, head_dim), v_scale = scale_of(v, head_dim);
  scales[offset] = k_scale;
  scales[kBlockSize + offset] = v_scale;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    part[d * kBlockSize + offset] = divided(k[d], k_scale);
    part[(kBlockSize + offset) * head_dim + d] = divided(v[d], v_scale);
  }
}

template <class Element>
void write_heads(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
                 const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  for (std::int64_t head = 0; head < num_kv_heads;
       ++head, k += head_dim, v += head_dim, slot += kv_head_bytes(type, head_dim)) {
    float rotated[kMaxHeadDim];
    const float* source = k;
    if (rope != nullptr) {
      rotate_head(k, rope->row(position), rope->rotary_dim, rope->style, head_dim, rotated);
      source = rotated;
    }
    write_head(source, v, head_dim, reinterpret_cast<Element*>(slot), offset);
  }
}

void write_kv(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
              const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  const auto write = type == KvType::F32   ? write_heads<float>
                     : type == KvType::F16 ? write_heads<std::uint16_t>
                                           : write_heads<std::int8_t>;
  write(k, v, num_kv_heads, head_dim, type, rope, position, slot, offset);
}

}  // namespace
}  // namespace scalar

const AttentionKernels& scalar_attention_kernels() {
  using namespace scalar;
  static constexpr AttentionKernels kernels{attend, attend_split, merge_splits, attend_shared, write_kv};
  return kernels;
}

}  // namespace octavo
