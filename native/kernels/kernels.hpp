// The table of kernels that an ISA family provides. Kernels are single-threaded pure functions over the slice
// they are given; the executor cuts work into slices (outputs only, never sums) and hands them to threads.
// Whatever the slice, the tile or the number of rows, each output element is the result of one fixed
// order of operations: that is what makes logits bit-identical alone and in a crowd.
#pragma once
#include <cstddef>
#include <cstdint>

#include "packed.hpp"

namespace octavo {

// Rows of activations as a linear kernel reads them: float rows for float weights, quantised ones otherwise.
struct Activations {
  const float* f;  // (m, k) floats, row stride ldf
  std::int64_t ldf;
  const std::int8_t* q;  // (m, k) bytes in [-127, 127], row stride k
  const float* scale;    // (m, k / 32)
  const float* sum;      // (m, k / 32): scale * sum of the group's q, for its minimum
  // (m, k / 32, 2): sums of q over the group's first and last 16, for scales and minimums of 16.
  const std::int16_t* part_sum;
};

// Where quantised rows are written: members as those of Activations.
struct QuantisedRows {
  std::int8_t* q;
  float* scale;
  float* sum;
  std::int16_t* part_sum;
};

// out = x W^T (+ bias) (+ residual); residual may alias out. Only the matrix's n columns are written.
struct LinearOutput {
  float* out;  // (m, n), row stride ldo
  std::int64_t ldo;
  const float* bias;      // (n,) or null
  const float* residual;  // (m, n) or null, row stride ldr
  std::int64_t ldr;
};

struct LinearKernels {
  // Per row and group of 32: scale = max|x| / 127, q = round-to-nearest-even(x * (127 / max|x|)). A group whose max|x|
  // is below 127 * 2^-126 becomes zeros with scale 0; if it is 2^120 or more, infinite or NaN, scale and sum are NaN,
  // and so is every output of the row.
  void (*quantize_rows)(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out);
  // Rows 0 … m-1 times the columns of panels panel_begin … panel_end-1. out, bias and residual are the whole matrix's.
  void (*linear)(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out);
};

const LinearKernels& avx2_linear_kernels();    // needs AVX2, FMA, F16C
const LinearKernels& avx512_linear_kernels();  // needs AVX-512 F, BW, VL, DQ and VNNI besides

}  // namespace octavo
