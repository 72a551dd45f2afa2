// The AVX-512 family's linear kernels: the table, the quantiser of activations, and the choice by weight format. The
// products are in linear_float.cpp, linear_int8.cpp and linear_bits.cpp; every result has the AVX2 family's bits, as
// the order of operations per output element is the same.
#include "linear_simd.hpp"

namespace octavo {
namespace avx512 {
namespace {

OCTAVO_INLINE inline __m256i halves_of(__m512i v, int half) {
  return half ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v);
}

OCTAVO_INLINE inline std::int32_t max_of_lanes(__m512i v) {
  const __m256i eight = _mm256_max_epi32(halves_of(v, 0), halves_of(v, 1));
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

OCTAVO_INLINE inline __m128i fold(__m512i v) {
  const __m256i eight = _mm256_add_epi32(halves_of(v, 0), halves_of(v, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
}

// The sums of the lanes of `first` and of `last`, twice.
OCTAVO_INLINE inline __m128i sums_of_lanes(__m512i first, __m512i last) {
  const __m128i fours = _mm_hadd_epi32(fold(first), fold(last));
  return _mm_hadd_epi32(fours, fours);
}

// One group of 32. The largest magnitude is found on bit patterns, where NaN > infinity > every finite number.
OCTAVO_INLINE inline void quantize_group(const float* x, std::int8_t* q, float* scale, float* sum,
                                         std::int16_t* part_sum) {
  constexpr float kLeast = 127 * 0x1p-126f;  // below it the scale would be subnormal
  constexpr float kMost = 0x1p120f;          // from here on the sum might overflow
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
  const std::int32_t bits = max_of_lanes(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(lo), magnitude),
                                                          _mm512_and_si512(_mm512_castps_si512(hi), magnitude)));
  float most;
  __builtin_memcpy(&most, &bits, sizeof most);

  const bool sound = most < kMost;  // no NaN is
  if (!sound || most < kLeast) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_setzero_si256());
    *scale = *sum = sound ? 0.0f : __builtin_nanf("");
    part_sum[0] = part_sum[1] = 0;
    return;
  }
  *scale = most / 127.0f;
  const __m512 s = _mm512_set1_ps(*scale);
  const __m512i n_lo = _mm512_cvtps_epi32(_mm512_div_ps(lo, s)), n_hi = _mm512_cvtps_epi32(_mm512_div_ps(hi, s));
  const __m128i sums = sums_of_lanes(n_lo, n_hi);
  *sum = *scale * static_cast<float>(_mm_cvtsi128_si32(_mm_hadd_epi32(sums, sums)));
  _mm_storeu_si32(part_sum, _mm_packs_epi32(sums, sums));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(n_lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtepi32_epi8(n_hi));
}

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out) {
  const std::int64_t groups = k / kGroup;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = r * groups + g;
      quantize_group(x + r * ldx + g * kGroup, out.q + at * kGroup, out.scale + at, out.sum + at,
                     out.part_sum + 2 * at);
    }
  }
}

void linear(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
            std::int64_t panel_end, const LinearOutput& out) {
  switch (w.format) {
    case WeightFormat::F32:
    case WeightFormat::F16:
      return linear_float(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT8_G32:
      return linear_int8(w, a, m, panel_begin, panel_end, out);
    default:
      return linear_bits(w, a, m, panel_begin, panel_end, out);
  }
}

}  // namespace
}  // namespace avx512

const LinearKernels& avx512_linear_kernels() {
  static constexpr LinearKernels kernels{avx512::quantize_rows, avx512::linear};
  return kernels;
}

}  // namespace octavo
