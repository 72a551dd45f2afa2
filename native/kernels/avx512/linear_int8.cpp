// INT8_G32 weights times quantised rows. Per group of 32: an exact integer sum S, then acc = fma(float(S), ws * xs,
// acc), groups in order.
//
// vpdpbusd wants an unsigned factor: w + 128. A group's sum then starts from -128 times the sum of its x.
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

constexpr std::int64_t kGroupBytes = panel_bytes(WeightFormat::INT8_G32, kGroup);
constexpr std::int64_t kStretch = 16;  // groups whose offsets one vector holds

// -128 times the sums of x of up to 16 groups.
OCTAVO_INLINE inline __m512i offsets(const std::int16_t* part_sum, std::int64_t groups) {
  const auto mask = static_cast<__mmask16>((1u << groups) - 1);
  return _mm512_madd_epi16(_mm512_maskz_loadu_epi32(mask, part_sum), _mm512_set1_epi16(-128));
}

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const std::int8_t* q = a.q + row * w.k;
  const float* scale = a.scale + row * groups;
  const std::int16_t* part_sum = a.part_sum + row * groups * 2;
  const __m512i to_unsigned = _mm512_set1_epi8(-128);
  Ahead ahead = ahead_of(p, stride * P, kGroupBytes * P, t, tiles);
  __m512 acc[R][P];
  alignas(64) std::int32_t start[R][kStretch];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t g = 0; g < groups; ++g, p += kGroupBytes) {
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
      unroll<P>([&](auto j) OCTAVO_INLINE {
        const std::uint8_t* at = p + j * stride + 32 + 64 * v;
        weights[j] = _mm512_xor_si512(_mm512_loadu_si512(at), to_unsigned);
      });
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m512i x = broadcast_quad(q + i * w.k + g * kGroup + 4 * v);
        unroll<P>([&](auto j) OCTAVO_INLINE {
          sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], weights[j], x);
          keep(sum[i][j]);
        });
      });
    });
    unroll<P>([&](auto j) OCTAVO_INLINE {
      const __m512 ws = load_halves(p + j * stride);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m512 xs = _mm512_set1_ps(scale[i * groups + g]);
        acc[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), _mm512_mul_ps(ws, xs), acc[i][j]);
      });
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE { store_row(out, row + i, (panel + j) * kPanelColumns, w.n, acc[i][j]); });
  });
}

}  // namespace

void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    for_each_tile_of_strips<6>(
        rows, panel_begin, panel_end,
        [&](auto height, auto panels, std::int64_t r, std::int64_t panel, std::int64_t t, std::int64_t tiles)
            OCTAVO_INLINE { tile<height, panels>(w, a, row + r, panel, t, tiles, out); });
  });
}

}  // namespace octavo::avx512
