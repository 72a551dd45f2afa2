// INT8_G32 weights times quantised rows. Per group of 32: an exact integer sum S, then acc = fma(float(S), ws * xs,
// acc), groups in order.
//
// maddubs wants an unsigned factor: |w| times x with w's sign. |w| <= 128 and |x| <= 127, so its sums of two products
// stay within 32512 and fit 16 bits.
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

constexpr std::int64_t kGroupBytes = panel_bytes(WeightFormat::INT8_G32, kGroup);

// R rows by one panel: tile t of the `tiles` that pass over it.
template <int R>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup;
  const std::uint8_t* p = w.data + panel * groups * kGroupBytes;
  Ahead ahead = ahead_of(p, groups * kGroupBytes, kGroupBytes, t, tiles);
  const std::int8_t* q[R];
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    q[i] = a.q + (row + i) * w.k;
    acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    prefetch_row(out, row + i, panel * kPanelColumns);
  });
  for (std::int64_t g = 0; g < groups; ++g, p += kGroupBytes) {
    __m256i sum[R][2];
    prefetch(ahead);
    unroll<8>([&](auto j) OCTAVO_INLINE {
      const __m256i lo = load_bytes(p + 32 + 64 * j), hi = load_bytes(p + 64 + 64 * j);
      const __m256i abs_lo = _mm256_abs_epi8(lo), abs_hi = _mm256_abs_epi8(hi);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m256i x = broadcast_quad(q[i] + 4 * j);
        const __m256i s0 = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_lo, _mm256_sign_epi8(x, lo)), ones);
        const __m256i s1 = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_hi, _mm256_sign_epi8(x, hi)), ones);
        sum[i][0] = j == 0 ? s0 : _mm256_add_epi32(sum[i][0], s0);
        sum[i][1] = j == 0 ? s1 : _mm256_add_epi32(sum[i][1], s1);
        keep(sum[i][0]);
        keep(sum[i][1]);
      });
    });
    const __m256 scale_lo = load_halves(p), scale_hi = load_halves(p + 16);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m256 xs = _mm256_broadcast_ss(a.scale + (row + i) * groups + g);
      acc[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][0]), _mm256_mul_ps(scale_lo, xs), acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][1]), _mm256_mul_ps(scale_hi, xs), acc[i][1]);
      q[i] += kGroup;
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE { store_row(out, row + i, panel * kPanelColumns, w.n, acc[i][0], acc[i][1]); });
}

}  // namespace

void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<4>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles)
                                 OCTAVO_INLINE { tile<height>(w, a, row + r, panel, t, tiles, out); });
    }
  });
}

}  // namespace octavo::avx2
