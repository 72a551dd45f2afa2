// Weights of four or five bits with minimums (INT4 and INT5 formats) times quantised rows. Per group of 32: an exact
// integer sum S of products u * s8, then acc = fma(float(S), ws * xs, acc) and acc = fma(minimum, x_sum, acc), groups
// in order. Formats differ in where the fifth bit and the group's scale and minimum come from, and in nothing else.
//
// A maddubs lane sums two products. With four bits a whole group adds up to at most 16 * 15 * 127 = 30480 in a 16-bit
// lane: one widening madd per group. With five bits that is 62992, and each half of a group is widened by itself. Few
// rows read the quants as they are packed; many rows read them from a scratch copy that was widened to bytes once, with
// scales and minimums as floats.
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

constexpr std::int64_t kBlockRows = 128;   // rows that share one scratch copy
constexpr std::int64_t kBlockGroups = 48;  // groups in one scratch copy: 30 KiB; whole blocks of every format

// How to read a block of a format: `header` is its start, `vectors` that of a group's vectors, `h` a half of the
// columns.
template <WeightFormat Format>
struct Weights {
  static constexpr NibbleLayout kLayout = nibble_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average
  static constexpr bool kFiveBits = five_bits(Format);
  static constexpr std::int64_t kDirectRows = kFiveBits ? 4 : 8;  // up to here quants are read in place
  static constexpr int kMaddubs = kFiveBits ? 4 : 8;              // sums of two products that fit 16 bits together

  OCTAVO_INLINE static const std::uint8_t* vectors(const std::uint8_t* header, std::int64_t group) {
    return header + kLayout.header_bytes + group * kLayout.group_bytes;
  }

  OCTAVO_INLINE static __m256 bytes_as_floats(const std::uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  OCTAVO_INLINE static __m256 scale(const std::uint8_t* header, std::int64_t group, int h) {
    const __m256 d = load_halves(header + 16 * h);
    if constexpr (!two_level(Format)) return d;
    return _mm256_mul_ps(d, bytes_as_floats(header + 64 + 32 * group + 8 * h));
  }

  OCTAVO_INLINE static __m256 minimum(const std::uint8_t* header, std::int64_t group, int h) {
    const __m256 e = load_halves(header + 32 + 16 * h);
    if constexpr (!two_level(Format)) return e;
    return _mm256_mul_ps(e, bytes_as_floats(header + 64 + 32 * group + 16 + 8 * h));
  }

  // The quants of k = 8 J … 8 J + 3 and of the next four, as bytes.
  template <int J>
  OCTAVO_INLINE static void quants(const std::uint8_t* vectors, int h, __m256i& first, __m256i& second) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i pair = load_bytes(vectors + 64 * J + 32 * h);
    first = _mm256_and_si256(pair, nibble);
    second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble);
    if constexpr (kFiveBits) {
      const __m256i bits = load_bytes(vectors + 256 + 32 * h);
      first = _mm256_or_si256(first, fifth_bit<2 * J>(bits));
      second = _mm256_or_si256(second, fifth_bit<2 * J + 1>(bits));
    }
  }

 private:
  // Bit B of every byte, as 16.
  template <int B>
  OCTAVO_INLINE static __m256i fifth_bit(__m256i bits) {
    const __m256i there =
        B < 4 ? _mm256_slli_epi16(bits, B < 4 ? 4 - B : 0) : _mm256_srli_epi16(bits, B < 4 ? 0 : B - 4);
    return _mm256_and_si256(there, _mm256_set1_epi8(16));
  }
};

// Adds maddubs sum number Count of a group's eight to `sum`; where that could overflow, what `sum` held goes to `wide`.
template <int Most, int Count>
OCTAVO_INLINE inline void add_products(Index<Count>, __m256i products, __m256i& sum, __m256i& wide) {
  if constexpr (Count > 0 && Count % Most == 0) wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  sum = Count % Most == 0 ? products : _mm256_add_epi16(sum, products);
  keep(sum);
}

template <int Most>
OCTAVO_INLINE inline __m256 finish_group(__m256i sum, __m256i wide, __m256 scale, __m256 minimum, __m256 xs,
                                         __m256 x_sum, __m256 acc) {
  __m256i total = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  if constexpr (Most < 8) total = _mm256_add_epi32(total, wide);
  const __m256 product = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, xs), acc);
  return _mm256_fmadd_ps(minimum, x_sum, product);
}

// R rows by one panel, straight from the packed nibbles: tile t of the `tiles` that pass over it.
template <class W, int R>
void direct_tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
                 std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = groups * W::kGroupBytes;
  const std::uint8_t* p = w.data + panel * stride;
  Ahead ahead = ahead_of(p, stride, W::kGroupBytes, t, tiles);
  const std::int8_t* q = a.q + row * w.k;
  const float* x_scale = a.scale + row * groups;
  const float* x_sum = a.sum + row * groups;
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][0] = acc[i][1] = _mm256_setzero_ps(); });
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      const std::uint8_t* vectors = W::vectors(p, b);
      __m256i sum[R][2], wide[R][2];
      prefetch(ahead);
      unroll<4>([&](auto j) OCTAVO_INLINE {
        unroll<2>([&](auto h) OCTAVO_INLINE {
          __m256i near, far;
          W::template quants<j>(vectors, h, near, far);
          unroll<R>([&](auto i) OCTAVO_INLINE {
            const std::int8_t* x = q + i * w.k + g * kGroup + 8 * j;
            const __m256i near_products = _mm256_maddubs_epi16(near, broadcast_quad(x));
            add_products<W::kMaddubs>(Index<2 * j>{}, near_products, sum[i][h], wide[i][h]);
            const __m256i far_products = _mm256_maddubs_epi16(far, broadcast_quad(x + 4));
            add_products<W::kMaddubs>(Index<2 * j + 1>{}, far_products, sum[i][h], wide[i][h]);
          });
        });
      });
      unroll<2>([&](auto h) OCTAVO_INLINE {
        const __m256 scale = W::scale(p, b, h), minimum = W::minimum(p, b, h);
        unroll<R>([&](auto i) OCTAVO_INLINE {
          const __m256 xs = _mm256_broadcast_ss(x_scale + i * groups + g);
          const __m256 xsum = _mm256_broadcast_ss(x_sum + i * groups + g);
          acc[i][h] = finish_group<W::kMaddubs>(sum[i][h], wide[i][h], scale, minimum, xs, xsum, acc[i][h]);
        });
      });
    }
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

template <class W>
void widen(const std::uint8_t* p, std::int64_t groups, Scratch& scratch) {
  for (std::int64_t first = 0; first < groups; first += W::kLayout.groups, p += W::kBlockBytes) {
    for (std::int64_t b = 0; b < W::kLayout.groups; ++b) {
      const std::int64_t g = first + b;
      const std::uint8_t* vectors = W::vectors(p, b);
      unroll<2>([&](auto h) OCTAVO_INLINE {
        _mm256_store_ps(scratch.scale[g] + 8 * h, W::scale(p, b, h));
        _mm256_store_ps(scratch.minimum[g] + 8 * h, W::minimum(p, b, h));
        unroll<4>([&](auto j) OCTAVO_INLINE {
          __m256i near, far;
          W::template quants<j>(vectors, h, near, far);
          auto* to = reinterpret_cast<__m256i*>(scratch.q[g][2 * j] + 32 * h);
          _mm256_store_si256(to, near);
          _mm256_store_si256(to + 2, far);
        });
      });
    }
  }
}

// R rows by the widened stretch: q, scale and x_sum point at its first group in the tile's first row. Most: as
// in add_products.
template <int Most, int R>
__attribute__((noinline)) void widened_tile(Ahead ahead, const Scratch& scratch, std::int64_t stretch,
                                            const std::int8_t* q, std::int64_t k, const float* scale,
                                            const float* x_sum, std::int64_t groups, float (*acc)[kPanelColumns]) {
  for (std::int64_t g = 0; g < stretch; ++g) {
    __m256i sum[R][2], wide[R][2];
    prefetch(ahead);
    unroll<8>([&](auto j) OCTAVO_INLINE {
      const __m256i lo = load_bytes(scratch.q[g][j]), hi = load_bytes(scratch.q[g][j] + 32);
      unroll<R>([&](auto i) OCTAVO_INLINE {
        const __m256i x = broadcast_quad(q + i * k + g * kGroup + 4 * j);
        add_products<Most>(Index<j>{}, _mm256_maddubs_epi16(lo, x), sum[i][0], wide[i][0]);
        add_products<Most>(Index<j>{}, _mm256_maddubs_epi16(hi, x), sum[i][1], wide[i][1]);
      });
    });
    const __m256 scale_lo = _mm256_load_ps(scratch.scale[g]), scale_hi = _mm256_load_ps(scratch.scale[g] + 8);
    const __m256 min_lo = _mm256_load_ps(scratch.minimum[g]), min_hi = _mm256_load_ps(scratch.minimum[g] + 8);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m256 xs = _mm256_broadcast_ss(scale + i * groups + g);
      const __m256 xsum = _mm256_broadcast_ss(x_sum + i * groups + g);
      float* to = acc[i];
      _mm256_store_ps(to, finish_group<Most>(sum[i][0], wide[i][0], scale_lo, min_lo, xs, xsum, _mm256_load_ps(to)));
      _mm256_store_ps(to + 8,
                      finish_group<Most>(sum[i][1], wide[i][1], scale_hi, min_hi, xs, xsum, _mm256_load_ps(to + 8)));
    });
  }
}

// `rows` rows (at most kBlockRows) from `row` by one panel, a stretch of groups after the other.
template <class W>
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
    const std::uint8_t* packed = w.data + (panel * groups + g) * W::kGroupBytes;
    widen<W>(packed, stretch, scratch);
    for_each_tile<4>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles) OCTAVO_INLINE {
      if (last) unroll<height>([&](auto i) OCTAVO_INLINE { prefetch_row(out, row + r + i, column); });
      const Ahead ahead = ahead_of(packed, stretch * W::kGroupBytes, W::kGroupBytes, t, tiles);
      const std::int64_t at = (row + r) * groups + g;
      float (*acc)[kPanelColumns] = scratch.acc + r;
      widened_tile<W::kMaddubs, height>(ahead, scratch, stretch, a.q + at * kGroup, w.k, a.scale + at, a.sum + at,
                                        groups, acc);
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
  if (m <= W::kDirectRows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<4>(m, [&](auto height, std::int64_t row, std::int64_t t, std::int64_t tiles)
                              OCTAVO_INLINE { direct_tile<W, height>(w, a, row, panel, t, tiles, out); });
    }
    return;
  }
  Scratch scratch;
  for_each_block(m, w.k, 192 << 10, 16, kBlockRows, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      widened_panel<W>(w, a, row, rows, panel, scratch, out);
    }
  });
}

}  // namespace

void linear_nibbles(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
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
    default:
      return;
  }
}

}  // namespace octavo::avx2
