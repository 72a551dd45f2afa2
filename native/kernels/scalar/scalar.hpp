// The scalar ISA family: plain C++ for any little-endian machine, for those that no other family serves and as the one
// that the others are held against. It does the operations of the AVX2 family in the same order for every output
// element, lane for lane where sums run in lanes, so that both give the same bits.
#pragma once
#include "../attention.hpp"
#include "../elementwise.hpp"
#include "../kernels.hpp"

namespace octavo {

const LinearKernels& scalar_linear_kernels();
const AttentionKernels& scalar_attention_kernels();
const ElementwiseKernels& scalar_elementwise_kernels();

}  // namespace octavo
