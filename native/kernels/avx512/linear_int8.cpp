// Signed weights, INT8 as they are or TABLE4 out of a table, times quantised rows. Per group of 32: an exact integer
// sum S, then acc = fma(float(S), ws * xs, acc), groups in order.
//
// vpdpbusd wants an unsigned factor: w + 128. A group's sum then starts from -128 times the sum of its x.
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

// `header` is a block's start.
template <WeightFormat Format>
struct Weights {
  static constexpr GroupLayout kLayout = group_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average

  OCTAVO_INLINE static __m512 scale(const std::uint8_t* header, std::int64_t group) {
    const __m512 d = load_halves(header);
    if constexpr (!two_level(Format)) return d;
    const std::uint8_t* factors = header + kLayout.factors(group);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(factors));
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }

  // w + 128 of k = 4 V … 4 V + 3 of a group.
  template <int V>
  OCTAVO_INLINE static __m512i weights(const std::uint8_t* vectors) {
    const __m512i to_unsigned = _mm512_set1_epi8(-128);
    if constexpr (!has_table(Format)) return _mm512_xor_si512(_mm512_loadu_si512(vectors + 64 * V), to_unsigned);
    const __m512i pair = _mm512_loadu_si512(vectors + 64 * (V / 2));
    const __m512i q = _mm512_and_si512(V % 2 ? _mm512_srli_epi16(pair, 4) : pair, _mm512_set1_epi8(15));
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTable4));
    return _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_broadcast_i32x4(table), to_unsigned), q);
  }
};

constexpr std::int64_t kStretch = 16;  // groups whose offsets one vector holds

// -128 times the sums of x of up to 16 groups.
OCTAVO_INLINE inline __m512i offsets(const std::int16_t* part_sum, std::int64_t groups) {
  const auto mask = static_cast<__mmask16>((1u << groups) - 1);
  return _mm512_madd_epi16(_mm512_maskz_loadu_epi32(mask, part_sum), _mm512_set1_epi16(-128));
}

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <class W, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * W::kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const std::int8_t* q = a.q + row * w.k;
  const float* scale = a.scale + row * groups;
  const std::int16_t* part_sum = a.part_sum + row * groups * 2;
  Ahead ahead = ahead_of(p, stride * P, W::kGroupBytes * P, t, tiles);
  __m512 acc[R][P];
  alignas(64) std::int32_t start[R][kStretch];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t b = g % W::kLayout.groups;
    const std::uint8_t* vectors = p + W::kLayout.header_bytes + b * W::kLayout.group_bytes;
    if (g % kStretch == 0) {
      const std::int64_t stretch = groups - g < kStretch ? groups - g : kStretch;
      unroll<R>([&](auto i)
                    OCTAVO_INLINE { _mm512_store_si512(start[i], offsets(part_sum + 2 * (i * groups + g), stretch)); });
    }
    __m512i sum[R][P];
    unroll<R>([&](auto i) OCTAVO_INLINE {
      unroll<P>([&](auto j) OCTAVO_INLINE { sum[i][j] = _mm512_set1_epi32(start[i][g % kStretch]); });
    });
    prefetch(ahead);
    unroll<8>([&](auto v) OCTAVO_INLINE {
      __m512i weights[P];
      unroll<P>([&](auto j) OCTAVO_INLINE { weights[j] = W::template weights<v>(vectors + j * stride); });
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m512i x = broadcast_quad(q + i * w.k + g * kGroup + 4 * v);
        unroll<P>([&](auto j) OCTAVO_INLINE {
          sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], weights[j], x);
          keep(sum[i][j]);
        });
      });
    });
    unroll<P>([&](auto j) OCTAVO_INLINE {
      const __m512 ws = W::scale(p + j * stride, b);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m512 xs = _mm512_set1_ps(scale[i * groups + g]);
        acc[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), _mm512_mul_ps(ws, xs), acc[i][j]);
      });
    });
    if (b + 1 == W::kLayout.groups) p += W::kBlockBytes;
  }
  store_tile(out, row, panel * kPanelColumns, w.n, acc);
}

template <class W>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    for_each_tile_of_strips<6>(
        rows, panel_begin, panel_end,
        [&](auto height, auto panels, std::int64_t r, std::int64_t panel, std::int64_t t, std::int64_t tiles)
            OCTAVO_INLINE { tile<W, height, panels>(w, a, row + r, panel, t, tiles, out); });
  });
}

}  // namespace

void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  switch (w.format) {
    case WeightFormat::INT8_G32:
      return multiply<Weights<WeightFormat::INT8_G32>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::TABLE4_G32:
      return multiply<Weights<WeightFormat::TABLE4_G32>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::TABLE4_K:
      return multiply<Weights<WeightFormat::TABLE4_K>>(w, a, m, panel_begin, panel_end, out);
    default:
      return;
  }
}

}  // namespace octavo::avx512
