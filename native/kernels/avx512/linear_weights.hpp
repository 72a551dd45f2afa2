// How the AVX-512 family reads integer formats: quants, scales and minimums of a panel. Local to each unit that
// includes it (see unroll.hpp).
#pragma once
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

// A weight is scale * (q - kOffset) + minimum with unsigned bytes q, as vpdpbusd wants them: signed ones and levels of
// a table have 128 added. `header` is a block's start, `vectors` that of a group's vectors, `part` a half of the group
// where each has its scale, else 0.
template <WeightFormat Format>
struct Weights {
  static constexpr GroupLayout kLayout = group_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average
  static constexpr std::int64_t kPanelHeader = panel_header_bytes(Format);
  static constexpr int kParts = kLayout.parts;
  static constexpr int kVectors = 8 / kParts;  // of four k, in a part
  static constexpr int kOffset = Format == WeightFormat::INT8_G32 || has_table(Format) ? 128 : kLayout.offset;
  static constexpr bool kMinimum = kLayout.has_minimum;
  static constexpr bool kChannelScales = channel_scales(Format);

  OCTAVO_INLINE static const std::uint8_t* vectors(const std::uint8_t* header, std::int64_t group) {
    return header + kLayout.header_bytes + group * kLayout.group_bytes;
  }

  // A block's factors as bytes, where they are packed in less.
  static constexpr bool kPackedFactors = two_level(Format) && kMinimum && kParts == 1;
  struct Factors {
    alignas(64) std::uint8_t s[kPackedFactors ? 8 : 1][16];
    alignas(64) std::uint8_t t[kPackedFactors ? 8 : 1][16];
  };

  OCTAVO_INLINE static void spread(const std::uint8_t* header, Factors& factors) {
    if constexpr (kPackedFactors) {
      const __m512i none = _mm512_setzero_si512(), low = _mm512_loadu_si512(header + kLayout.low_factors(0));
      unroll<2>([&](auto i) OCTAVO_INLINE {
        const __m512i bytes = _mm512_loadu_si512(header + kLayout.factors(4 * i));
        const __m512i low_bits = with_field<4 * i, 4, 0>(none, low);
        _mm512_store_si512(factors.s[4 * i], with_field<0, 6, 0>(none, bytes));
        _mm512_store_si512(factors.t[4 * i], with_field<6, 2, 4>(low_bits, bytes));
      });
    }
  }

  OCTAVO_INLINE static __m512 scale(const std::uint8_t* header, const Factors& factors, std::int64_t group, int part) {
    if constexpr (kChannelScales) return _mm512_set1_ps(1.0f);
    const __m512 d = load_halves(header);
    if constexpr (!two_level(Format)) return d;
    if constexpr (kPackedFactors) return times(d, _mm512_cvtepu8_epi32(load_sixteen(factors.s[group])));
    const __m128i bytes = load_sixteen(header + kLayout.factors(group) + 16 * part);
    if constexpr (!kMinimum) return times(d, _mm512_cvtepi8_epi32(bytes));
    return times(d, _mm512_and_si512(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(15)));
  }

  OCTAVO_INLINE static __m512 minimum(const std::uint8_t* header, const Factors& factors, std::int64_t group,
                                      int part) {
    const __m512 e = load_halves(header + 32);
    if constexpr (!two_level(Format)) return e;
    if constexpr (kPackedFactors) return times(e, _mm512_cvtepu8_epi32(load_sixteen(factors.t[group])));
    const __m512i both = _mm512_cvtepu8_epi32(load_sixteen(header + kLayout.factors(group) + 16 * part));
    return times(e, _mm512_srli_epi32(both, 4));
  }

  // The quants of k = 4 V … 4 V + 3 of a group, as bytes.
  template <int V>
  OCTAVO_INLINE static __m512i quants(const std::uint8_t* vectors) {
    const auto load = [vectors](int vector) OCTAVO_INLINE { return _mm512_loadu_si512(vectors + 64 * vector); };
    constexpr int kBits = kLayout.bits;
    const __m512i none = _mm512_setzero_si512(), to_unsigned = _mm512_set1_epi8(-128);
    if constexpr (kBits == 8) return kLayout.offset == 128 ? load(V) : _mm512_xor_si512(load(V), to_unsigned);
    if constexpr (kBits < 4) {
      const __m512i low = with_field<2 * (V % 4), 2, 0>(none, load(V / 4));
      if constexpr (kBits == 2) return low;
      return with_field<V, 1, 2>(low, load(2));
    }
    const __m512i low = with_field<V % 2 * 4, 4, 0>(none, load(V / 2));
    if constexpr (has_table(Format)) {
      return _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_broadcast_i32x4(load_sixteen(kTable4)), to_unsigned), low);
    }
    if constexpr (kBits == 5) return with_field<V, 1, 4>(low, load(4));
    if constexpr (kBits == 6) return with_field<2 * (V % 4), 2, 4>(low, load(4 + V / 4));
    return low;
  }

 private:
  OCTAVO_INLINE static __m512 times(__m512 halves, __m512i factors) {
    return _mm512_mul_ps(halves, _mm512_cvtepi32_ps(factors));
  }

  OCTAVO_INLINE static __m128i load_sixteen(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

  // Bits From … From + Width - 1 of every byte, at bit To, besides what q has.
  template <int From, int Width, int To>
  OCTAVO_INLINE static __m512i with_field(__m512i q, __m512i bytes) {
    constexpr int kUp = To > From ? To - From : 0, kDown = From > To ? From - To : 0;
    if constexpr (kUp > 0) bytes = _mm512_slli_epi16(bytes, kUp);
    if constexpr (kDown > 0) bytes = _mm512_srli_epi16(bytes, kDown);
    const __m512i mask = _mm512_set1_epi8(((1 << Width) - 1) << To);
    if constexpr (To == 0) return _mm512_and_si512(bytes, mask);
    return _mm512_ternarylogic_epi32(q, bytes, mask, 0xf8);  // q | (bytes & mask)
  }
};

}  // namespace
}  // namespace octavo::avx512
