// Weights of four or five bits with minimums (INT4 and INT5 formats) times quantised rows. Per group of 32: an exact
// integer sum S of products u * s8, then acc = fma(float(S), ws * xs, acc) and acc = fma(minimum, x_sum, acc), groups
// in order. Formats differ in where the fifth bit and the group's scale and minimum come from, and in nothing else.
// Quants are the unsigned factor of vpdpbusd as they are; parting them costs other ports than the products do, so every
// tile reads them in place.
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

// How to read a block of a format: `header` is its start, `vectors` that of a group's vectors.
template <WeightFormat Format>
struct Weights {
  static constexpr NibbleLayout kLayout = nibble_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average

  OCTAVO_INLINE static const std::uint8_t* vectors(const std::uint8_t* header, std::int64_t group) {
    return header + kLayout.header_bytes + group * kLayout.group_bytes;
  }

  OCTAVO_INLINE static __m512 bytes_as_floats(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  OCTAVO_INLINE static __m512 scale(const std::uint8_t* header, std::int64_t group) {
    const __m512 d = load_halves(header);
    if constexpr (!two_level(Format)) return d;
    return _mm512_mul_ps(d, bytes_as_floats(header + 64 + 32 * group));
  }

  OCTAVO_INLINE static __m512 minimum(const std::uint8_t* header, std::int64_t group) {
    const __m512 e = load_halves(header + 32);
    if constexpr (!two_level(Format)) return e;
    return _mm512_mul_ps(e, bytes_as_floats(header + 64 + 32 * group + 16));
  }

  // The quants of k = 8 V … 8 V + 3 and of the next four, as bytes.
  template <int V>
  OCTAVO_INLINE static void quants(const std::uint8_t* vectors, __m512i& first, __m512i& second) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i pair = _mm512_loadu_si512(vectors + 64 * V);
    first = _mm512_and_si512(pair, nibble);
    second = _mm512_and_si512(_mm512_srli_epi16(pair, 4), nibble);
    if constexpr (five_bits(Format)) {
      const __m512i bits = _mm512_loadu_si512(vectors + 256);
      first = with_fifth_bit<2 * V>(first, bits);
      second = with_fifth_bit<2 * V + 1>(second, bits);
    }
  }

 private:
  // Bit B of every byte of `bits`, as 16, besides what q has.
  template <int B>
  OCTAVO_INLINE static __m512i with_fifth_bit(__m512i q, __m512i bits) {
    const __m512i there =
        B < 4 ? _mm512_slli_epi16(bits, B < 4 ? 4 - B : 0) : _mm512_srli_epi16(bits, B < 4 ? 0 : B - 4);
    return _mm512_ternarylogic_epi32(q, there, _mm512_set1_epi8(16), 0xf8);  // q | (there & 16)
  }
};

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <class W, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * W::kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const std::int8_t* q = a.q + row * w.k;
  const float* scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  Ahead ahead = ahead_of(p, stride * P, W::kGroupBytes * P, t, tiles);
  __m512 acc[R][P];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      __m512i sum[R][P];
      unroll<R>([&](auto i)
                    OCTAVO_INLINE { unroll<P>([&](auto j) OCTAVO_INLINE { sum[i][j] = _mm512_setzero_si512(); }); });
      prefetch(ahead);
      unroll<4>([&](auto v) OCTAVO_INLINE {
        __m512i weights[P][2];
        unroll<P>([&](auto j) OCTAVO_INLINE {
          W::template quants<v>(W::vectors(p + j * stride, b), weights[j][0], weights[j][1]);
        });
        unroll<2>([&](auto h) OCTAVO_INLINE {
          unroll<R>([&](auto i) OCTAVO_INLINE {
            const __m512i x = broadcast_quad(q + i * w.k + g * kGroup + 8 * v + 4 * h);
            unroll<P>([&](auto j) OCTAVO_INLINE {
              sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], weights[j][h], x);
              keep(sum[i][j]);
            });
          });
        });
      });
      unroll<P>([&](auto j) OCTAVO_INLINE {
        const __m512 ws = W::scale(p + j * stride, b), minimum = W::minimum(p + j * stride, b);
        unroll<R>([&](auto i) OCTAVO_INLINE {
          const __m512 xs = _mm512_set1_ps(scale[i * groups + g]), xsum = _mm512_set1_ps(x_sum[i * groups + g]);
          const __m512 part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), _mm512_mul_ps(ws, xs), acc[i][j]);
          acc[i][j] = _mm512_fmadd_ps(minimum, xsum, part);
        });
      });
    }
  }
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE { store_row(out, row + i, (panel + j) * kPanelColumns, w.n, acc[i][j]); });
  });
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

void linear_nibbles(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                    std::int64_t panel_end, const LinearOutput& out) {
  switch (w.format) {
    case WeightFormat::INT4_G32:
      return multiply<Weights<WeightFormat::INT4_G32>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT5_G32:
      return multiply<Weights<WeightFormat::INT5_G32>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT4_K:
      return multiply<Weights<WeightFormat::INT4_K>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT5_K:
      return multiply<Weights<WeightFormat::INT5_K>>(w, a, m, panel_begin, panel_end, out);
    default:
      return;
  }
}

}  // namespace octavo::avx512
