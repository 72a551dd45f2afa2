// Row kernels for AVX-512: what gains from wider vectors; the rest is AVX2's. The bits are those of AVX2.
#include "elementwise.hpp"

#include "avx2/math.hpp"
#include "avx512/math.hpp"

namespace octavo {
namespace {

// Calls f(i, lanes) for vectors of sixteen at 0, 16, … below n; the last one may have fewer lanes.
template <class F>
OCTAVO_INLINE inline void for_vectors(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, static_cast<__mmask16>(0xffff));
  if (i < n) f(i, static_cast<__mmask16>((1u << (n - i)) - 1));
}

// AVX2's lanes, two vectors in one.
void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
  __m512 sum[4] = {};
  std::int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    unroll<4>([&](auto j) OCTAVO_INLINE {
      const __m512 v = _mm512_loadu_ps(x + i + 16 * j);
      sum[j] = _mm512_fmadd_ps(v, v, sum[j]);
    });
  }
  for (; i < width; i += 8) {
    const auto lanes = static_cast<__mmask16>(width - i >= 8 ? 0xff : (1u << (width - i)) - 1);
    const __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
    sum[0] = _mm512_fmadd_ps(v, v, sum[0]);
  }
  const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
  const float total = horizontal_sum(_mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1)));
  const __m128 mean = _mm_set_ss(total / static_cast<float>(width) + eps);
  const __m512 factor = _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(mean)));
  for_vectors(width, [&](std::int64_t j, __mmask16 lanes) OCTAVO_INLINE {
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + j), factor);
    _mm512_mask_storeu_ps(out + j, lanes, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, weight + j)));
  });
}

void silu_mul(const float* gate, const float* up, std::int64_t width, float* out) {
  const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
  for_vectors(width, [&](std::int64_t i, __mmask16 lanes) OCTAVO_INLINE {
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
    const __m512 e = exp16_within(within_limits(_mm512_xor_ps(g, sign)));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(lanes, up + i)));
  });
}

}  // namespace

const ElementwiseKernels& avx512_elementwise_kernels() {
  static const ElementwiseKernels kernels = [] {
    ElementwiseKernels table = avx2_elementwise_kernels();
    table.rms_norm = rms_norm;
    table.silu_mul = silu_mul;
    return table;
  }();
  return kernels;
}

}  // namespace octavo
