// How the AVX2 family reads formats of two to six bits: quants, scales and minimums of a panel's half, 8 columns. Local
// to each unit that includes it (see unroll.hpp).
#pragma once
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

// `header` is a block's start, `vectors` that of a group's vectors, `h` a half of the columns, `part` a half of the
// group where each has its scale, else 0.
template <WeightFormat Format>
struct Weights {
  static constexpr GroupLayout kLayout = group_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average
  static constexpr int kParts = kLayout.parts;
  static constexpr int kVectors = 8 / kParts;  // of four k, in a part
  static constexpr int kOffset = kLayout.offset;
  static constexpr bool kMinimum = kLayout.has_minimum;

  OCTAVO_INLINE static const std::uint8_t* vectors(const std::uint8_t* header, std::int64_t group) {
    return header + kLayout.header_bytes + group * kLayout.group_bytes;
  }

  // A block's factors as bytes, where they are packed in less.
  static constexpr bool kPackedFactors = two_level(Format) && kMinimum && kParts == 1;
  struct Factors {
    alignas(32) std::uint8_t s[kPackedFactors ? 8 : 1][16];
    alignas(32) std::uint8_t t[kPackedFactors ? 8 : 1][16];
  };

  OCTAVO_INLINE static void spread(const std::uint8_t* header, Factors& factors) {
    if constexpr (kPackedFactors) {
      unroll<4>([&](auto i) OCTAVO_INLINE {  // two groups at a time
        const __m256i bytes = load_bytes(header + kLayout.factors(2 * i));
        const __m256i low = field<i / 2 * 4, 4, 0>(load_bytes(header + kLayout.low_factors(2 * i)));
        const __m256i high = field<6, 2, 4>(bytes);
        _mm256_store_si256(reinterpret_cast<__m256i*>(factors.s[2 * i]), field<0, 6, 0>(bytes));
        _mm256_store_si256(reinterpret_cast<__m256i*>(factors.t[2 * i]), _mm256_or_si256(low, high));
      });
    }
  }

  OCTAVO_INLINE static __m256 scale(const std::uint8_t* header, const Factors& factors, std::int64_t group, int part,
                                    int h) {
    const __m256 d = load_halves(header + 16 * h);
    if constexpr (!two_level(Format)) return d;
    if constexpr (kPackedFactors) return times(d, _mm256_cvtepu8_epi32(load_eight(factors.s[group] + 8 * h)));
    const __m128i bytes = load_eight(header + kLayout.factors(group) + 16 * part + 8 * h);
    if constexpr (kOffset != 0) return times(d, _mm256_cvtepi8_epi32(bytes));
    return times(d, _mm256_and_si256(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(15)));
  }

  OCTAVO_INLINE static __m256 minimum(const std::uint8_t* header, const Factors& factors, std::int64_t group, int part,
                                      int h) {
    const __m256 e = load_halves(header + 32 + 16 * h);
    if constexpr (!two_level(Format)) return e;
    if constexpr (kPackedFactors) return times(e, _mm256_cvtepu8_epi32(load_eight(factors.t[group] + 8 * h)));
    const __m256i both = _mm256_cvtepu8_epi32(load_eight(header + kLayout.factors(group) + 16 * part + 8 * h));
    return times(e, _mm256_srli_epi32(both, 4));
  }

  // The quants of k = 4 V … 4 V + 3 of a group, as bytes.
  template <int V>
  OCTAVO_INLINE static __m256i quants(const std::uint8_t* vectors, int h) {
    const auto load = [vectors, h](int vector) OCTAVO_INLINE { return load_bytes(vectors + 64 * vector + 32 * h); };
    constexpr int kBits = kLayout.bits;
    if constexpr (kBits < 4) {
      const __m256i low = field<2 * (V % 4), 2, 0>(load(V / 4));
      if constexpr (kBits == 2) return low;
      return _mm256_or_si256(low, field<V, 1, 2>(load(2)));
    }
    const __m256i low = field<V % 2 * 4, 4, 0>(load(V / 2));
    if constexpr (kBits == 5) return _mm256_or_si256(low, field<V, 1, 4>(load(4)));
    if constexpr (kBits == 6) return _mm256_or_si256(low, field<2 * (V % 4), 2, 4>(load(4 + V / 4)));
    return low;
  }

 private:
  OCTAVO_INLINE static __m256 times(__m256 halves, __m256i factors) {
    return _mm256_mul_ps(halves, _mm256_cvtepi32_ps(factors));
  }

  OCTAVO_INLINE static __m128i load_eight(const std::uint8_t* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }

  // Bits From … From + Width - 1 of every byte, at bit To.
  template <int From, int Width, int To>
  OCTAVO_INLINE static __m256i field(__m256i bytes) {
    constexpr int kUp = To > From ? To - From : 0, kDown = From > To ? From - To : 0;
    if constexpr (kUp > 0) bytes = _mm256_slli_epi16(bytes, kUp);
    if constexpr (kDown > 0) bytes = _mm256_srli_epi16(bytes, kDown);
    return _mm256_and_si256(bytes, _mm256_set1_epi8(((1 << Width) - 1) << To));
  }
};

}  // namespace
}  // namespace octavo::avx2
