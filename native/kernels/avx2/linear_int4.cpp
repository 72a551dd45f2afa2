// INT4_G32 weights times quantised rows. Per group of 32: an exact integer sum S of u4 * s8 products, then
// acc = fma(float(S), ws * xs, acc) and acc = fma(minimum, x_sum, acc), groups in order.
//
// A maddubs lane sums two products, so a whole group adds up to at most 16 * 15 * 127 = 30480 in a 16-bit lane: one
// widening madd per group. Few rows read the nibbles as they are packed; many rows read them from a scratch copy
// that was widened to bytes once, with scales and minimums as floats.
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

constexpr std::int64_t kGroupBytes = panel_bytes(WeightFormat::INT4_G32, kGroup);
constexpr std::int64_t kDirectRows = 8;    // up to here nibbles are read in place
constexpr std::int64_t kBlockRows = 128;   // rows that share one scratch copy
constexpr std::int64_t kBlockGroups = 48;  // groups in one scratch copy: 30 KiB

OCTAVO_INLINE inline __m256 finish_group(__m256i sum16, __m256 scale, __m256 minimum, __m256 xs, __m256 x_sum,
                                         __m256 acc) {
  const __m256 sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum16, _mm256_set1_epi16(1)));
  return _mm256_fmadd_ps(minimum, x_sum, _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, xs), acc));
}

// R rows by one panel, straight from the packed nibbles: tile t of the `tiles` that pass over it.
template <int R>
void direct_tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
                 std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup;
  const std::uint8_t* p = w.data + panel * groups * kGroupBytes;
  Ahead ahead = ahead_of(p, groups * kGroupBytes, kGroupBytes, t, tiles);
  const std::int8_t* q = a.q + row * w.k;
  const float* x_scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][0] = acc[i][1] = _mm256_setzero_ps(); });
  for (std::int64_t g = 0; g < groups; ++g, p += kGroupBytes) {
    __m256i sum[R][2];
    prefetch(ahead);
    unroll<4>([&](auto j) OCTAVO_INLINE {
      unroll<2>([&](auto h) OCTAVO_INLINE {
        const __m256i pair = load_bytes(p + 64 + 64 * j + 32 * h);
        const __m256i first = _mm256_and_si256(pair, nibble);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble);
        unroll<R>([&](auto i) OCTAVO_INLINE {
          const std::int8_t* x = q + i * w.k + g * kGroup + 8 * j;
          const __m256i s = _mm256_maddubs_epi16(first, broadcast_quad(x));
          sum[i][h] = j == 0 ? s : _mm256_add_epi16(sum[i][h], s);
          keep(sum[i][h]);
          sum[i][h] = _mm256_add_epi16(sum[i][h], _mm256_maddubs_epi16(second, broadcast_quad(x + 4)));
          keep(sum[i][h]);
        });
      });
    });
    unroll<2>([&](auto h) OCTAVO_INLINE {
      const __m256 scale = load_halves(p + 16 * h), minimum = load_halves(p + 32 + 16 * h);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m256 xs = _mm256_broadcast_ss(x_scale + i * groups + g);
        const __m256 xsum = _mm256_broadcast_ss(x_sum + i * groups + g);
        acc[i][h] = finish_group(sum[i][h], scale, minimum, xs, xsum, acc[i][h]);
      });
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE { store_row(out, row + i, panel * kPanelColumns, w.n, acc[i][0], acc[i][1]); });
}

// A stretch of one panel, widened, and the sums so far of the rows that pass over it.
struct Scratch {
  alignas(64) std::uint8_t q[kBlockGroups][8][64];  // vector j: 16 columns of k = 4j … 4j+3
  alignas(64) float scale[kBlockGroups][kPanelColumns];
  alignas(64) float minimum[kBlockGroups][kPanelColumns];
  alignas(64) float acc[kBlockRows][kPanelColumns];
};

void widen(const std::uint8_t* p, std::int64_t groups, Scratch& scratch) {
  const __m256i nibble = _mm256_set1_epi8(15);
  for (std::int64_t g = 0; g < groups; ++g, p += kGroupBytes) {
    unroll<2>([&](auto h) OCTAVO_INLINE {
      _mm256_store_ps(scratch.scale[g] + 8 * h, load_halves(p + 16 * h));
      _mm256_store_ps(scratch.minimum[g] + 8 * h, load_halves(p + 32 + 16 * h));
      unroll<4>([&](auto j) OCTAVO_INLINE {
        const __m256i pair = load_bytes(p + 64 + 64 * j + 32 * h);
        auto* to = reinterpret_cast<__m256i*>(scratch.q[g][2 * j] + 32 * h);
        _mm256_store_si256(to, _mm256_and_si256(pair, nibble));
        _mm256_store_si256(to + 2, _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble));
      });
    });
  }
}

// R rows by the widened stretch: q, scale and x_sum point at its first group in the tile's first row.
template <int R>
__attribute__((noinline)) void widened_tile(Ahead ahead, const Scratch& scratch, std::int64_t stretch,
                                            const std::int8_t* q, std::int64_t k, const float* scale,
                                            const float* x_sum, std::int64_t groups, float (*acc)[kPanelColumns]) {
  for (std::int64_t g = 0; g < stretch; ++g) {
    __m256i sum[R][2];
    prefetch(ahead);
    unroll<8>([&](auto j) OCTAVO_INLINE {
      const __m256i lo = load_bytes(scratch.q[g][j]), hi = load_bytes(scratch.q[g][j] + 32);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m256i x = broadcast_quad(q + i * k + g * kGroup + 4 * j);
        const __m256i s0 = _mm256_maddubs_epi16(lo, x), s1 = _mm256_maddubs_epi16(hi, x);
        sum[i][0] = j == 0 ? s0 : _mm256_add_epi16(sum[i][0], s0);
        keep(sum[i][0]);
        sum[i][1] = j == 0 ? s1 : _mm256_add_epi16(sum[i][1], s1);
        keep(sum[i][1]);
      });
    });
    const __m256 scale_lo = _mm256_load_ps(scratch.scale[g]), scale_hi = _mm256_load_ps(scratch.scale[g] + 8);
    const __m256 min_lo = _mm256_load_ps(scratch.minimum[g]), min_hi = _mm256_load_ps(scratch.minimum[g] + 8);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m256 xs = _mm256_broadcast_ss(scale + i * groups + g);
      const __m256 xsum = _mm256_broadcast_ss(x_sum + i * groups + g);
      float* to = acc[i];
      _mm256_store_ps(to, finish_group(sum[i][0], scale_lo, min_lo, xs, xsum, _mm256_load_ps(to)));
      _mm256_store_ps(to + 8, finish_group(sum[i][1], scale_hi, min_hi, xs, xsum, _mm256_load_ps(to + 8)));
    });
  }
}

// `rows` rows (at most kBlockRows) from `row` by one panel, a stretch of groups after the other.
void widened_panel(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t rows, std::int64_t panel,
                   Scratch& scratch, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, column = panel * kPanelColumns;
  for (std::int64_t r = 0; r < rows; ++r) {
    _mm256_store_ps(scratch.acc[r], _mm256_setzero_ps());
    _mm256_store_ps(scratch.acc[r] + 8, _mm256_setzero_ps());
  }
  for (std::int64_t g = 0; g < groups; g += kBlockGroups) {
    const std::int64_t stretch = groups - g < kBlockGroups ? groups - g : kBlockGroups;
    const bool last = g + stretch == groups;
    const std::uint8_t* packed = w.data + (panel * groups + g) * kGroupBytes;
    widen(packed, stretch, scratch);
    for_each_tile<4>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles) OCTAVO_INLINE {
      if (last) unroll<height>([&](auto i) OCTAVO_INLINE { prefetch_row(out, row + r + i, column); });
      const Ahead ahead = ahead_of(packed, stretch * kGroupBytes, kGroupBytes, t, tiles);
      const std::int64_t at = (row + r) * groups + g;
      float(*acc)[kPanelColumns] = scratch.acc + r;
      widened_tile<height>(ahead, scratch, stretch, a.q + at * kGroup, w.k, a.scale + at, a.sum + at, groups, acc);
      if (!last) return;
      unroll<height>([&](auto i) OCTAVO_INLINE {
        store_row(out, row + r + i, column, w.n, _mm256_load_ps(acc[i]), _mm256_load_ps(acc[i] + 8));
      });
    });
  }
}

}  // namespace

void linear_int4(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  if (m <= kDirectRows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<4>(m, [&](auto height, std::int64_t row, std::int64_t t, std::int64_t tiles)
                              OCTAVO_INLINE { direct_tile<height>(w, a, row, panel, t, tiles, out); });
    }
    return;
  }
  Scratch scratch;
  for_each_block(m, w.k, 192 << 10, 16, kBlockRows, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      widened_panel(w, a, row, rows, panel, scratch, out);
    }
  });
}

}  // namespace octavo::avx2
