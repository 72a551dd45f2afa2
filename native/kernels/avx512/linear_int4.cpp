// INT4_G32 weights times quantised rows. Per group of 32: an exact integer sum S of u4 * s8 products, then
// acc = fma(float(S), ws * xs, acc) and acc = fma(minimum, x_sum, acc), groups in order. Nibbles are the unsigned
// factor of vpdpbusd as they are; parting them costs other ports than the products do, so every tile reads them in
// place.
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

constexpr std::int64_t kGroupBytes = panel_bytes(WeightFormat::INT4_G32, kGroup);

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const std::int8_t* q = a.q + row * w.k;
  const float* scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  const __m512i nibble = _mm512_set1_epi8(15);
  Ahead ahead = ahead_of(p, stride * P, kGroupBytes * P, t, tiles);
  __m512 acc[R][P];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t g = 0; g < groups; ++g, p += kGroupBytes) {
    __m512i sum[R][P];
    unroll<R>([&](auto i)
                  OCTAVO_INLINE { unroll<P>([&](auto j) OCTAVO_INLINE { sum[i][j] = _mm512_setzero_si512(); }); });
    prefetch(ahead);
    unroll<4>([&](auto v) OCTAVO_INLINE {
      __m512i weights[P][2];
      unroll<P>([&](auto j) OCTAVO_INLINE {
        const std::uint8_t* at = p + j * stride + 64 + 64 * v;
        const __m512i pair = _mm512_loadu_si512(at);
        weights[j][0] = _mm512_and_si512(pair, nibble);
        weights[j][1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), nibble);
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
      const __m512 ws = load_halves(p + j * stride), minimum = load_halves(p + j * stride + 32);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m512 xs = _mm512_set1_ps(scale[i * groups + g]), xsum = _mm512_set1_ps(x_sum[i * groups + g]);
        const __m512 part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), _mm512_mul_ps(ws, xs), acc[i][j]);
        acc[i][j] = _mm512_fmadd_ps(minimum, xsum, part);
      });
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE { store_row(out, row + i, (panel + j) * kPanelColumns, w.n, acc[i][j]); });
  });
}

}  // namespace

void linear_int4(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    for_each_tile_of_strips<6>(
        rows, panel_begin, panel_end,
        [&](auto height, auto panels, std::int64_t r, std::int64_t panel, std::int64_t t, std::int64_t tiles)
            OCTAVO_INLINE { tile<height, panels>(w, a, row + r, panel, t, tiles, out); });
  });
}

}  // namespace octavo::avx512
