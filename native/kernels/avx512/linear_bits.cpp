// Weights of two to six bits times quantised rows. Per group of 32, or each half of it where halves have scales of
// their own, an exact integer sum S of products (q - offset) * x, then acc = fma(float(S), ws * xs, acc) and, where
// there are minimums, acc = fma(minimum, x_sum, acc), in order. Formats differ in where quants, scales and minimums
// come from, and in nothing else. Quants are the unsigned factor of vpdpbusd as they are, an offset is made good by the
// sum of the part's x; parting quants costs other ports than the products do, so every tile reads them in place.
#include "linear_bits.hpp"

namespace octavo::avx512 {
namespace {

// What the parts of a block of 8 groups take from a row's sums: the start of an integer sum, or x_sum.
union PartSums {
  alignas(64) std::int32_t start[8][2];
  alignas(64) float x_sum[8][2];
};

// Of the groups from `part_sum` and `scale` on. With one part there is nothing to prepare.
template <class W>
OCTAVO_INLINE inline void prepare(const std::int16_t* part_sum, const float* scale, PartSums& sums) {
  if constexpr (W::kParts == 1) return;
  const __m512i sum = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part_sum)));
  if constexpr (W::kOffset != 0) {
    _mm512_store_si512(sums.start, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-W::kOffset)));
  } else {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512 xs = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(scale)));
    _mm512_store_ps(sums.x_sum, _mm512_mul_ps(xs, _mm512_cvtepi32_ps(sum)));
  }
}

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <class W, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * W::kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  const std::int8_t* q = a.q + row * w.k;
  const float* scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  const std::int16_t* part_sum = a.part_sum + row * groups * 2;
  Ahead ahead = ahead_of(p, stride * P, W::kGroupBytes * P, t, tiles);
  PartSums sums[R];
  __m512 acc[R][P];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const std::int64_t at = i * groups + first;
      prepare<W>(part_sum + 2 * at, scale + at, sums[i]);
    });
    typename W::Factors factors[P];
    unroll<P>([&](auto j) OCTAVO_INLINE { W::spread(p + j * stride, factors[j]); });
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      prefetch(ahead);
      unroll<W::kParts>([&](auto part) OCTAVO_INLINE {
        __m512i sum[R][P];
        unroll<R>([&](auto i) OCTAVO_INLINE {
          unroll<P>([&](auto j) OCTAVO_INLINE {
            sum[i][j] = W::kOffset == 0 ? _mm512_setzero_si512() : _mm512_set1_epi32(sums[i].start[b][part]);
          });
        });
        unroll<W::kVectors / 2>([&](auto v) OCTAVO_INLINE {  // two vectors at a time share their loads
          constexpr int kVector = part * W::kVectors + 2 * v;
          __m512i weights[P][2];
          unroll<P>([&](auto j) OCTAVO_INLINE {
            const std::uint8_t* vectors = W::vectors(p + j * stride, b);
            weights[j][0] = W::template quants<kVector>(vectors);
            weights[j][1] = W::template quants<kVector + 1>(vectors);
          });
          unroll<2>([&](auto h) OCTAVO_INLINE {
            unroll<R>([&](auto i) OCTAVO_INLINE {
              const __m512i x = broadcast_quad(q + i * w.k + g * kGroup + 4 * (kVector + h));
              unroll<P>([&](auto j) OCTAVO_INLINE {
                sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], weights[j][h], x);
                keep(sum[i][j]);
              });
            });
          });
        });
        unroll<P>([&](auto j) OCTAVO_INLINE {
          const __m512 ws = W::scale(p + j * stride, factors[j], b, part);
          __m512 minimum{};
          if constexpr (W::kMinimum) minimum = W::minimum(p + j * stride, factors[j], b, part);
          unroll<R>([&](auto i) OCTAVO_INLINE {
            const __m512 xs = _mm512_set1_ps(scale[i * groups + g]);
            acc[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), _mm512_mul_ps(ws, xs), acc[i][j]);
            if constexpr (W::kMinimum) {
              const float* of_row = W::kParts == 1 ? x_sum + i * groups + g : &sums[i].x_sum[b][part];
              acc[i][j] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(*of_row), acc[i][j]);
            }
          });
        });
      });
    }
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

void linear_bits(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
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
    case WeightFormat::INT6_K:
      return multiply<Weights<WeightFormat::INT6_K>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT3_K:
      return multiply<Weights<WeightFormat::INT3_K>>(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT2_K:
      return multiply<Weights<WeightFormat::INT2_K>>(w, a, m, panel_begin, panel_end, out);
    default:
      return;
  }
}

}  // namespace octavo::avx512
