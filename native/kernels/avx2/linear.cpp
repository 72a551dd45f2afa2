// The AVX2 family's linear kernels: the table, and the choice by weight format.
// The products are in linear_float.cpp, linear_int8.cpp and linear_bits.cpp.
#include "linear_simd.hpp"

namespace octavo {
namespace avx2 {
namespace {

void linear(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
            std::int64_t panel_end, const LinearOutput& out) {
  switch (w.format) {
    case WeightFormat::F32:
    case WeightFormat::F16:
    case WeightFormat::BF16:
      return linear_float(w, a, m, panel_begin, panel_end, out);
    case WeightFormat::INT8_G32:
    case WeightFormat::INT8_CHANNEL:
    case WeightFormat::TABLE4_G32:
    case WeightFormat::TABLE4_K:
      return linear_int8(w, a, m, panel_begin, panel_end, out);
    default:
      return linear_bits(w, a, m, panel_begin, panel_end, out);
  }
}

}  // namespace
}  // namespace avx2

const LinearKernels& avx2_linear_kernels() {
  static constexpr LinearKernels kernels{avx2::quantize_rows, avx2::linear};
  return kernels;
}

}  // namespace octavo
