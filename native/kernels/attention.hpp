// Paged attention as an ISA family provides it: one kernel for decode, chunked prefill and long contexts.
//
// A KV block holds, for each layer and KV head in turn, K transposed [head_dim][16] and V [16][head_dim], in fp32, fp16
// or int8. In int8 a token's K and its V have a scale each, max|x| / 127, and x is scale · q with q rounded half to
// even; the part ends with the scales of the sixteen K and of the sixteen V, in fp32. A scale is applied once per key:
// K's to the score, V's to its exponential. What is not finite makes the scale NaN.
//
// A query row walks its key positions in partitions of 64 at fixed absolute places and carries (max, sum, output)
// through them in order. Every 512 positions it starts from a fresh state (a *split*); the states of a row's splits are
// merged in order. Both places are absolute, so a row's bits depend neither on the tile that it is computed in nor on
// who computes its splits. Nor do they depend on who begins them: partitions that several sequences have in common are
// walked once for the rows of all (a *shared tile*), which leaves each row's states where its own tile goes on.
#pragma once
#include <cstdint>

namespace octavo {

inline constexpr std::int64_t kBlockSize = 16;     // tokens of a KV block
inline constexpr std::int64_t kPartition = 64;     // key positions between two updates of (max, sum, output)
inline constexpr std::int64_t kSplit = 512;        // key positions after which a fresh state starts
inline constexpr std::int64_t kMaxHeadDim = 1024;  // room that kernels keep on their stacks
inline constexpr std::int64_t kTileRows = 48;      // query rows that share one walk over the keys, if heads allow

enum class KvType : std::uint8_t { F32, F16, INT8 };

// A head whose largest magnitude is smaller is stored in int8 as zeros: its scale would be subnormal.
inline constexpr float kLeastMagnitude = 127 * 0x1p-126f;

// Bytes of one KV head's part of a block in one layer: a multiple of 64 for every head_dim that there are kernels for.
constexpr std::int64_t kv_head_bytes(KvType type, std::int64_t head_dim) {
  const std::int64_t elements = 2 * kBlockSize * head_dim;
  if (type == KvType::F32) return elements * 4;
  if (type == KvType::F16) return elements * 2;
  return elements + 2 * kBlockSize * 4;
}

enum class RopeStyle : std::uint8_t { INTERLEAVED, HALF_SPLIT };

// Cosines and sines of each position: row p is rotary_dim / 2 cosines, then as many sines.
struct RopeTable {
  const float* rows;
  std::int64_t rotary_dim;
  RopeStyle style;
  const float* row(std::int64_t position) const { return rows + position * rotary_dim; }
};

// Keys of one KV head that a thread will probably read when it is done with a tile, so that they can be on their way: a
// guess that changes no result.
struct KeysAhead {
  const std::int32_t* block_table = nullptr;  // null: nothing
  std::int64_t begin = 0, end = 0;            // begin is a partition's
  std::int64_t kv_head = 0;
};

// One layer's attention in one step: what all of its tiles share, and what comes after the one at hand.
struct AttentionCall {
  const float* q;  // (T, num_heads · head_dim), row stride ldq
  std::int64_t ldq;
  float* out;  // as q, row stride ldo
  std::int64_t ldo;
  const std::uint8_t* kv;    // this layer's part of block 0
  std::int64_t block_bytes;  // from one block to the next
  std::int64_t num_heads, num_kv_heads, head_dim;
  float scale;
  KvType kv_type;
  const RopeTable* rope;  // rotates q on the way in, or null
  KeysAhead ahead;
};

// Consecutive tokens of one sequence.
struct AttentionTile {
  const std::int32_t* block_table;
  std::int64_t first_row;       // of q and out
  std::int64_t first_position;  // of that row
  std::int64_t num_positions;
  std::int64_t num_carried = 0;  // first keys, whole partitions, that the tile's states hold already; its rows see more

  std::int64_t num_keys() const { return first_position + num_positions; }
  std::int64_t num_splits() const { return (num_keys() - 1) / kSplit + 1; }
};

// A token of a shared tile, and the state of its rows in the split that the tile is in, as its own tile keeps it.
struct SharedToken {
  std::int64_t row;  // of q
  std::int64_t position;
  float* output;  // [group][head_dim]
  float* max;     // [group]
  float* sum;     // [group]
};

// Tokens of any sequences, all of which see the keys begin … end-1 in the same blocks: whole partitions of one split.
struct SharedTile {
  const std::int32_t* block_table;
  std::int64_t begin, end;
  const SharedToken* tokens;
  std::int64_t num_tokens;  // at most tile_positions
};

// Positions in a tile: as many as keep the tile's rows within kTileRows, at least one.
constexpr std::int64_t tile_positions(std::int64_t group) { return group >= kTileRows ? 1 : kTileRows / group; }
constexpr std::int64_t tile_rows(std::int64_t group) { return tile_positions(group) * group; }

// Floats of the state (output, max, sum) of `rows` rows, and of the scratch memory of one thread.
constexpr std::int64_t state_floats(std::int64_t rows, std::int64_t head_dim) { return rows * (head_dim + 2); }
constexpr std::int64_t attention_scratch_floats(std::int64_t group, std::int64_t head_dim) {
  const std::int64_t rows = tile_rows(group);
  return (rows + 16) * head_dim + 2 * state_floats(rows, head_dim) + 2 * kPartition * head_dim;
}

struct AttentionKernels {
  // All splits of one tile and KV head, into out. `states`: those of the splits that begin below num_carried
  // (consecutive, state_floats apart; overwritten), or null. Scratch is 64-byte aligned.
  void (*attend)(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states,
                 float* scratch);
  // One split of it, into a state of the tile's rows (state_floats), or on from there if some of it is carried.
  void (*attend_split)(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                       float* state, float* scratch);
  // Merges the states of the tile's splits (consecutive, state_floats apart; overwritten) into out.
  void (*merge_splits)(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states);
  // Brings the states of a shared tile's tokens forward by its keys; those of a new split are made.
  void (*attend_shared)(const AttentionCall& call, const SharedTile& tile, std::int64_t kv_head, float* scratch);
  // Rounds one token's K (rotated on the way, if rope is not null) and V to the cache's type and stores them.
  // `slot` is the layer's part of the token's block, `offset` its place in the block.
  void (*write_kv)(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
                   const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset);
};

const AttentionKernels& avx2_attention_kernels();
const AttentionKernels& avx512_attention_kernels();  // where OCTAVO_HAVE_AVX512

}  // namespace octavo
