// The AVX2 family's linear kernels: the table, the quantiser of activations, and the choice by weight format.
// The products are in linear_float.cpp, linear_int8.cpp and linear_bits.cpp.
#include "linear_simd.hpp"

namespace octavo {
namespace avx2 {
namespace {

OCTAVO_INLINE inline std::int32_t max_of_lanes(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

// The sums of the lanes of `first` and of `last`, twice.
OCTAVO_INLINE inline __m128i sums_of_lanes(__m256i first, __m256i last) {
  const __m128i fours = _mm_hadd_epi32(_mm_add_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1)),
                                       _mm_add_epi32(_mm256_castsi256_si128(last), _mm256_extracti128_si256(last, 1)));
  return _mm_hadd_epi32(fours, fours);
}

// One group of 32. The largest magnitude is found on bit patterns, where NaN > infinity > every finite number.
OCTAVO_INLINE inline void quantize_group(const float* x, std::int8_t* q, float* scale, float* sum,
                                         std::int16_t* part_sum) {
  constexpr float kLeast = 127 * 0x1p-126f;  // below it the scale would be subnormal
  constexpr float kMost = 0x1p120f;          // from here on the sum might overflow
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 v[4];
  __m256i largest = _mm256_setzero_si256();
  unroll<4>([&](auto i) OCTAVO_INLINE {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
  });
  const std::int32_t bits = max_of_lanes(largest);
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
  const __m256 s = _mm256_set1_ps(*scale);
  __m256i n[4];
  unroll<4>([&](auto i) OCTAVO_INLINE { n[i] = _mm256_cvtps_epi32(_mm256_div_ps(v[i], s)); });
  const __m128i sums = sums_of_lanes(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
  *sum = *scale * static_cast<float>(_mm_cvtsi128_si32(_mm_hadd_epi32(sums, sums)));
  _mm_storeu_si32(part_sum, _mm_packs_epi32(sums, sums));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(bytes, order));
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
}  // namespace avx2

const LinearKernels& avx2_linear_kernels() {
  static constexpr LinearKernels kernels{avx2::quantize_rows, avx2::linear};
  return kernels;
}

}  // namespace octavo
