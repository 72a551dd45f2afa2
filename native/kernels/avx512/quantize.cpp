// The AVX-512 family's quantiser of activations: one group, and eight at a time.
#include "../quantize_groups.hpp"
#include "linear_simd.hpp"

namespace octavo::avx512 {
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

// The larger magnitudes of x[0 … 15] and x[16 … 31], as bit patterns: there NaN > infinity > every finite number.
OCTAVO_INLINE inline __m512i magnitudes(const float* x) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x)), magnitude),
                          _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + 16)), magnitude));
}

void quantize_group(const float* x, std::int8_t* q, float* scale, float* sum, std::int16_t* part_sum) {
  const std::int32_t bits = max_of_lanes(magnitudes(x));
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
  const __m512 inverse = _mm512_set1_ps(127.0f / most);
  const __m512i n_lo = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
  const __m512i n_hi = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), inverse));
  const __m128i sums = sums_of_lanes(n_lo, n_hi);
  *sum = *scale * static_cast<float>(_mm_cvtsi128_si32(_mm_hadd_epi32(sums, sums)));
  _mm_storeu_si32(part_sum, _mm_packs_epi32(sums, sums));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(n_lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtepi32_epi8(n_hi));
}

// Lane 4 j + i of the result is lane 4 i + j.
OCTAVO_INLINE inline __m512i transpose_lanes(__m512i v) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

// The maxima of the lanes of m[0 … 7], in order.
OCTAVO_INLINE inline __m256 maxima_of_lanes(const __m512i (&m)[kAtOnce]) {
  __m512i pairs[4], fours[2];
  unroll<4>([&](auto i) OCTAVO_INLINE {  // 128-bit lanes of m[2 i], m[2 i], m[2 i + 1], m[2 i + 1]
    pairs[i] = _mm512_max_epi32(_mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0x44),
                                _mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0xee));
  });
  unroll<2>([&](auto i) OCTAVO_INLINE {
    fours[i] = _mm512_max_epi32(_mm512_shuffle_i64x2(pairs[2 * i], pairs[2 * i + 1], 0x88),
                                _mm512_shuffle_i64x2(pairs[2 * i], pairs[2 * i + 1], 0xdd));
  });
  __m512i most = _mm512_max_epi32(_mm512_unpacklo_epi32(fours[0], fours[1]), _mm512_unpackhi_epi32(fours[0], fours[1]));
  most = _mm512_max_epi32(most, _mm512_shuffle_epi32(most, _MM_PERM_BADC));
  return _mm256_castsi256_ps(_mm512_castsi512_si256(transpose_lanes(most)));
}

// The sums of each 128-bit lane of d[0], of d[1], …
OCTAVO_INLINE inline __m512i sums_of_fours(const __m512i (&d)[4]) {
  const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1]));
  const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(d[2], d[3]), _mm512_unpackhi_epi32(d[2], d[3]));
  return transpose_lanes(_mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high)));
}

// Eight groups. False, and nothing written, if one of them has no scale.
OCTAVO_INLINE inline bool quantize_groups(const float* x, std::int8_t* q, float* scale, float* sum,
                                          std::int16_t* part_sum) {
  __m512i largest[kAtOnce];
  unroll<kAtOnce>([&](auto g) OCTAVO_INLINE { largest[g] = magnitudes(x + g * kGroup); });
  const __m256 most = maxima_of_lanes(largest);
  const __mmask8 sound = _mm256_cmp_ps_mask(most, _mm256_set1_ps(kMost), _CMP_LT_OQ);
  if (_mm256_mask_cmp_ps_mask(sound, most, _mm256_set1_ps(kLeast), _CMP_GE_OQ) != 0xff) return false;

  const __m256 scales = _mm256_div_ps(most, _mm256_set1_ps(127.0f));
  alignas(32) float inverse[kAtOnce];
  _mm256_store_ps(inverse, _mm256_div_ps(_mm256_set1_ps(127.0f), most));
  __m512i fours[4];  // sums of four
  unroll<4>([&](auto i) OCTAVO_INLINE {
    __m512i n[4];
    unroll<4>([&](auto j) OCTAVO_INLINE {
      const __m512 v = _mm512_loadu_ps(x + 2 * i * kGroup + 16 * j);
      n[j] = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse[2 * i + j / 2])));
    });
    const __m512i bytes =
        transpose_lanes(_mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3])));
    _mm512_storeu_si512(q + 2 * i * kGroup, bytes);
    fours[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
  });
  const __m256i parts = _mm512_cvtepi32_epi16(sums_of_fours(fours));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(part_sum), parts);
  const __m256i sums = _mm256_madd_epi16(parts, _mm256_set1_epi16(1));
  _mm256_storeu_ps(scale, scales);
  _mm256_storeu_ps(sum, _mm256_mul_ps(scales, _mm256_cvtepi32_ps(sums)));
  return true;
}

}  // namespace

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out) {
  const auto eight = [](auto... pointers) OCTAVO_INLINE { return quantize_groups(pointers...); };
  quantize_rows_by(eight, quantize_group, x, ldx, rows, k, out);
}

}  // namespace octavo::avx512
