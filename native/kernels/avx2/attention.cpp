// Paged attention for AVX2. A tile of query rows (the heads that share a KV head, times some neighbouring positions)
// walks the keys once, six rows at a time in registers. Each row's chain of operations is the same in every tile:
//   scores    one FMA chain over head_dim per (row, key)
//   softmax   maximum and sum over the partition's 64 lanes in one fixed order; unseen lanes count as exp(-inf) = 0
//   output    one FMA chain over the row's visible keys per element; unseen V rows are not touched
// Tiles of more than six rows expand an fp16 partition to fp32 once, in L1; smaller ones convert as they load.
#include "attention.hpp"

#include "math.hpp"
#include "rope.hpp"
#include "unroll.hpp"

namespace octavo {
namespace {

constexpr int kRegisterRows = 6;
constexpr int kPartitionBlocks = kPartition / kBlockSize;
constexpr float kInfinity = __builtin_inff();

// One partition's K and V as seen by a KV head: the start of each block's part, and what to fetch meanwhile.
template <class Element>
struct Partition {
  const Element* k[kPartitionBlocks];  // [head_dim][16]
  const Element* v[kPartitionBlocks];  // [16][head_dim]
  const char* next[kPartitionBlocks];  // parts of later blocks
};

// scores[r][16 b + lane] = Σ_d q[r][d] · k[b][d][lane] for Blocks blocks.
template <int Rows, int Blocks, bool Prefetch, class Element>
OCTAVO_INLINE inline void score_blocks(const float* q, std::int64_t head_dim, const Element* const* k,
                                                const char* const* next, float* scores) {
  constexpr int kLines = sizeof(Element) == 2 ? 1 : 2;  // cache lines of K and V per step of d
  __m256 sum[Rows][2 * Blocks];
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    unroll<2 * Blocks>([&](auto j) OCTAVO_INLINE { sum[r][j] = _mm256_setzero_ps(); });
  });
  for (std::int64_t d = 0; d < head_dim; ++d) {
    unroll<Blocks>([&](auto b) OCTAVO_INLINE {
      if constexpr (Prefetch) {
        unroll<kLines>([&](auto line) OCTAVO_INLINE {
          _mm_prefetch(next[b] + (d * kLines + line) * 64, _MM_HINT_T0);
        });
      }
      const __m256 k0 = load8(k[b] + d * kBlockSize), k1 = load8(k[b] + d * kBlockSize + 8);
      unroll<Rows>([&](auto r) OCTAVO_INLINE {
        const __m256 x = _mm256_broadcast_ss(q + r * head_dim + d);
        sum[r][2 * b] = _mm256_fmadd_ps(x, k0, sum[r][2 * b]);
        sum[r][2 * b + 1] = _mm256_fmadd_ps(x, k1, sum[r][2 * b + 1]);
      });
    });
  }
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    unroll<2 * Blocks>([&](auto j) OCTAVO_INLINE {
      _mm256_store_ps(scores + r * kPartition + 8 * j, sum[r][j]);
    });
  });
}

// output[r][c …] += Σ_t p[r][t] · v[t][c …] for t in begin … end-1, in order, on Vectors · 8 columns.
template <int Rows, int Vectors, class Element>
OCTAVO_INLINE inline void accumulate_columns(const float* p, const Element* const* v, std::int64_t begin,
                                                      std::int64_t end, std::int64_t head_dim, float* output) {
  __m256 sum[Rows][Vectors];
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    unroll<Vectors>([&](auto j) OCTAVO_INLINE {
      sum[r][j] = _mm256_loadu_ps(output + r * head_dim + 8 * j);
    });
  });
  for (std::int64_t t = begin; t < end;) {
    const Element* block = v[t / kBlockSize];
    const std::int64_t first = t & -kBlockSize;
    const std::int64_t stop = first + kBlockSize < end ? first + kBlockSize : end;
    for (; t < stop; ++t) {
      const Element* row = block + (t - first) * head_dim;
      if constexpr (Rows <= 3) {
        __m256 weight[Rows];
        unroll<Rows>([&](auto r) OCTAVO_INLINE { weight[r] = _mm256_broadcast_ss(p + r * kPartition + t); });
        unroll<Vectors>([&](auto j) OCTAVO_INLINE {
          const __m256 x = load8(row + 8 * j);
          unroll<Rows>([&](auto r) OCTAVO_INLINE {
            sum[r][j] = _mm256_fmadd_ps(weight[r], x, sum[r][j]);
          });
        });
      } else {
        __m256 x[Vectors];
        unroll<Vectors>([&](auto j) OCTAVO_INLINE { x[j] = load8(row + 8 * j); });
        unroll<Rows>([&](auto r) OCTAVO_INLINE {
          const __m256 weight = _mm256_broadcast_ss(p + r * kPartition + t);
          unroll<Vectors>([&](auto j) OCTAVO_INLINE {
            sum[r][j] = _mm256_fmadd_ps(weight, x[j], sum[r][j]);
          });
        });
      }
    }
  }
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    unroll<Vectors>([&](auto j) OCTAVO_INLINE {
      _mm256_storeu_ps(output + r * head_dim + 8 * j, sum[r][j]);
    });
  });
}

template <int Rows, class Element>
inline void accumulate(const float* p, const Element* const* v, std::int64_t begin, std::int64_t end, std::int64_t head_dim,
                       float* output) {
  constexpr int kVectors = Rows == 1 ? 8 : Rows <= 3 ? 4 : 2;
  const Element* column[kPartitionBlocks];
  std::int64_t c = 0;
  const auto move = [&] {
    for (int b = 0; b < kPartitionBlocks; ++b) column[b] = v[b] + c;
  };
  for (; c + 8 * kVectors <= head_dim; c += 8 * kVectors) {
    move();
    accumulate_columns<Rows, kVectors>(p, column, begin, end, head_dim, output + c);
  }
  for (; c < head_dim; c += 8) {
    move();
    accumulate_columns<Rows, 1>(p, column, begin, end, head_dim, output + c);
  }
}

// Turns a row's scores into exp(score - max), and carries (max, sum, output) over to the new maximum.
inline void softmax_row(float* scores, std::int64_t visible, std::int64_t head_dim, float& max, float& sum, float* output) {
  const std::int64_t vectors = (visible + 7) / 8;
  if (visible % 8 != 0) {
    float* last = scores + 8 * (vectors - 1);
    const __m256 seen = _mm256_castsi256_ps(lane_mask(visible % 8));
    _mm256_store_ps(last, _mm256_blendv_ps(_mm256_set1_ps(-kInfinity), _mm256_load_ps(last), seen));
  }
  __m256 largest = _mm256_load_ps(scores);
  for (std::int64_t i = 1; i < vectors; ++i) largest = _mm256_max_ps(largest, _mm256_load_ps(scores + 8 * i));
  const float partition_max = horizontal_max(largest);
  if (partition_max > max) {
    const float factor = exp1(max - partition_max);
    const __m256 factors = _mm256_set1_ps(factor);
    sum *= factor;
    for (std::int64_t d = 0; d < head_dim; d += 8) {
      _mm256_storeu_ps(output + d, _mm256_mul_ps(factors, _mm256_loadu_ps(output + d)));
    }
    max = partition_max;
  }
  const __m256 shift = _mm256_set1_ps(max);
  __m256 total = _mm256_setzero_ps();
  for (std::int64_t i = 0; i < vectors; ++i) {
    const __m256 p = exp8(_mm256_sub_ps(_mm256_load_ps(scores + 8 * i), shift));
    total = _mm256_add_ps(total, p);
    _mm256_store_ps(scores + 8 * i, p);
  }
  sum += horizontal_sum(total);
}

// Rows of a tile that are computed together: their queries and states, and how many of the partition's keys each sees.
struct RowGroup {
  const float* q;  // [rows][head_dim]
  float* output;   // [rows][head_dim]
  float* max;
  float* sum;
  std::int64_t visible[kRegisterRows];  // 0 … 64, ascending; all ≤ 0 rows first
};

template <int Rows, int HeadDim, bool Prefetch, class Element>
[[gnu::noinline]] void attend_partition(const Partition<Element>& kv, const RowGroup& rows, std::int64_t head_dim_any) {
  constexpr int kBlocks = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  const std::int64_t head_dim = HeadDim != 0 ? HeadDim : head_dim_any;
  alignas(64) float scores[Rows * kPartition];
  const std::int64_t least = rows.visible[0], most = rows.visible[Rows - 1];
  const std::int64_t blocks = (most + kBlockSize - 1) / kBlockSize;
  std::int64_t b = 0;
  for (; b + kBlocks <= blocks; b += kBlocks) {
    score_blocks<Rows, kBlocks, Prefetch>(rows.q, head_dim, kv.k + b, kv.next + b, scores + b * kBlockSize);
  }
  if constexpr (kBlocks > 1) {
    for (; b < blocks; ++b) {
      score_blocks<Rows, 1, Prefetch>(rows.q, head_dim, kv.k + b, kv.next + b, scores + b * kBlockSize);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    if (rows.visible[r] <= 0) continue;
    softmax_row(scores + r * kPartition, rows.visible[r], head_dim, rows.max[r], rows.sum[r], rows.output + r * head_dim);
  }
  const std::int64_t common = least > 0 ? least : 0;
  if (common > 0) accumulate<Rows>(scores, kv.v, 0, common, head_dim, rows.output);
  if (most == common) return;
  for (int r = 0; r < Rows; ++r) {
    if (rows.visible[r] <= common) continue;
    accumulate<1>(scores + r * kPartition, kv.v, common, rows.visible[r], head_dim, rows.output + r * head_dim);
  }
}

template <int HeadDim, bool Prefetch, class Element>
void attend_rows(int rows, const Partition<Element>& kv, const RowGroup& group, std::int64_t head_dim) {
  switch (rows) {
    case 1: return attend_partition<1, HeadDim, Prefetch>(kv, group, head_dim);
    case 2: return attend_partition<2, HeadDim, Prefetch>(kv, group, head_dim);
    case 3: return attend_partition<3, HeadDim, Prefetch>(kv, group, head_dim);
    case 4: return attend_partition<4, HeadDim, Prefetch>(kv, group, head_dim);
    case 5: return attend_partition<5, HeadDim, Prefetch>(kv, group, head_dim);
    default: return attend_partition<6, HeadDim, Prefetch>(kv, group, head_dim);
  }
}

// A tile's rows seen from one KV head, and the pieces of the scratch memory.
struct Rows {
  std::int64_t count, group, head_dim, first_position;
  float* q;
  float* partition;  // an expanded partition: K, then V

  std::int64_t position(std::int64_t row) const { return first_position + row / group; }
};

struct State {
  float* output;
  float* max;
  float* sum;
  State(float* memory, const Rows& rows)
      : output(memory), max(memory + rows.count * rows.head_dim), sum(max + rows.count) {}
};

template <int HeadDim, bool Prefetch, class Element>
void attend_all_rows(const Partition<Element>& kv, const Rows& rows, const State& state, std::int64_t base) {
  for (std::int64_t first = 0; first < rows.count; first += kRegisterRows) {
    const int count = static_cast<int>(rows.count - first < kRegisterRows ? rows.count - first : kRegisterRows);
    RowGroup group{rows.q + first * rows.head_dim, state.output + first * rows.head_dim, state.max + first, state.sum + first, {}};
    for (int r = 0; r < count; ++r) {
      const std::int64_t seen = rows.position(first + r) + 1 - base;
      group.visible[r] = seen < kPartition ? seen : kPartition;
    }
    if (group.visible[count - 1] > 0) attend_rows<HeadDim, Prefetch>(count, kv, group, rows.head_dim);
  }
}

// One split of a tile into a state.
template <int HeadDim, class Element>
void walk_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split, const Rows& rows,
                const State& state) {
  const std::int64_t head_dim = rows.head_dim, part = kBlockSize * head_dim;
  for (std::int64_t i = 0; i < rows.count * head_dim; ++i) state.output[i] = 0.0f;
  for (std::int64_t r = 0; r < rows.count; ++r) state.max[r] = -kInfinity, state.sum[r] = 0.0f;

  const std::int64_t last = tile.first_position + tile.num_positions;  // keys seen by the last position
  const std::int64_t end = (split + 1) * kSplit < last ? (split + 1) * kSplit : last;
  const std::int64_t last_block = (end - 1) / kBlockSize;
  const std::uint8_t* head = call.kv + kv_head * 2 * part * static_cast<std::int64_t>(sizeof(Element));
  const auto block_part = [&](std::int64_t block) {
    return reinterpret_cast<const Element*>(head + tile.block_table[block] * call.block_bytes);
  };
  for (std::int64_t base = split * kSplit; base < end; base += kPartition) {
    Partition<Element> kv;
    const std::int64_t first_block = base / kBlockSize;
    for (int b = 0; b < kPartitionBlocks; ++b) {
      const std::int64_t block = first_block + b < last_block ? first_block + b : last_block;
      const std::int64_t ahead = first_block + b + 2 < last_block ? first_block + b + 2 : last_block;
      kv.k[b] = block_part(block);
      kv.v[b] = kv.k[b] + part;
      kv.next[b] = reinterpret_cast<const char*>(block_part(ahead));
    }
    if (sizeof(Element) == sizeof(float) || rows.count <= kRegisterRows) {
      attend_all_rows<HeadDim, true>(kv, rows, state, base);
      continue;
    }
    Partition<float> expanded;
    for (int b = 0; b < kPartitionBlocks; ++b) {
      float* out = rows.partition + 2 * b * part;
      expanded.k[b] = out;
      expanded.v[b] = out + part;
      expanded.next[b] = nullptr;
      if (first_block + b > last_block) continue;
      for (std::int64_t i = 0; i < 2 * part; i += 8) _mm256_storeu_ps(out + i, load8(kv.k[b] + i));
    }
    attend_all_rows<HeadDim, false>(expanded, rows, state, base);
  }
}

void walk(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split, const Rows& rows,
          const State& state) {
  const bool half = call.kv_type == KvType::F16;
  switch (rows.head_dim) {
    case 64:
      return half ? walk_split<64, std::uint16_t>(call, tile, kv_head, split, rows, state)
                  : walk_split<64, float>(call, tile, kv_head, split, rows, state);
    case 128:
      return half ? walk_split<128, std::uint16_t>(call, tile, kv_head, split, rows, state)
                  : walk_split<128, float>(call, tile, kv_head, split, rows, state);
    default:
      return half ? walk_split<0, std::uint16_t>(call, tile, kv_head, split, rows, state)
                  : walk_split<0, float>(call, tile, kv_head, split, rows, state);
  }
}

// Adds a later split's state to the states of the rows that see it.
void merge(const Rows& rows, std::int64_t split, const State& into, const State& from) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    if (rows.position(r) < split * kSplit) continue;
    const float max = from.max[r] > into.max[r] ? from.max[r] : into.max[r];
    const float a = exp1(into.max[r] - max), b = exp1(from.max[r] - max);
    into.max[r] = max;
    into.sum[r] = __builtin_fmaf(from.sum[r], b, into.sum[r] * a);
    const __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b);
    float* output = into.output + r * rows.head_dim;
    const float* other = from.output + r * rows.head_dim;
    for (std::int64_t d = 0; d < rows.head_dim; d += 8) {
      const __m256 scaled = _mm256_mul_ps(va, _mm256_loadu_ps(output + d));
      _mm256_storeu_ps(output + d, _mm256_fmadd_ps(vb, _mm256_loadu_ps(other + d), scaled));
    }
  }
}

float* output_row(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, const Rows& rows, std::int64_t r) {
  return call.out + (tile.first_row + r / rows.group) * call.ldo + (kv_head * rows.group + r % rows.group) * rows.head_dim;
}

void finish(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, const Rows& rows, const State& state) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const __m256 factor = _mm256_set1_ps(1.0f / state.sum[r]);
    float* out = output_row(call, tile, kv_head, rows, r);
    const float* output = state.output + r * rows.head_dim;
    for (std::int64_t d = 0; d < rows.head_dim; d += 8) {
      _mm256_storeu_ps(out + d, _mm256_mul_ps(factor, _mm256_loadu_ps(output + d)));
    }
  }
}

Rows describe_rows(const AttentionCall& call, const AttentionTile& tile) {
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  return {tile.num_positions * group, group, call.head_dim, tile.first_position, nullptr, nullptr};
}

// Rotated and scaled queries of the tile, side by side in scratch; the rest of scratch is the expanded partition.
Rows gather_rows(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* scratch) {
  Rows rows = describe_rows(call, tile);
  rows.partition = scratch;
  rows.q = scratch + 2 * kPartition * rows.head_dim;
  const __m256 scale = _mm256_set1_ps(call.scale);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const float* q = call.q + (tile.first_row + r / rows.group) * call.ldq + (kv_head * rows.group + r % rows.group) * rows.head_dim;
    float* row = rows.q + r * rows.head_dim;
    if (call.rope != nullptr) {
      rotate_head(q, call.rope->row(rows.position(r)), call.rope->rotary_dim, call.rope->style, rows.head_dim, row);
      q = row;
    }
    for (std::int64_t d = 0; d < rows.head_dim; d += 8) _mm256_storeu_ps(row + d, _mm256_mul_ps(scale, _mm256_loadu_ps(q + d)));
  }
  return rows;
}

void attend(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* scratch) {
  const Rows rows = gather_rows(call, tile, kv_head, scratch);
  float* memory = rows.q + rows.count * rows.head_dim;
  const State total(memory, rows);
  const State state(memory + state_floats(rows.count, rows.head_dim), rows);
  walk(call, tile, kv_head, 0, rows, total);
  for (std::int64_t split = 1; split < tile.num_splits(); ++split) {
    walk(call, tile, kv_head, split, rows, state);
    merge(rows, split, total, state);
  }
  finish(call, tile, kv_head, rows, total);
}

void attend_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split, float* state,
                  float* scratch) {
  const Rows rows = gather_rows(call, tile, kv_head, scratch);
  walk(call, tile, kv_head, split, rows, State(state, rows));
}

void merge_splits(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states) {
  const Rows rows = describe_rows(call, tile);
  const State total(states, rows);
  for (std::int64_t split = 1; split < tile.num_splits(); ++split) {
    merge(rows, split, total, State(states + split * state_floats(rows.count, rows.head_dim), rows));
  }
  finish(call, tile, kv_head, rows, total);
}

template <class Element>
void store8(Element* out, __m256 x);
template <>
void store8(float* out, __m256 x) {
  _mm256_storeu_ps(out, x);
}
template <>
void store8(std::uint16_t* out, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <class Element>
void write_heads(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, const RopeTable* rope,
                 std::int64_t position, Element* part, std::int64_t offset) {
  for (std::int64_t head = 0; head < num_kv_heads; ++head, k += head_dim, v += head_dim, part += 2 * kBlockSize * head_dim) {
    alignas(32) float rotated[1024];
    const float* source = k;
    if (rope != nullptr) {
      rotate_head(k, rope->row(position), rope->rotary_dim, rope->style, head_dim, rotated);
      source = rotated;
    }
    for (std::int64_t d = 0; d < head_dim; d += 8) {
      alignas(32) Element column[8];
      store8(column, _mm256_loadu_ps(source + d));
      for (int i = 0; i < 8; ++i) part[(d + i) * kBlockSize + offset] = column[i];
      store8(part + (kBlockSize + offset) * head_dim + d, _mm256_loadu_ps(v + d));
    }
  }
}

void write_kv(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type, const RopeTable* rope,
              std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  if (type == KvType::F16) {
    write_heads(k, v, num_kv_heads, head_dim, rope, position, reinterpret_cast<std::uint16_t*>(slot), offset);
  } else {
    write_heads(k, v, num_kv_heads, head_dim, rope, position, reinterpret_cast<float*>(slot), offset);
  }
}

constexpr AttentionKernels kKernels{attend, attend_split, merge_splits, write_kv};

}  // namespace

const AttentionKernels& avx2_attention_kernels() { return kKernels; }

}  // namespace octavo
