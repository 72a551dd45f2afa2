// F32 and F16 weights times float rows. Each output element is one chain of FMAs over k in order, starting from zero,
// in every tile; tiles differ only in how many chains they run side by side.
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

struct F32Weights {
  static constexpr std::int64_t kBytes = 64;  // of a panel, per k
  OCTAVO_INLINE static __m256 load(const std::uint8_t* p, int half) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + 8 * half);
  }
};

struct F16Weights {
  static constexpr std::int64_t kBytes = 32;
  OCTAVO_INLINE static __m256 load(const std::uint8_t* p, int half) { return load_halves(p + 16 * half); }
};

// R rows by P panels: 2 R P accumulators, of which 8 hide the latency of FMA and 12 fit beside their operands.
// It is tile t of the `tiles` that pass over its panel.
template <class Weights, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t stride = w.k * Weights::kBytes;
  const std::uint8_t* p[P];
  const float* x[R];
  __m256 acc[R][P][2];
  unroll<P>([&](auto j) OCTAVO_INLINE { p[j] = w.data + (panel + j) * stride; });
  Ahead ahead = ahead_of(p[0], stride, Weights::kBytes, t, tiles);
  unroll<R>([&](auto i) OCTAVO_INLINE {
    x[i] = a.f + (row + i) * a.ldf;
    unroll<P>([&](auto j) OCTAVO_INLINE {
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
      acc[i][j][0] = acc[i][j][1] = _mm256_setzero_ps();
    });
  });
  for (std::int64_t k = 0; k < w.k; ++k) {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      const __m256 lo = Weights::load(p[j], 0), hi = Weights::load(p[j], 1);
      prefetch(P == 1 ? ahead.at : p[j] + kNear / P);
      p[j] += Weights::kBytes;
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m256 xi = _mm256_broadcast_ss(x[i] + k);
        acc[i][j][0] = _mm256_fmadd_ps(xi, lo, acc[i][j][0]);
        acc[i][j][1] = _mm256_fmadd_ps(xi, hi, acc[i][j][1]);
      });
    });
    ahead.at += ahead.step;
  }
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      store_row(out, row + i, (panel + j) * kPanelColumns, w.n, acc[i][j][0], acc[i][j][1]);
    });
  });
}

template <class Weights>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  std::int64_t panel = panel_begin;
  if (m == 1) {
    for (; panel + 4 <= panel_end; panel += 4) tile<Weights, 1, 4>(w, a, 0, panel, 0, 1, out);
  } else if (m == 2) {
    for (; panel + 2 <= panel_end; panel += 2) tile<Weights, 2, 2>(w, a, 0, panel, 0, 1, out);
  }
  if (panel == panel_end) return;
  const std::int64_t block = rows_in_cache(w.k * 4, 384 << 10, 12, 192);
  for (std::int64_t row = 0; row < m; row += block) {
    const std::int64_t rows = m - row < block ? m - row : block;
    for (std::int64_t p = panel; p < panel_end; ++p) {
      for_each_tile<6>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles)
                                 OCTAVO_INLINE { tile<Weights, height, 1>(w, a, row + r, p, t, tiles, out); });
    }
  }
}

}  // namespace

void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out) {
  if (w.format == WeightFormat::F32) {
    multiply<F32Weights>(w, a, m, panel_begin, panel_end, out);
  } else {
    multiply<F16Weights>(w, a, m, panel_begin, panel_end, out);
  }
}

}  // namespace octavo::avx2
