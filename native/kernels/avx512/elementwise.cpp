// Row kernels for AVX-512: what gains from wider vectors; the rest is AVX2's. The bits are those of AVX2.
#include "elementwise.hpp"

#include "avx512/math.hpp"

namespace octavo {
namespace {

void silu_mul(const float* gate, const float* up, std::int64_t width, float* out) {
  const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
  for (std::int64_t i = 0; i < width; i += 16) {
    const __mmask16 lanes = static_cast<__mmask16>(width - i >= 16 ? 0xffff : (1 << (width - i)) - 1);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exp16(_mm512_xor_ps(g, sign))));
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(lanes, up + i)));
  }
}

}  // namespace

const ElementwiseKernels& avx512_elementwise_kernels() {
  static const ElementwiseKernels kernels = [] {
    ElementwiseKernels table = avx2_elementwise_kernels();
    table.silu_mul = silu_mul;
    return table;
  }();
  return kernels;
}

}  // namespace octavo
