// Row kernels for AVX2. Widths are arbitrary; the last lanes are masked, so that a width has one order of operations.
#include "elementwise.hpp"

#include "math.hpp"
#include "rope.hpp"

namespace octavo {
namespace {

// Eight lanes, or the first few of them: masked stores are far too slow to be used everywhere.
struct AllLanes {
  OCTAVO_INLINE __m256 load(const float* p) const { return _mm256_loadu_ps(p); }
  OCTAVO_INLINE void store(float* p, __m256 x) const { _mm256_storeu_ps(p, x); }
  OCTAVO_INLINE __m256 select(__m256, __m256 x) const { return x; }
};
struct SomeLanes {
  __m256i mask;
  OCTAVO_INLINE __m256 load(const float* p) const { return _mm256_maskload_ps(p, mask); }
  OCTAVO_INLINE void store(float* p, __m256 x) const { _mm256_maskstore_ps(p, mask, x); }
  OCTAVO_INLINE __m256 select(__m256 otherwise, __m256 x) const {
    return _mm256_blendv_ps(otherwise, x, _mm256_castsi256_ps(mask));
  }
};

// Calls f(i, lanes) for vectors of eight at 0, 8, … below n; the last one may have fewer lanes.
template <class F>
OCTAVO_INLINE inline void for_vectors(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) f(i, AllLanes{});
  if (i < n) f(i, SomeLanes{lane_mask(n - i)});
}

float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
  __m256 sum[8] = {};
  std::int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    unroll<8>([&](auto j) OCTAVO_INLINE {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * j);
      sum[j] = _mm256_fmadd_ps(v, v, sum[j]);
    });
  }
  for_vectors(width - i, [&](std::int64_t j, auto lanes) OCTAVO_INLINE {
    const __m256 v = lanes.load(x + i + j);
    sum[0] = _mm256_fmadd_ps(v, v, sum[0]);
  });
  unroll<4>([&](auto j) OCTAVO_INLINE { sum[j] = _mm256_add_ps(sum[j], sum[j + 4]); });
  const float total = horizontal_sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[2]), _mm256_add_ps(sum[1], sum[3])));
  const __m256 factor = _mm256_set1_ps(1.0f / square_root(total / static_cast<float>(width) + eps));
  for_vectors(width, [&](std::int64_t j, auto lanes) OCTAVO_INLINE {
    const __m256 v = _mm256_mul_ps(lanes.load(x + j), factor);
    lanes.store(out + j, _mm256_mul_ps(v, lanes.load(weight + j)));
  });
}

// Of exp(-gate) below 1e-38 nothing is left in the sum with 1: it need not be 0.
void silu_mul(const float* gate, const float* up, std::int64_t width, float* out) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  for_vectors(width, [&](std::int64_t i, auto lanes) OCTAVO_INLINE {
    const __m256 g = lanes.load(gate + i);
    const __m256 e = exp8_within(within_limits(_mm256_xor_ps(g, sign)));
    lanes.store(out + i, _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), lanes.load(up + i)));
  });
}

void add(const float* x, const float* y, std::int64_t width, float* out) {
  for_vectors(width, [&](std::int64_t i, auto lanes)
                         OCTAVO_INLINE { lanes.store(out + i, _mm256_add_ps(lanes.load(x + i), lanes.load(y + i))); });
}

void rope(const float* x, const RopeTable& table, std::int64_t position, std::int64_t num_heads, std::int64_t head_dim,
          float* out) {
  const float* row = table.row(position);
  for (std::int64_t head = 0; head < num_heads; ++head) {
    rotate_head(x + head * head_dim, row, table.rotary_dim, table.style, head_dim, out + head * head_dim);
  }
}

bool row_max(const float* x, std::int64_t n, float* max) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 largest = lowest, unordered = _mm256_setzero_ps();
  for_vectors(n, [&](std::int64_t i, auto lanes) OCTAVO_INLINE {
    const __m256 v = lanes.select(lowest, lanes.load(x + i));
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    largest = _mm256_max_ps(largest, v);
  });
  *max = horizontal_max(largest);
  return _mm256_movemask_ps(unordered) == 0;
}

// exp(x) in double for -700 <= x <= 0 to about 1e-16 relative, 0 below. Degree-13 Taylor after |r| <= ln 2 / 2.
OCTAVO_INLINE inline __m256d exp4(__m256d x) {
  const __m256d low = _mm256_set1_pd(-700.0);
  const __m256d vanishes = _mm256_cmp_pd(x, low, _CMP_LT_OQ);
  x = _mm256_max_pd(low, x);
  const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(1.4426950408889634)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(6.93145751953125e-1), x);
  r = _mm256_fnmadd_pd(n, _mm256_set1_pd(1.42860682030941723212e-6), r);
  constexpr double kInverseFactorials[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
      1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
  __m256d p = _mm256_set1_pd(1.0 / 6227020800.0);
  unroll<13>([&](auto i) OCTAVO_INLINE { p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(kInverseFactorials[i])); });
  const __m256i power = _mm256_slli_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n)), 52);
  p = _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(p), power));
  return _mm256_andnot_pd(vanishes, p);
}

constexpr std::int64_t kSumBlock = 256;

double exp_weights(const float* x, std::int64_t n, double max, double temperature, double* out) {
  const __m256d shift = _mm256_set1_pd(max), divisor = _mm256_set1_pd(temperature);
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kSumBlock) {
    const std::int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    __m256d sum = _mm256_setzero_pd();
    for (std::int64_t i = begin; i < end; i += 4) {
      const __m128i mask = _mm256_castsi256_si128(lane_mask(end - i < 4 ? end - i : 4));
      const __m256i lanes = _mm256_cvtepi32_epi64(mask);
      const __m256d v = _mm256_cvtps_pd(_mm_maskload_ps(x + i, mask));
      const __m256d largest = _mm256_cmp_pd(v, shift, _CMP_EQ_OQ);
      __m256d z = _mm256_andnot_pd(largest, _mm256_sub_pd(v, shift));
      if (temperature != 1.0) z = _mm256_div_pd(z, divisor);
      const __m256d w = _mm256_and_pd(exp4(z), _mm256_castsi256_pd(lanes));
      sum = _mm256_add_pd(sum, w);
      if (out != nullptr) _mm256_maskstore_pd(out + i, lanes, w);
    }
    const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    total += _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }
  return total;
}

constexpr ElementwiseKernels kKernels{rms_norm, silu_mul, add, rope, row_max, exp_weights};

}  // namespace

const ElementwiseKernels& avx2_elementwise_kernels() { return kKernels; }

}  // namespace octavo
