// Integer weights times quantised rows. Per group of 32, or each half of it where halves have scales of their own, an
// exact integer sum S of products (q - offset) * x, then acc = fma(float(S), ws * xs, acc) and, where there are
// minimums, acc = fma(minimum, x_sum, acc), in order. Formats differ in where quants, scales and minimums come from,
// and in nothing else. Quants are the unsigned factor of vpdpbusd; an offset is made good by where S starts, at -offset
// times the sum of x. Scales of whole columns are multiplied into finished sums instead. Parting quants costs other
// ports than the products do, so every tile reads them in place.
#include "linear_weights.hpp"

namespace octavo::avx512 {
namespace {

// What the parts of up to 16 groups take from a row's sums: the start of an integer sum, or x_sum.
template <class W>
struct PartSums {
  static constexpr std::int64_t kGroups = W::kParts == 1 ? 16 : 8;
  union {
    alignas(64) std::int32_t start[kGroups][W::kParts];
    alignas(64) float x_sum[kGroups][W::kParts];
  };

  // Of `groups` groups, of which these are the sums and scales. With minimums of whole groups there is nothing to do.
  OCTAVO_INLINE void prepare(const std::int16_t* part_sum, const float* scale, std::int64_t groups) {
    if constexpr (W::kMinimum && W::kParts == 1) return;
    if constexpr (W::kParts == 1) {
      const auto mask = static_cast<__mmask16>(groups < kGroups ? (1u << groups) - 1 : 0xffff);
      const __m512i pairs = _mm512_maskz_loadu_epi32(mask, part_sum);
      _mm512_store_si512(start, _mm512_madd_epi16(pairs, _mm512_set1_epi16(-W::kOffset)));
      return;
    }
    const __m512i sum = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part_sum)));
    if constexpr (!W::kMinimum) {
      _mm512_store_si512(start, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-W::kOffset)));
    } else {
      const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
      const __m512 xs = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(scale)));
      _mm512_store_ps(x_sum, _mm512_mul_ps(xs, _mm512_cvtepi32_ps(sum)));
    }
  }
};

// The rows of a tile, from one of them on.
struct TileRows {
  const std::int8_t* q;
  const float* scale;
  const float* x_sum;
  const std::int16_t* part_sum;
  std::int64_t k, groups;

  OCTAVO_INLINE TileRows(const Activations& a, std::int64_t inputs, std::int64_t row)
      : q(a.q + row * inputs),
        scale(a.scale + row * (inputs / kGroup)),
        x_sum(a.sum + row * (inputs / kGroup)),
        part_sum(a.part_sum + row * (inputs / kGroup) * 2),
        k(inputs),
        groups(inputs / kGroup) {}

  template <class W, int R>
  OCTAVO_INLINE void prepare(std::int64_t group, PartSums<W> (&sums)[R]) const {
    const std::int64_t left = groups - group;
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const std::int64_t at = i * groups + group;
      sums[i].prepare(part_sum + 2 * at, scale + at, left);
    });
  }
};

// Group `b` of the block of each of P panels whose headers begin at `p`, `stride` bytes apart, for R rows: their group
// number `group`.
template <class W, int R, int P>
OCTAVO_INLINE inline void multiply_group(const std::uint8_t* p, std::int64_t stride,
                                         const typename W::Factors (&factors)[P], std::int64_t b, const TileRows& rows,
                                         std::int64_t group, const PartSums<W> (&sums)[R], __m512 (&acc)[R][P]) {
  const std::int64_t at = group % PartSums<W>::kGroups;
  unroll<W::kParts>([&](auto part) OCTAVO_INLINE {
    __m512i sum[R][P];
    unroll<R>([&](auto i) OCTAVO_INLINE {
      unroll<P>([&](auto j) OCTAVO_INLINE {
        sum[i][j] = W::kMinimum ? _mm512_setzero_si512() : _mm512_set1_epi32(sums[i].start[at][part]);
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
          const __m512i x = broadcast_quad(rows.q + i * rows.k + group * kGroup + 4 * (kVector + h));
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
        const __m512 xs = _mm512_set1_ps(rows.scale[i * rows.groups + group]);
        const __m512 factor = W::kChannelScales ? xs : _mm512_mul_ps(ws, xs);
        acc[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), factor, acc[i][j]);
        if constexpr (W::kMinimum) {
          const float* of_row = W::kParts == 1 ? rows.x_sum + i * rows.groups + group : &sums[i].x_sum[at][part];
          acc[i][j] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(*of_row), acc[i][j]);
        }
      });
    });
  });
}

// R rows by P panels: tile t of the `tiles` that pass over this strip.
template <class W, int R, int P>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const TileRows rows(a, w.k, row);
  const std::int64_t stride = W::kPanelHeader + rows.groups * W::kGroupBytes;
  const std::uint8_t* const strip = w.data + panel * stride;
  const std::uint8_t* p = strip + W::kPanelHeader;
  Ahead ahead = ahead_of(strip, stride * P, W::kGroupBytes * P, t, tiles);
  PartSums<W> sums[R];
  __m512 acc[R][P];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      acc[i][j] = _mm512_setzero_ps();
      prefetch_row(out, row + i, (panel + j) * kPanelColumns);
    });
  });
  for (std::int64_t first = 0; first < rows.groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    if (first % PartSums<W>::kGroups == 0) rows.prepare<W, R>(first, sums);
    typename W::Factors factors[P];
    unroll<P>([&](auto j) OCTAVO_INLINE { W::spread(p + j * stride, factors[j]); });
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      prefetch(ahead);
      multiply_group<W, R, P>(p, stride, factors, b, rows, first + b, sums, acc);
    }
  }
  if constexpr (W::kChannelScales) {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      const __m512 scale = _mm512_loadu_ps(strip + j * stride);
      unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][j] = _mm512_mul_ps(acc[i][j], scale); });
    });
  }
  store_tile(out, row, panel * kPanelColumns, w.n, acc);
}

// Every tile of a strip of P panels.
template <class W, int Most, int P>
void multiply_strip(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t rows,
                    std::int64_t panel, const LinearOutput& out) {
  for_each_tile<Most>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles)
                                OCTAVO_INLINE { tile<W, height, P>(w, a, row + r, panel, t, tiles, out); });
}

// Where one tile has all rows, memory is the bound, and one panel at a time the stream that it serves best. Many rows
// of weights that are bytes already go in tiles that need the fewest loads for each product; where quants have to be
// parted first, in tiles that use each for more rows.
template <class W>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  constexpr bool kBytes = W::kLayout.bits == 8, kTwoLevel = W::kLayout.groups > 1;
  constexpr int kHigh = 6, kMany = kBytes ? 4 : kTwoLevel ? 6 : 5, kWide = kBytes ? 3 : 2;
  constexpr std::int64_t kManyRows = 24;
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    std::int64_t panel = panel_begin;
    for (; rows >= kManyRows && panel + kWide <= panel_end; panel += kWide) {
      multiply_strip<W, kMany, kWide>(w, a, row, rows, panel, out);
    }
    for (; rows > kHigh && panel + 2 <= panel_end; panel += 2) multiply_strip<W, kHigh, 2>(w, a, row, rows, panel, out);
    for (; panel < panel_end; ++panel) multiply_strip<W, kHigh, 1>(w, a, row, rows, panel, out);
  });
}

}  // namespace

void linear_integer(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                    std::int64_t panel_end, const LinearOutput& out) {
  using enum WeightFormat;
  for_format<INT8_CHANNEL, INT8_G32, OFFSET4_G32, OFFSET5_G32, INT4_G32, INT5_G32, INT4_K, INT5_K, INT6_K, INT3_K,
             INT2_K, TABLE4_G32, TABLE4_K>(
      w.format, [&](auto format) { multiply<Weights<format>>(w, a, m, panel_begin, panel_end, out); });
}

}  // namespace octavo::avx512
