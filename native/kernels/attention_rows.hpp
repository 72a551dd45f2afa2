// The query rows of a tile: gathered from their tokens, rotated, scaled and turned, so that the walk over the keys
// reads one line for a step of head_dim. Local to each unit that includes it (see unroll.hpp).
#pragma once
#include "attention.hpp"
#include "avx2/rope.hpp"
#include "unroll.hpp"

namespace octavo {
namespace {

// A tile's rows seen from one KV head.
struct Rows {
  std::int64_t count, group, head_dim, first_position;
  float* q;  // in groups of kRows rows, each [head_dim][kRows]

  std::int64_t position(std::int64_t row) const { return first_position + row / group; }
};

struct TokenPlace {
  std::int64_t row, position;
};

// rows[i][d] · scale for four rows and head_dim d into to[d · kStride + i]; head_dim is a multiple of 4.
template <int kStride>
void scale_and_transpose(const float* const (&rows)[4], float scale, std::int64_t head_dim, float* to) {
  const __m128 factor = _mm_set1_ps(scale);
  for (std::int64_t d = 0; d < head_dim; d += 4, to += 4 * kStride) {
    __m128 x[4];
    unroll<4>([&](auto i) OCTAVO_INLINE { x[i] = _mm_mul_ps(_mm_loadu_ps(rows[i] + d), factor); });
    _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
    unroll<4>([&](auto i) OCTAVO_INLINE { _mm_storeu_ps(to + i * kStride, x[i]); });
  }
}

// Rotated and scaled queries of token(0), token(1), … in scratch, transposed so that a step of d reads one line.
template <class S, class Token>
void gather_rows(const AttentionCall& call, std::int64_t kv_head, float* scratch, Rows& rows, Token&& token) {
  rows.q = scratch;
  alignas(32) float rotated[4][kMaxHeadDim];
  const auto row_of = [&](std::int64_t r, float* rotation) {
    const TokenPlace place = token(r / rows.group);
    const float* q = call.q + place.row * call.ldq + (kv_head * rows.group + r % rows.group) * rows.head_dim;
    if (call.rope == nullptr) return q;
    rotate_head(q, call.rope->row(place.position), call.rope->rotary_dim, call.rope->style, rows.head_dim, rotation);
    return static_cast<const float*>(rotation);
  };
  for (std::int64_t r = 0; r < rows.count;) {
    const std::int64_t place = r % S::kRows;
    float* column = rows.q + (r - place) * rows.head_dim + place;
    if (place + 4 <= S::kRows && r + 4 <= rows.count) {
      const float* four[4];
      for (int i = 0; i < 4; ++i) four[i] = row_of(r + i, rotated[i]);
      scale_and_transpose<S::kRows>(four, call.scale, rows.head_dim, column);
      r += 4;
      continue;
    }
    const float* q = row_of(r, rotated[0]);
    for (std::int64_t d = 0; d < rows.head_dim; ++d) column[d * S::kRows] = q[d] * call.scale;
    ++r;
  }
}

}  // namespace
}  // namespace octavo
