// Everything that works on one row at a time, as an ISA family provides it. A row's result never depends on other rows.
#pragma once
#include <cstdint>

#include "attention.hpp"

namespace octavo {

struct ElementwiseKernels {
  // out = x / sqrt(mean(x²) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t width, float* out);
  // out = gate / (1 + exp(-gate)) * up; out may be gate or up.
  void (*silu_mul)(const float* gate, const float* up, std::int64_t width, float* out);
  void (*add)(const float* x, const float* y, std::int64_t width, float* out);
  // Rotates each of the row's heads; out may be x.
  void (*rope)(const float* x, const RopeTable& table, std::int64_t position, std::int64_t num_heads,
               std::int64_t head_dim, float* out);
  // The largest of x[0 … n-1]; false if one of them is NaN.
  bool (*row_max)(const float* x, std::int64_t n, float* max);
  // out[i] = exp((x[i] - max) / temperature) in double, where x[i] = max gives 1 even if infinite; out may be null.
  // Requires x[i] <= max. Returns their sum, taken in blocks of 256.
  double (*exp_weights)(const float* x, std::int64_t n, double max, double temperature, double* out);
};

const ElementwiseKernels& avx2_elementwise_kernels();
const ElementwiseKernels& avx512_elementwise_kernels();  // where OCTAVO_HAVE_AVX512

}  // namespace octavo
