// What the AVX2 linear kernels share: loads, and the store of a finished row of a tile. Local to each unit that
// includes it (see unroll.hpp).
#pragma once
#include <immintrin.h>

#include "../linear_tiles.hpp"

namespace octavo::avx2 {
namespace {

OCTAVO_INLINE inline __m256 load_halves(const std::uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

OCTAVO_INLINE inline __m256i load_bytes(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// The 4 bytes at p in every lane.
OCTAVO_INLINE inline __m256i broadcast_quad(const std::int8_t* p) {
  int quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Stops GCC from regrouping integer sums across this point, which makes it spill the accumulators.
OCTAVO_INLINE inline void keep(__m256i& v) { asm volatile("" : "+x"(v)); }

// (acc + bias) + residual for one row of one panel, in that order; columns beyond the matrix are dropped.
OCTAVO_INLINE inline void store_row(const LinearOutput& o, std::int64_t row, std::int64_t column, std::int64_t n,
                                    __m256 lo, __m256 hi) {
  float* out = o.out + row * o.ldo + column;
  if (column + kPanelColumns <= n) {
    if (o.bias) {
      lo = _mm256_add_ps(lo, _mm256_loadu_ps(o.bias + column));
      hi = _mm256_add_ps(hi, _mm256_loadu_ps(o.bias + column + 8));
    }
    if (o.residual) {
      const float* residual = o.residual + row * o.ldr + column;
      lo = _mm256_add_ps(lo, _mm256_loadu_ps(residual));
      hi = _mm256_add_ps(hi, _mm256_loadu_ps(residual + 8));
    }
    _mm256_storeu_ps(out, lo);
    _mm256_storeu_ps(out + 8, hi);
    return;
  }
  alignas(32) float acc[kPanelColumns];
  _mm256_store_ps(acc, lo);
  _mm256_store_ps(acc + 8, hi);
  for (std::int64_t c = 0; column + c < n; ++c) {
    float value = acc[c];
    if (o.bias) value += o.bias[column + c];
    if (o.residual) value += o.residual[row * o.ldr + column + c];
    out[c] = value;
  }
}

}  // namespace

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out);
void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out);
void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out);
void linear_bits(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out);

}  // namespace octavo::avx2
