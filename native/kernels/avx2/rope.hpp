// The rotation of one head, shared by the RoPE, KV-write and attention kernels so that all give the same bits.
#pragma once
#include "attention.hpp"
#include "math.hpp"

namespace octavo {
namespace {

// out = x with its first rotary_dim elements rotated by the table's row; out may be x.
inline void rotate_head(const float* x, const float* row, std::int64_t rotary_dim, RopeStyle style,
                        std::int64_t head_dim, float* out) {
  const std::int64_t half = rotary_dim / 2;
  const float* cosines = row;
  const float* sines = row + half;
  std::int64_t i = 0;
  if (style == RopeStyle::HALF_SPLIT) {
    for (; i + 8 <= half; i += 8) {
      const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
      const __m256 c = _mm256_loadu_ps(cosines + i), s = _mm256_loadu_ps(sines + i);
      _mm256_storeu_ps(out + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
      _mm256_storeu_ps(out + half + i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      out[i] = __builtin_fmaf(a, cosines[i], -(b * sines[i]));
      out[half + i] = __builtin_fmaf(b, cosines[i], a * sines[i]);
    }
  } else {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (; i + 4 <= half; i += 4) {
      const __m256 pairs = _mm256_loadu_ps(x + 2 * i);
      const __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cosines + i)), twice);
      const __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sines + i)), twice);
      const __m256 swapped = _mm256_permute_ps(pairs, 0xB1);
      _mm256_storeu_ps(out + 2 * i, _mm256_fmaddsub_ps(pairs, c, _mm256_mul_ps(swapped, s)));
    }
    for (; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      out[2 * i] = __builtin_fmaf(a, cosines[i], -(b * sines[i]));
      out[2 * i + 1] = __builtin_fmaf(b, cosines[i], a * sines[i]);
    }
  }
  if (out != x) {
    for (std::int64_t d = rotary_dim; d < head_dim; ++d) out[d] = x[d];
  }
}

}  // namespace
}  // namespace octavo
