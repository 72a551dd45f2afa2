// The AVX2 family's quantiser of activations: one group, and eight at a time.
#include "../quantize_groups.hpp"
#include "linear_simd.hpp"

namespace octavo::avx2 {
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

// The largest magnitudes of lanes of a group, as bit patterns: there NaN > infinity > every finite number.
OCTAVO_INLINE inline __m256i magnitudes(const float* x) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i v[4];
  unroll<4>([&](auto i)
                OCTAVO_INLINE { v[i] = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude); });
  return _mm256_max_epi32(_mm256_max_epi32(v[0], v[1]), _mm256_max_epi32(v[2], v[3]));
}

// n: a group's 32 integers, in -128 … 127, as bytes in order.
OCTAVO_INLINE inline __m256i to_bytes(const __m256i (&n)[4]) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

OCTAVO_INLINE inline void divide(const float* x, __m256 inverse, __m256i (&n)[4]) {
  unroll<4>([&](auto i)
                OCTAVO_INLINE { n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse)); });
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
  __m256i n[4];
  divide(x, _mm256_set1_ps(127.0f / most), n);
  const __m128i sums = sums_of_lanes(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
  *sum = *scale * static_cast<float>(_mm_cvtsi128_si32(_mm_hadd_epi32(sums, sums)));
  _mm_storeu_si32(part_sum, _mm_packs_epi32(sums, sums));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), to_bytes(n));
}

// The maxima of the lanes of m[0 … 7], in order.
OCTAVO_INLINE inline __m256 maxima_of_lanes(const __m256i (&m)[kAtOnce]) {
  __m256i halves[4], pairs[2];
  unroll<4>([&](auto i) OCTAVO_INLINE {  // 128-bit lanes of m[i] and m[i + 4]
    halves[i] = _mm256_max_epi32(_mm256_permute2x128_si256(m[i], m[i + 4], 0x20),
                                 _mm256_permute2x128_si256(m[i], m[i + 4], 0x31));
  });
  unroll<2>([&](auto i) OCTAVO_INLINE {
    pairs[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(halves[2 * i], halves[2 * i + 1]),
                                _mm256_unpackhi_epi32(halves[2 * i], halves[2 * i + 1]));
  });
  return _mm256_castsi256_ps(
      _mm256_max_epi32(_mm256_unpacklo_epi64(pairs[0], pairs[1]), _mm256_unpackhi_epi64(pairs[0], pairs[1])));
}

// The sums of each 128-bit lane of d[0], of d[1], of d[2] and of d[3], in that lane.
OCTAVO_INLINE inline __m256i sums_of_fours(const __m256i* d) {
  const __m256i low = _mm256_add_epi32(_mm256_unpacklo_epi32(d[0], d[1]), _mm256_unpackhi_epi32(d[0], d[1]));
  const __m256i high = _mm256_add_epi32(_mm256_unpacklo_epi32(d[2], d[3]), _mm256_unpackhi_epi32(d[2], d[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
}

// Eight groups. False, and nothing written, if one of them has no scale.
OCTAVO_INLINE inline bool quantize_groups(const float* x, std::int8_t* q, float* scale, float* sum,
                                          std::int16_t* part_sum) {
  __m256i largest[kAtOnce];
  unroll<kAtOnce>([&](auto g) OCTAVO_INLINE { largest[g] = magnitudes(x + g * kGroup); });
  const __m256 most = maxima_of_lanes(largest);
  const __m256 sound = _mm256_and_ps(_mm256_cmp_ps(most, _mm256_set1_ps(kMost), _CMP_LT_OQ),
                                     _mm256_cmp_ps(most, _mm256_set1_ps(kLeast), _CMP_GE_OQ));
  if (_mm256_movemask_ps(sound) != 0xff) return false;

  const __m256 scales = _mm256_div_ps(most, _mm256_set1_ps(127.0f));
  alignas(32) float inverse[kAtOnce];
  _mm256_store_ps(inverse, _mm256_div_ps(_mm256_set1_ps(127.0f), most));
  __m256i fours[kAtOnce];  // sums of four
  unroll<kAtOnce>([&](auto g) OCTAVO_INLINE {
    __m256i n[4];
    divide(x + g * kGroup, _mm256_broadcast_ss(inverse + g), n);
    const __m256i bytes = to_bytes(n);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + g * kGroup), bytes);
    fours[g] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
  });
  // Of the groups' first halves in the lower lane, of their last ones in the upper.
  const __m256i low = sums_of_fours(fours), high = sums_of_fours(fours + 4);
  const __m256i parts = _mm256_packs_epi32(low, high);
  const __m128i first = _mm256_castsi256_si128(parts), last = _mm256_extracti128_si256(parts, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(part_sum), _mm_unpacklo_epi16(first, last));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(part_sum + 8), _mm_unpackhi_epi16(first, last));
  const __m256i sums = _mm256_cvtepi16_epi32(_mm_add_epi16(first, last));
  _mm256_storeu_ps(scale, scales);
  _mm256_storeu_ps(sum, _mm256_mul_ps(scales, _mm256_cvtepi32_ps(sums)));
  return true;
}

}  // namespace

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out) {
  const auto eight = [](auto... pointers) OCTAVO_INLINE { return quantize_groups(pointers...); };
  quantize_rows_by(eight, quantize_group, x, ldx, rows, k, out);
}

}  // namespace octavo::avx2
