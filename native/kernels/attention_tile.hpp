// Paged attention over any vector width. A tile of query rows (the heads that share a KV head, times some neighbouring
// positions) walks the keys once, several rows at a time in registers. Each row's chain of operations is the same in
// every tile, and for every vector width:
//   scores    one FMA chain over head_dim per (row, key), then K's scale if it has one
//   softmax   maximum and sum over the partition's 64 lanes in one fixed order; unseen lanes count as exp(-inf) = 0
//   output    one FMA chain over the row's visible keys per element, V's scale multiplied into the key's weight; unseen
//             V rows are not touched
// What K and V are converted from is converted at each load: a partition in fp32 would fill L1, and that costs more.
//
// `S` is an ISA family's vectors: Vec, kLanes, kRegisters, kRows (rows held in registers), kScoreBlocks<Rows>,
// kColumnVectors<Rows> and the operations. head_dim is a multiple of kLanes.
//
// Blocks lie anywhere in memory, and what is not fetched before it is read comes at a fraction of the bandwidth. So
// each line of K and V that is read fetches the line at the same place four blocks later, be it another tile's: an even
// stream, far enough ahead, that an L1 cache of 32 KiB holds beside what is being read. Scores fetch K, outputs V.
#pragma once
#include "attention_rows.hpp"
#include "avx2/math.hpp"
#include "unroll.hpp"

namespace octavo {
namespace {

constexpr int kMaxRegisterRows = 12;
constexpr int kPartitionBlocks = kPartition / kBlockSize;
constexpr float kInfinity = __builtin_inff();

constexpr int kLine = 64;  // bytes of a cache line

template <class Element>
constexpr bool kScaled = sizeof(Element) == 1;

OCTAVO_INLINE inline void fetch(const void* line) { _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0); }

// One partition's K and V as seen by a KV head: the start of each block's part, and what to fetch meanwhile: the
// blocks that are read after as many others as a partition has, or these again if none are.
template <class Element>
struct Partition {
  const Element* k[kPartitionBlocks];     // [head_dim][16]
  const Element* v[kPartitionBlocks];     // [16][head_dim]
  const Element* next[kPartitionBlocks];  // parts of the blocks to fetch: K, then V, then scales
  const float* scales[kPartitionBlocks];  // of K [16], then of V [16]; null if the elements have none
};

// scores[r][16 b + lane] = Σ_d q[d][r] · k[b][d][lane] for Blocks blocks; q has kRows columns.
template <class S, int Rows, int Blocks, bool Prefetch, class Element>
OCTAVO_INLINE inline void score_blocks(const float* q, std::int64_t head_dim, const Element* const* k,
                                       const Element* const* next, const float* const* scales, float* scores) {
  constexpr int kVectors = kBlockSize / S::kLanes;                     // of a block
  constexpr int kEvery = kLine / (kBlockSize * int{sizeof(Element)});  // steps of d in a cache line of K
  // All keys of a step in registers beside the sums, if they fit; otherwise block by block.
  constexpr int kTogether = (Rows + 1) * Blocks * kVectors < S::kRegisters ? Blocks : 1;
  typename S::Vec sum[Rows][Blocks * kVectors];
  unroll<Rows>([&](auto r)
                   OCTAVO_INLINE { unroll<Blocks * kVectors>([&](auto j) OCTAVO_INLINE { sum[r][j] = S::zero(); }); });
  const auto step = [&](std::int64_t d) OCTAVO_INLINE {
    unroll<Blocks / kTogether>([&](auto part) OCTAVO_INLINE {
      constexpr int kKeys = kTogether * kVectors;
      typename S::Vec keys[kKeys];
      unroll<kKeys>([&](auto j) OCTAVO_INLINE {
        keys[j] = S::load(k[part * kTogether + j / kVectors] + d * kBlockSize + j % kVectors * S::kLanes);
      });
      unroll<Rows>([&](auto r) OCTAVO_INLINE {
        const typename S::Vec x = S::broadcast(q[r]);
        unroll<kKeys>([&](auto j)
                          OCTAVO_INLINE { sum[r][part * kKeys + j] = S::fmadd(x, keys[j], sum[r][part * kKeys + j]); });
      });
    });
    q += S::kRows;
  };
  for (std::int64_t d = 0; d < head_dim; d += kEvery) {
    if constexpr (Prefetch) {
      unroll<Blocks>([&](auto b) OCTAVO_INLINE { fetch(next[b] + d * kBlockSize); });
    }
    unroll<kEvery>([&](auto i) OCTAVO_INLINE { step(d + i); });
  }
  unroll<Blocks * kVectors>([&](auto j) OCTAVO_INLINE {
    if constexpr (kScaled<Element>) {
      constexpr int kBlock = j / kVectors, kLane = j % kVectors * S::kLanes;
      if constexpr (Prefetch && kLane == 0) {
        unroll<2>([&](auto i) OCTAVO_INLINE { fetch(next[kBlock] + 2 * kBlockSize * head_dim + kLine * i); });
      }
      const typename S::Vec scale = S::load(scales[kBlock] + kLane);
      unroll<Rows>([&](auto r) OCTAVO_INLINE { sum[r][j] = S::mul(sum[r][j], scale); });
    }
    unroll<Rows>([&](auto r) OCTAVO_INLINE { S::store(scores + r * kPartition + j * S::kLanes, sum[r][j]); });
  });
}

// output[r][c …] = factors[r] · output[r][c …] + Σ_t p[r][t] · v[t][c …] for t in begin … end-1, in order, on Vectors
// vectors of columns. `next` is what to fetch, block by block.
template <class S, int Rows, int Vectors, bool Prefetch, class Element>
OCTAVO_INLINE inline void accumulate_columns(const float* p, const float* factors, const Element* const* v,
                                             const Element* const* next, std::int64_t begin, std::int64_t end,
                                             std::int64_t head_dim, float* output) {
  constexpr int kBytes = Vectors * S::kLanes * int{sizeof(Element)};  // of a row
  typename S::Vec sum[Rows][Vectors];
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    const typename S::Vec factor = S::broadcast(factors[r]);
    unroll<Vectors>([&](auto j)
                        OCTAVO_INLINE { sum[r][j] = S::mul(factor, S::load(output + r * head_dim + j * S::kLanes)); });
  });
  for (std::int64_t t = begin; t < end;) {
    const Element* block = v[t / kBlockSize];
    const std::int64_t first = t & -kBlockSize;
    const std::int64_t stop = first + kBlockSize < end ? first + kBlockSize : end;
    for (; t < stop; ++t) {
      const Element* row = block + (t - first) * head_dim;
      if constexpr (Prefetch) {
        const Element* later = next[t / kBlockSize] + (t - first) * head_dim;
        unroll<(kBytes + kLine - 1) / kLine>([&](auto i)
                                                 OCTAVO_INLINE { fetch(later + i * (kLine / int{sizeof(Element)})); });
      }
      if constexpr (Rows <= 3) {  // whichever of the two needs fewer registers
        typename S::Vec weight[Rows];
        unroll<Rows>([&](auto r) OCTAVO_INLINE { weight[r] = S::broadcast(p[r * kPartition + t]); });
        unroll<Vectors>([&](auto j) OCTAVO_INLINE {
          const typename S::Vec x = S::load(row + j * S::kLanes);
          unroll<Rows>([&](auto r) OCTAVO_INLINE { sum[r][j] = S::fmadd(weight[r], x, sum[r][j]); });
        });
      } else {
        typename S::Vec x[Vectors];
        unroll<Vectors>([&](auto j) OCTAVO_INLINE { x[j] = S::load(row + j * S::kLanes); });
        unroll<Rows>([&](auto r) OCTAVO_INLINE {
          const typename S::Vec weight = S::broadcast(p[r * kPartition + t]);
          unroll<Vectors>([&](auto j) OCTAVO_INLINE { sum[r][j] = S::fmadd(weight, x[j], sum[r][j]); });
        });
      }
    }
  }
  unroll<Rows>([&](auto r) OCTAVO_INLINE {
    unroll<Vectors>([&](auto j) OCTAVO_INLINE { S::store(output + r * head_dim + j * S::kLanes, sum[r][j]); });
  });
}

template <class S, int Rows, bool Prefetch, class Element>
inline void accumulate(const float* p, const float* factors, const Partition<Element>& kv, std::int64_t begin,
                       std::int64_t end, std::int64_t head_dim, float* output) {
  constexpr int kVectors = S::template kColumnVectors<Rows>;
  const Element* column[kPartitionBlocks];
  const Element* next[kPartitionBlocks];
  std::int64_t c = 0;
  const auto move = [&] {
    for (int b = 0; b < kPartitionBlocks; ++b) {
      column[b] = kv.v[b] + c;
      next[b] = kv.next[b] + kBlockSize * head_dim + c;
    }
  };
  for (; c + S::kLanes * kVectors <= head_dim; c += S::kLanes * kVectors) {
    move();
    accumulate_columns<S, Rows, kVectors, Prefetch>(p, factors, column, next, begin, end, head_dim, output + c);
  }
  for (; c < head_dim; c += S::kLanes) {
    move();
    accumulate_columns<S, Rows, 1, Prefetch>(p, factors, column, next, begin, end, head_dim, output + c);
  }
}

// The largest of a row's visible scores; unseen lanes of its last vector become -inf.
template <class S>
OCTAVO_INLINE inline float mask_and_max(float* scores, std::int64_t visible) {
  if (visible == kPartition) {
    typename S::Vec largest = S::load(scores);
    unroll<kPartition / S::kLanes - 1>(
        [&](auto i) OCTAVO_INLINE { largest = S::max(largest, S::load(scores + (i + 1) * S::kLanes)); });
    return S::horizontal_max(largest);
  }
  const std::int64_t end = (visible + S::kLanes - 1) / S::kLanes * S::kLanes;
  for (std::int64_t t = visible; t < end; ++t) scores[t] = -kInfinity;
  typename S::Vec largest = S::load(scores);
  for (std::int64_t t = S::kLanes; t < end; t += S::kLanes) largest = S::max(largest, S::load(scores + t));
  return S::horizontal_max(largest);
}

// Turns a row's scores into exp(score - max), times V's scale if it has one, and returns the exponentials' sum.
template <class S, class Element>
OCTAVO_INLINE inline float exponentiate(float* scores, std::int64_t visible, float max, const float* const* scales) {
  const typename S::Vec shift = S::broadcast(max);
  __m256 total = _mm256_setzero_ps();  // eight lanes in every ISA family
  const auto vector = [&](std::int64_t t) OCTAVO_INLINE {
    typename S::Vec p = S::exp(S::sub(S::load(scores + t), shift));
    total = S::add_halves(total, p);
    if constexpr (kScaled<Element>) p = S::mul(p, S::load(scales[t / kBlockSize] + kBlockSize + t % kBlockSize));
    S::store(scores + t, p);
  };
  if (visible == kPartition) {
    unroll<kPartition / S::kLanes>([&](auto i) OCTAVO_INLINE { vector(i * S::kLanes); });
  } else {
    for (std::int64_t t = 0; t < visible; t += S::kLanes) vector(t);
  }
  return horizontal_sum(total);
}

// Rows of a tile that are computed together: their queries and states, and how many of the partition's keys each sees.
struct RowGroup {
  const float* q;  // [head_dim][kRows]
  float* output;   // [rows][head_dim]
  float* max;
  float* sum;
  std::int64_t visible[kMaxRegisterRows];  // 0 … 64, ascending; all ≤ 0 rows first
};

template <class S, int Rows, bool Prefetch, class Element>
[[gnu::noinline]] void attend_partition(const Partition<Element>& kv, const RowGroup& rows, std::int64_t head_dim) {
  constexpr int kBlocks = S::template kScoreBlocks<Rows>;
  alignas(64) float scores[Rows * kPartition];
  const std::int64_t least = rows.visible[0], most = rows.visible[Rows - 1];
  const std::int64_t blocks = (most + kBlockSize - 1) / kBlockSize;
  std::int64_t b = 0;
  for (; b + kBlocks <= blocks; b += kBlocks) {
    score_blocks<S, Rows, kBlocks, Prefetch>(rows.q, head_dim, kv.k + b, kv.next + b, kv.scales + b,
                                             scores + b * kBlockSize);
  }
  if constexpr (kBlocks > 1) {
    for (; b < blocks; ++b) {
      score_blocks<S, Rows, 1, Prefetch>(rows.q, head_dim, kv.k + b, kv.next + b, kv.scales + b,
                                         scores + b * kBlockSize);
    }
  }
  // The new maximum of each row, then the factors by which its sum and output come down to it, all rows at once.
  alignas(64) float factors[16] = {};
  for (int r = 0; r < Rows; ++r) {
    if (rows.visible[r] <= 0) continue;
    const float largest = mask_and_max<S>(scores + r * kPartition, rows.visible[r]);
    const float max = largest > rows.max[r] ? largest : rows.max[r];
    factors[r] = rows.max[r] - max;
    rows.max[r] = max;
  }
  for (int r = 0; r < Rows; r += S::kLanes) S::store(factors + r, S::exp(S::load(factors + r)));
  for (int r = 0; r < Rows; ++r) {
    if (rows.visible[r] <= 0) continue;
    const float sum = exponentiate<S, Element>(scores + r * kPartition, rows.visible[r], rows.max[r], kv.scales);
    rows.sum[r] = rows.sum[r] * factors[r] + sum;
  }
  const std::int64_t common = least > 0 ? least : 0;
  if (common > 0) accumulate<S, Rows, Prefetch>(scores, factors, kv, 0, common, head_dim, rows.output);
  if (most == common) return;
  for (int r = 0; r < Rows; ++r) {
    if (rows.visible[r] <= common) continue;
    const float factor = common > 0 ? 1.0f : factors[r];
    accumulate<S, 1, false>(scores + r * kPartition, &factor, kv, common, rows.visible[r], head_dim,
                            rows.output + r * head_dim);
  }
}

// The same for a number of rows known at run time, 1 … S::kRows.
template <class S, bool Prefetch, int Rows = 1, class Element>
void attend_rows(int rows, const Partition<Element>& kv, const RowGroup& group, std::int64_t head_dim) {
  if constexpr (Rows < S::kRows) {
    if (rows > Rows) return attend_rows<S, Prefetch, Rows + 1>(rows, kv, group, head_dim);
  }
  attend_partition<S, Rows, Prefetch>(kv, group, head_dim);
}

struct State {
  float* output;
  float* max;
  float* sum;
  State(float* memory, const Rows& rows)
      : output(memory), max(memory + rows.count * rows.head_dim), sum(max + rows.count) {}
};

// The first rows fetch what comes next.
template <class S, class Element>
void attend_all_rows(const Partition<Element>& kv, const Rows& rows, const State& state, std::int64_t base) {
  for (std::int64_t first = 0; first < rows.count; first += S::kRows) {
    const int count = static_cast<int>(rows.count - first < S::kRows ? rows.count - first : S::kRows);
    RowGroup group{
        rows.q + first * rows.head_dim, state.output + first * rows.head_dim, state.max + first, state.sum + first, {}};
    for (int r = 0; r < count; ++r) {
      const std::int64_t seen = rows.position(first + r) + 1 - base;
      group.visible[r] = seen < kPartition ? seen : kPartition;
    }
    if (group.visible[count - 1] <= 0) continue;
    if (first == 0) {
      attend_rows<S, true>(count, kv, group, rows.head_dim);
    } else {
      attend_rows<S, false>(count, kv, group, rows.head_dim);
    }
  }
}

void reset(const Rows& rows, const State& state) {
  for (std::int64_t i = 0; i < rows.count * rows.head_dim; ++i) state.output[i] = 0.0f;
  for (std::int64_t r = 0; r < rows.count; ++r) state.max[r] = -kInfinity, state.sum[r] = 0.0f;
}

// Brings a state forward by keys begin … end-1; begin is a partition's. `last`: the last key that this thread goes on
// to before it turns to call.ahead.
template <class S, class Element>
void walk_keys(const AttentionCall& call, const std::int32_t* block_table, std::int64_t kv_head, std::int64_t begin,
               std::int64_t end, std::int64_t last, const Rows& rows, const State& state) {
  const std::int64_t part = kBlockSize * rows.head_dim, head_bytes = kv_head_bytes(call.kv_type, rows.head_dim);
  const auto part_of = [&](const std::int32_t* table, std::int64_t block, std::int64_t head) {
    return reinterpret_cast<const Element*>(call.kv + table[block] * call.block_bytes + head * head_bytes);
  };
  const std::int64_t end_block = (end - 1) / kBlockSize, last_block = last / kBlockSize;
  const KeysAhead& ahead = call.ahead;
  for (std::int64_t base = begin; base < end; base += kPartition) {
    Partition<Element> kv;
    for (std::int64_t b = 0; b < kPartitionBlocks; ++b) {
      const std::int64_t block = base / kBlockSize + b, later = block + kPartitionBlocks - last_block;
      kv.k[b] = part_of(block_table, block < end_block ? block : end_block, kv_head);
      kv.v[b] = kv.k[b] + part;
      kv.scales[b] = kScaled<Element> ? reinterpret_cast<const float*>(kv.v[b] + part) : nullptr;
      if (later <= 0) {
        kv.next[b] = part_of(block_table, last_block + later, kv_head);
      } else if (ahead.block_table != nullptr) {
        const std::int64_t first = ahead.begin / kBlockSize, there = (ahead.end - 1) / kBlockSize - first;
        kv.next[b] = part_of(ahead.block_table, first + (later <= there ? later - 1 : there), ahead.kv_head);
      } else {
        kv.next[b] = kv.k[b];
      }
    }
    attend_all_rows<S>(kv, rows, state, base);
  }
}

template <class S>
void walk(const AttentionCall& call, const std::int32_t* block_table, std::int64_t kv_head, std::int64_t begin,
          std::int64_t end, std::int64_t last, const Rows& rows, const State& state) {
  if (call.kv_type == KvType::F16) {
    return walk_keys<S, std::uint16_t>(call, block_table, kv_head, begin, end, last, rows, state);
  }
  if (call.kv_type == KvType::INT8) {
    return walk_keys<S, std::int8_t>(call, block_table, kv_head, begin, end, last, rows, state);
  }
  walk_keys<S, float>(call, block_table, kv_head, begin, end, last, rows, state);
}

// One split of a tile into a state, which holds the tile's carried keys of that split; `more` if the same thread goes
// on to the next one.
template <class S>
void walk_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                bool more, const Rows& rows, const State& state) {
  const std::int64_t keys = tile.num_keys();
  const std::int64_t end = (split + 1) * kSplit < keys ? (split + 1) * kSplit : keys;
  std::int64_t begin = split * kSplit;
  if (begin < tile.num_carried) {
    begin = tile.num_carried;
  } else {
    reset(rows, state);
  }
  if (begin < end) walk<S>(call, tile.block_table, kv_head, begin, end, (more ? keys : end) - 1, rows, state);
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

float* output_row(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, const Rows& rows,
                  std::int64_t r) {
  return call.out + (tile.first_row + r / rows.group) * call.ldo +
         (kv_head * rows.group + r % rows.group) * rows.head_dim;
}

void finish(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, const Rows& rows,
            const State& state) {
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
  return {tile.num_positions * group, group, call.head_dim, tile.first_position, nullptr};
}

template <class S>
Rows gather_tile(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* scratch) {
  Rows rows = describe_rows(call, tile);
  gather_rows<S>(call, kv_head, scratch, rows,
                 [&](std::int64_t i) { return TokenPlace{tile.first_row + i, tile.first_position + i}; });
  return rows;
}

// What gathered rows leave of scratch.
template <class S>
float* memory_after(const Rows& rows) {
  return rows.q + (rows.count + S::kRows - 1) / S::kRows * S::kRows * rows.head_dim;
}

template <class S>
void attend(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states, float* scratch) {
  const Rows rows = gather_tile<S>(call, tile, kv_head, scratch);
  float* memory = memory_after<S>(rows);
  const std::int64_t floats = state_floats(rows.count, rows.head_dim);
  const State total(tile.num_carried > 0 ? states : memory, rows);
  for (std::int64_t split = 0; split < tile.num_splits(); ++split) {
    const bool carried = split * kSplit < tile.num_carried;
    const State state = split == 0 ? total : State(carried ? states + split * floats : memory + floats, rows);
    walk_split<S>(call, tile, kv_head, split, true, rows, state);
    if (split > 0) merge(rows, split, total, state);
  }
  finish(call, tile, kv_head, rows, total);
}

template <class S>
void attend_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                  float* state, float* scratch) {
  const Rows rows = gather_tile<S>(call, tile, kv_head, scratch);
  walk_split<S>(call, tile, kv_head, split, false, rows, State(state, rows));
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

template <class S>
void attend_shared(const AttentionCall& call, const SharedTile& tile, std::int64_t kv_head, float* scratch) {
  const std::int64_t group = call.num_heads / call.num_kv_heads, head_dim = call.head_dim;
  // All rows see all keys, as if they were at the position after the last.
  Rows rows{tile.num_tokens * group, group, head_dim, tile.end, nullptr};
  gather_rows<S>(call, kv_head, scratch, rows,
                 [&](std::int64_t i) { return TokenPlace{tile.tokens[i].row, tile.tokens[i].position}; });
  const State state(memory_after<S>(rows), rows);
  if (tile.begin % kSplit == 0) {
    reset(rows, state);
  } else {
    for (std::int64_t i = 0; i < tile.num_tokens; ++i) {
      copy(tile.tokens[i].output, group * head_dim, state.output + i * group * head_dim);
      copy(tile.tokens[i].max, group, state.max + i * group);
      copy(tile.tokens[i].sum, group, state.sum + i * group);
    }
  }
  walk<S>(call, tile.block_table, kv_head, tile.begin, tile.end, tile.end - 1, rows, state);
  for (std::int64_t i = 0; i < tile.num_tokens; ++i) {
    copy(state.output + i * group * head_dim, group * head_dim, tile.tokens[i].output);
    copy(state.max + i * group, group, tile.tokens[i].max);
    copy(state.sum + i * group, group, tile.tokens[i].sum);
  }
}

}  // namespace
}  // namespace octavo
