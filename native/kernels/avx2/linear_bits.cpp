// Weights of two to six bits times quantised rows. Per group of 32, or each half of it where halves have scales of
// their own, an exact integer sum S of products (q - offset) * x, then acc = fma(float(S), ws * xs, acc) and, where
// there are minimums, acc = fma(minimum, x_sum, acc), in order. Formats differ in where quants, scales and minimums
// come from, and in nothing else.
//
// A maddubs lane sums two products u * s8. With four bits a whole group adds up to at most 16 * 15 * 127 = 30480 in a
// 16-bit lane: one widening madd per group. With five bits that is 62992, and each half of a group is widened by
// itself; with six, each quarter. An offset is made good by the sum of the part's x. Few rows read the quants as they
// are packed; many rows read them from a scratch copy that was widened to bytes once, with scales and minimums as
// floats.
#include "linear_bits.hpp"

namespace octavo::avx2 {
namespace {

constexpr std::int64_t kBlockRows = 128;   // rows that share one scratch copy
constexpr std::int64_t kBlockGroups = 48;  // groups in one scratch copy: 30 KiB; whole blocks of every format

constexpr int kBlockOfParts = 8;  // groups whose x sums are prepared together

template <class W>
constexpr int kMaddubs = 32767 / (2 * 127 * ((1 << W::kLayout.bits) - 1));  // sums that fit 16 bits together

template <class W>
constexpr std::int64_t kDirectRows = W::kLayout.bits == 4 ? 8 : 4;  // up to here quants are read in place

// Adds maddubs sum number Count of a part's to `sum`; where that could overflow, what `sum` held goes to `wide`.
template <class W, int Count>
OCTAVO_INLINE inline void add_products(Index<Count>, __m256i products, __m256i& sum, __m256i& wide) {
  constexpr bool kFirst = Count % kMaddubs<W> == 0;
  if constexpr (Count > 0 && kFirst) wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  sum = kFirst ? products : _mm256_add_epi16(sum, products);
  keep(sum);
}

// What the parts of a block of groups take from a row's sums: the start of an integer sum, or x_sum.
template <class W>
union PartSums {
  alignas(32) std::int32_t start[kBlockOfParts][W::kParts];
  alignas(32) float x_sum[kBlockOfParts][W::kParts];
};

// Of the 8 groups, or as many as there are `left`, from `part_sum` and `scale` on. With minimums of whole groups there
// is nothing to prepare.
template <class W>
OCTAVO_INLINE inline void prepare(const std::int16_t* part_sum, const float* scale, std::int64_t left,
                                  PartSums<W>& sums) {
  if constexpr (W::kMinimum && W::kParts == 1) return;
  if constexpr (W::kParts == 1) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), lanes);
    const __m256i pairs = _mm256_maskload_epi32(reinterpret_cast<const int*>(part_sum), mask);
    const __m256i start = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-W::kOffset));
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums.start), start);
    return;
  }
  unroll<2>([&](auto i) OCTAVO_INLINE {
    const __m256i sum = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part_sum) + i));
    if constexpr (W::kOffset != 0) {
      const __m256i start = _mm256_mullo_epi32(sum, _mm256_set1_epi32(-W::kOffset));
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums.start[4 * i]), start);
    } else {
      const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(scale + 4 * i));
      const __m256 xs = _mm256_permutevar_ps(four, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
      _mm256_store_ps(sums.x_sum[4 * i], _mm256_mul_ps(xs, _mm256_cvtepi32_ps(sum)));
    }
  });
}

// `x_sum`: the group's, where it has one part.
template <class W>
OCTAVO_INLINE inline __m256 finish_part(__m256i sum, __m256i wide, __m256 scale, __m256 minimum, __m256 xs,
                                        const float* x_sum, const PartSums<W>& sums, std::int64_t group, int part,
                                        __m256 acc) {
  __m256i total = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  if constexpr (kMaddubs<W> < W::kVectors) total = _mm256_add_epi32(total, wide);
  if constexpr (W::kOffset != 0) {
    total = _mm256_add_epi32(total, _mm256_set1_epi32(sums.start[group % kBlockOfParts][part]));
  }
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, xs), acc);
  if constexpr (!W::kMinimum) return acc;
  return _mm256_fmadd_ps(minimum,
                         _mm256_broadcast_ss(W::kParts == 1 ? x_sum : &sums.x_sum[group % kBlockOfParts][part]), acc);
}

// R rows by one panel, straight from the packed quants: tile t of the `tiles` that pass over it.
template <class W, int R>
void direct_tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
                 std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * W::kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  Ahead ahead = ahead_of(p, stride, W::kGroupBytes, t, tiles);
  const std::int8_t* q = a.q + row * w.k;
  const float* x_scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  const std::int16_t* part_sum = a.part_sum + row * groups * 2;
  PartSums<W> sums[R];
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][0] = acc[i][1] = _mm256_setzero_ps(); });
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    if (first % kBlockOfParts == 0) {
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const std::int64_t at = i * groups + first;
        prepare<W>(part_sum + 2 * at, x_scale + at, groups - first, sums[i]);
      });
    }
    typename W::Factors factors;
    W::spread(p, factors);
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      const std::uint8_t* vectors = W::vectors(p, b);
      prefetch(ahead);
      unroll<W::kParts>([&](auto part) OCTAVO_INLINE {
        __m256i sum[R][2], wide[R][2];
        unroll<W::kVectors>([&](auto v) OCTAVO_INLINE {
          constexpr int kVector = part * W::kVectors + v;
          unroll<2>([&](auto h) OCTAVO_INLINE {
            const __m256i quants = W::template quants<kVector>(vectors, h);
            unroll<R>([&](auto i) OCTAVO_INLINE {
              const __m256i x = broadcast_quad(q + i * w.k + g * kGroup + 4 * kVector);
              add_products<W>(v, _mm256_maddubs_epi16(quants, x), sum[i][h], wide[i][h]);
            });
          });
        });
        unroll<2>([&](auto h) OCTAVO_INLINE {
          const __m256 scale = W::scale(p, factors, b, part, h);
          __m256 minimum{};
          if constexpr (W::kMinimum) minimum = W::minimum(p, factors, b, part, h);
          unroll<R>([&](auto i) OCTAVO_INLINE {
            const std::int64_t at = i * groups + g;
            const __m256 xs = _mm256_broadcast_ss(x_scale + at);
            acc[i][h] =
                finish_part<W>(sum[i][h], wide[i][h], scale, minimum, xs, x_sum + at, sums[i], g, part, acc[i][h]);
          });
        });
      });
    }
  }
  unroll<R>([&](auto i) OCTAVO_INLINE { store_row(out, row + i, panel * kPanelColumns, w.n, acc[i][0], acc[i][1]); });
}

// A stretch of one panel, widened, and the sums so far of the rows that pass over it.
template <class W>
struct Scratch {
  alignas(64) std::uint8_t q[kBlockGroups][8][64];  // vector j: 16 columns of k = 4j … 4j+3
  alignas(64) float scale[kBlockGroups][W::kParts][kPanelColumns];
  alignas(64) float minimum[W::kMinimum ? kBlockGroups : 1][W::kParts][kPanelColumns];
  alignas(64) float acc[kBlockRows][kPanelColumns];
};

template <class W>
void widen(const std::uint8_t* p, std::int64_t groups, Scratch<W>& scratch) {
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    typename W::Factors factors;
    W::spread(p, factors);
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      const std::uint8_t* vectors = W::vectors(p, b);
      unroll<2>([&](auto h) OCTAVO_INLINE {
        unroll<W::kParts>([&](auto part) OCTAVO_INLINE {
          _mm256_store_ps(scratch.scale[g][part] + 8 * h, W::scale(p, factors, b, part, h));
          if constexpr (W::kMinimum)
            _mm256_store_ps(scratch.minimum[g][part] + 8 * h, W::minimum(p, factors, b, part, h));
        });
        unroll<8>([&](auto v) OCTAVO_INLINE {
          auto* to = reinterpret_cast<__m256i*>(scratch.q[g][v] + 32 * h);
          _mm256_store_si256(to, W::template quants<v>(vectors, h));
        });
      });
    }
  }
}

// Rows as a tile over a stretch reads them: pointers at its first group in the tile's first row.
struct StretchRows {
  const std::int8_t* q;
  const float* scale;
  const float* sum;
  const std::int16_t* part_sum;
  std::int64_t k, groups;  // of a whole row
};

// R rows by the widened stretch.
template <class W, int R>
__attribute__((noinline)) void widened_tile(Ahead ahead, const Scratch<W>& scratch, std::int64_t stretch,
                                            const StretchRows& x, float (*acc)[kPanelColumns]) {
  PartSums<W> sums[R];
  for (std::int64_t g = 0; g < stretch; ++g) {
    if (g % kBlockOfParts == 0) {
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const std::int64_t at = i * x.groups + g;
        prepare<W>(x.part_sum + 2 * at, x.scale + at, stretch - g, sums[i]);
      });
    }
    prefetch(ahead);
    unroll<W::kParts>([&](auto part) OCTAVO_INLINE {
      __m256i sum[R][2], wide[R][2];
      unroll<W::kVectors>([&](auto v) OCTAVO_INLINE {
        constexpr int kVector = part * W::kVectors + v;
        const __m256i lo = load_bytes(scratch.q[g][kVector]), hi = load_bytes(scratch.q[g][kVector] + 32);
        unroll<R>([&](auto i) OCTAVO_INLINE {
          const __m256i quad = broadcast_quad(x.q + i * x.k + g * kGroup + 4 * kVector);
          add_products<W>(v, _mm256_maddubs_epi16(lo, quad), sum[i][0], wide[i][0]);
          add_products<W>(v, _mm256_maddubs_epi16(hi, quad), sum[i][1], wide[i][1]);
        });
      });
      __m256 scale[2], minimum[2]{};
      unroll<2>([&](auto h) OCTAVO_INLINE {
        scale[h] = _mm256_load_ps(scratch.scale[g][part] + 8 * h);
        if constexpr (W::kMinimum) minimum[h] = _mm256_load_ps(scratch.minimum[g][part] + 8 * h);
      });
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const std::int64_t at = i * x.groups + g;
        const __m256 xs = _mm256_broadcast_ss(x.scale + at);
        unroll<2>([&](auto h) OCTAVO_INLINE {
          float* to = acc[i] + 8 * h;
          _mm256_store_ps(to, finish_part<W>(sum[i][h], wide[i][h], scale[h], minimum[h], xs, x.sum + at, sums[i], g,
                                             part, _mm256_load_ps(to)));
        });
      });
    });
  }
}

// `rows` rows (at most kBlockRows) from `row` by one panel, a stretch of groups after the other.
template <class W>
void widened_panel(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t rows, std::int64_t panel,
                   Scratch<W>& scratch, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, column = panel * kPanelColumns;
  for (std::int64_t r = 0; r < rows; ++r) {
    _mm256_store_ps(scratch.acc[r], _mm256_setzero_ps());
    _mm256_store_ps(scratch.acc[r] + 8, _mm256_setzero_ps());
  }
  for (std::int64_t g = 0; g < groups; g += kBlockGroups) {
    const std::int64_t stretch = groups - g < kBlockGroups ? groups - g : kBlockGroups;
    const bool last = g + stretch == groups;
    const std::uint8_t* packed = w.data + (panel * groups + g) * W::kGroupBytes;
    widen<W>(packed, stretch, scratch);
    for_each_tile<4>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles) OCTAVO_INLINE {
      if (last) unroll<height>([&](auto i) OCTAVO_INLINE { prefetch_row(out, row + r + i, column); });
      const Ahead ahead = ahead_of(packed, stretch * W::kGroupBytes, W::kGroupBytes, t, tiles);
      const std::int64_t at = (row + r) * groups + g;
      float (*acc)[kPanelColumns] = scratch.acc + r;
      const StretchRows x{a.q + at * kGroup, a.scale + at, a.sum + at, a.part_sum + 2 * at, w.k, groups};
      widened_tile<W, height>(ahead, scratch, stretch, x, acc);
      if (!last) return;
      unroll<height>([&](auto i) OCTAVO_INLINE {
        store_row(out, row + r + i, column, w.n, _mm256_load_ps(acc[i]), _mm256_load_ps(acc[i] + 8));
      });
    });
  }
}

template <class W>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  if (m <= kDirectRows<W>) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<4>(m, [&](auto height, std::int64_t row, std::int64_t t, std::int64_t tiles)
                              OCTAVO_INLINE { direct_tile<W, height>(w, a, row, panel, t, tiles, out); });
    }
    return;
  }
  Scratch<W> scratch;
  for_each_block(m, w.k, 192 << 10, 16, kBlockRows, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      widened_panel<W>(w, a, row, rows, panel, scratch, out);
    }
  });
}

}  // namespace

void linear_bits(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  using enum WeightFormat;
  for_format<INT4_G32, INT5_G32, OFFSET4_G32, OFFSET5_G32, INT4_K, INT5_K, INT6_K, INT3_K, INT2_K>(
      w.format, [&](auto format) { multiply<Weights<format>>(w, a, m, panel_begin, panel_end, out); });
}

}  // namespace octavo::avx2
