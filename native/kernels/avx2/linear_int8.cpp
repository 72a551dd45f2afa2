// Signed weights, INT8 as they are or TABLE4 out of a table, times quantised rows. Per group of 32: an exact integer
// sum S, then acc = fma(float(S), ws * xs, acc), groups in order. Scales of whole columns are multiplied into finished
// sums instead.
//
// maddubs wants an unsigned factor: |w| times x with w's sign. |w| <= 128 and |x| <= 127, so its sums of two products
// stay within 32512 and fit 16 bits.
#include "linear_simd.hpp"

namespace octavo::avx2 {
namespace {

// `header` is a block's start, `h` a half of the columns.
template <WeightFormat Format>
struct Weights {
  static constexpr GroupLayout kLayout = group_layout(Format);
  static constexpr std::int64_t kBlockBytes = kLayout.block_bytes();
  static constexpr std::int64_t kGroupBytes = kBlockBytes / kLayout.groups;  // on average
  static constexpr std::int64_t kPanelHeader = panel_header_bytes(Format);
  static constexpr bool kChannelScales = channel_scales(Format);

  OCTAVO_INLINE static __m256 scale(const std::uint8_t* header, std::int64_t group, int h) {
    if constexpr (kChannelScales) return _mm256_set1_ps(1.0f);
    const __m256 d = load_halves(header + 16 * h);
    if constexpr (!two_level(Format)) return d;
    const std::uint8_t* factors = header + kLayout.factors(group) + 8 * h;
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(factors));
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
  }

  // k = 4 V … 4 V + 3 of a group.
  template <int V>
  OCTAVO_INLINE static __m256i weights(const std::uint8_t* vectors, int h) {
    if constexpr (kChannelScales) {
      return _mm256_xor_si256(load_bytes(vectors + 64 * V + 32 * h), _mm256_set1_epi8(-128));
    }
    if constexpr (!has_table(Format)) return load_bytes(vectors + 64 * V + 32 * h);
    const __m256i pair = load_bytes(vectors + 64 * (V / 2) + 32 * h);
    const __m256i q = _mm256_and_si256(V % 2 ? _mm256_srli_epi16(pair, 4) : pair, _mm256_set1_epi8(15));
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTable4));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), q);
  }
};

// R rows by one panel: tile t of the `tiles` that pass over it.
template <class W, int R>
void tile(const PackedMatrix& w, const Activations& a, std::int64_t row, std::int64_t panel, std::int64_t t,
          std::int64_t tiles, const LinearOutput& out) {
  const std::int64_t groups = w.k / kGroup, stride = W::kPanelHeader + groups * W::kGroupBytes;
  const std::uint8_t* const strip = w.data + panel * stride;
  const std::uint8_t* p = strip + W::kPanelHeader;
  Ahead ahead = ahead_of(strip, stride, W::kGroupBytes, t, tiles);
  const std::int8_t* q[R];
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 acc[R][2];
  unroll<R>([&](auto i) OCTAVO_INLINE {
    q[i] = a.q + (row + i) * w.k;
    acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    prefetch_row(out, row + i, panel * kPanelColumns);
  });
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t b = g % W::kLayout.groups;
    const std::uint8_t* vectors = p + W::kLayout.header_bytes + b * W::kLayout.group_bytes;
    __m256i sum[R][2];
    prefetch(ahead);
    unroll<8>([&](auto j) OCTAVO_INLINE {
      const __m256i lo = W::template weights<j>(vectors, 0), hi = W::template weights<j>(vectors, 1);
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
    const __m256 scale_lo = W::scale(p, b, 0), scale_hi = W::scale(p, b, 1);
    unroll<R>([&](auto i) OCTAVO_INLINE {
      const __m256 xs = _mm256_broadcast_ss(a.scale + (row + i) * groups + g);
      const __m256 lo = W::kChannelScales ? xs : _mm256_mul_ps(scale_lo, xs);
      const __m256 hi = W::kChannelScales ? xs : _mm256_mul_ps(scale_hi, xs);
      acc[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][0]), lo, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][1]), hi, acc[i][1]);
      q[i] += kGroup;
    });
    if (b + 1 == W::kLayout.groups) p += W::kBlockBytes;
  }
  if constexpr (W::kChannelScales) {
    unroll<2>([&](auto h) OCTAVO_INLINE {
      const __m256 scale = _mm256_loadu_ps(reinterpret_cast<const float*>(strip) + 8 * h);
      unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][h] = _mm256_mul_ps(acc[i][h], scale); });
    });
  }
  unroll<R>([&](auto i) OCTAVO_INLINE { store_row(out, row + i, panel * kPanelColumns, w.n, acc[i][0], acc[i][1]); });
}

template <class W>
void multiply(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
              std::int64_t panel_end, const LinearOutput& out) {
  for_each_block(m, w.k, 192 << 10, 16, 256, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for_each_tile<4>(rows, [&](auto height, std::int64_t r, std::int64_t t, std::int64_t tiles)
                                 OCTAVO_INLINE { tile<W, height>(w, a, row + r, panel, t, tiles, out); });
    }
  });
}

}  // namespace

void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out) {
  using enum WeightFormat;
  for_format<INT8_CHANNEL, INT8_G32, TABLE4_G32, TABLE4_K>(
      w.format, [&](auto format) { multiply<Weights<format>>(w, a, m, panel_begin, panel_end, out); });
}

}  // namespace octavo::avx2
