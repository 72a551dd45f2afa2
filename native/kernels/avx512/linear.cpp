// The AVX-512 family's linear kernels: the table, and the choice by weight format. The
// products are in linear_float.cpp and linear_integer.cpp; every result has the AVX2 family's bits, as
// the order of operations per output element is the same.
#include "linear_simd.hpp"

namespace octavo {
namespace avx512 {
namespace {

void linear(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
            std::int64_t panel_end, const LinearOutput& out) {
  switch (w.format) {
    case WeightFormat::F32:
    case WeightFormat::F16:
    case WeightFormat::BF16:
      return linear_float(w, a, m, panel_begin, panel_end, out);
    default:
      return linear_integer(w, a, m, panel_begin, panel_end, out);
  }
}

}  // namespace
}  // namespace avx512

const LinearKernels& avx512_linear_kernels() {
  static constexpr LinearKernels kernels{avx512::quantize_rows, avx512::linear};
  return kernels;
}

}  // namespace octavo
