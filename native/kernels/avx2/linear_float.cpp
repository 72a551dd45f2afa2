// F32, F16 and BF16 weights times float rows. Each output element is one chain of FMAs over k in order, starting from
// zero, in every tile; tiles differ only in how many chains they run side by side.
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

struct BF16Weights {
  static constexpr std::int64_t kBytes = 32;
  OCTAVO_INLINE static __m256 load(const std::uint8_t* p, int half) {
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * half));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(upper), 16));
  }
};

// R rows by one panel: 2 R accumulators, of which 8 hide the latency of FMA and 12 fit beside their operands. It is
// tile t of the `tiles` that pass over its panel.
template <class Weights, int R>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t stride = w.k * Weights::kBytes;
  const std::uint8_t* p = w.data + panel * stride;
  Ahead ahead = ahead_of(p, stride, Weights::kBytes, t, tiles);
  const float* x[R];
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    x[i] = a.f + (row + i) * a.ldf;
    acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    prefetch_row(out, row + i, panel * kPanelColumns);
  });
  for (std::int64_t k = 0; k < w.k; ++k, p += Weights::kBytes) {
    const __m256 lo = Weights::load(p, 0), hi = Weights::load(p, 1);
    prefetch_one(ahead);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m256 xi = _mm256_broadcast_ss(x[i] + k);
      acc[i][0] = _mm256_fmadd_ps(xi, lo, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(xi, hi, acc[i][1]);
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE { store_row(out, row + i, panel * kPanelColumns, w.n, acc[i][0], acc[i][1]); });
}

template <class Weights>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k * 4, 384 << 10, 12, 192, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<6>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles)
                                 OCTAVO_INLINE { tile<Weights, height>(w, a, row + r, panel, t, tiles, out); });
    }
  });
}

}  // namespace

void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out) {
  if (w.format == WeightFormat::F32) return multiply<F32Weights>(w, a, m, panel_begin, panel_end, out);
  if (w.format == WeightFormat::F16) return multiply<F16Weights>(w, a, m, panel_begin, panel_end, out);
  multiply<BF16Weights>(w, a, m, panel_begin, panel_end, out);
}

}  // namespace octavo::avx2
