// F32, F16 and BF16 weights times float rows. Each output element is one chain of FMAs over k in order, starting from
// zero, in every tile; tiles differ only in how many chains they run side by side.
#include "linear_simd.hpp"

namespace octavo::avx512 {
namespace {

struct F32Weights {
  static constexpr std::int64_t kBytes = 64;  // of a panel, per k
  OCTAVO_INLINE static __m512 load(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
};

struct F16Weights {
  static constexpr std::int64_t kBytes = 32;
  OCTAVO_INLINE static __m512 load(const std::uint8_t* p) { return load_halves(p); }
};

struct BF16Weights {
  static constexpr std::int64_t kBytes = 32;
  OCTAVO_INLINE static __m512 load(const std::uint8_t* p) {
    const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
  }
};

// R rows by P panels: R P accumulators, of which 8 hide the latency of FMA and 24 fit beside their operands. It is tile
// t of the `tiles` that pass over this strip.
template <class Weights, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t stride = w.k * Weights::kBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const float* x = a.f + row * a.ldf;
  Ahead ahead = ahead_of(p, stride * P, Weights::kBytes * P, t, tiles);
  __m512 acc[R][P];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t k = 0; k < w.k; ++k, p += Weights::kBytes) {
    __m512 weights[P];
    unroll<P>([&](auto j) OCTAVO_INLINE { weights[j] = Weights::load(p + j * stride); });
    prefetch_one(ahead);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m512 xi = _mm512_set1_ps(x[i * a.ldf + k]);
      unroll<P>([&](auto j) OCTAVO_INLINE { acc[i][j] = _mm512_fmadd_ps(xi, weights[j], acc[i][j]); });
    });
  }
  store_tile(out, row, panel * kPanelColumns, w.n, acc);
}

template <class Weights>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k * 4, 384 << 10, 16, 192, [&](std::int64_t row, std::int64_t rows) {
    for_each_tile_of_strips<8>(
        rows, panel_begin, panel_end,
        [&](auto height, auto panels, std::int64_t r, std::int64_t panel, std::int64_t t, std::int64_t tiles)
            OCTAVO_INLINE { tile<Weights, height, panels>(w, a, row + r, panel, t, tiles, out); });
  });
}

}  // namespace

void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out) {
  if (w.format == WeightFormat::F32) return multiply<F32Weights>(w, a, m, panel_begin, panel_end, out);
  if (w.format == WeightFormat::F16) return multiply<F16Weights>(w, a, m, panel_begin, panel_end, out);
  multiply<BF16Weights>(w, a, m, panel_begin, panel_end, out);
}

}  // namespace octavo::avx512
