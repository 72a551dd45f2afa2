// How every ISA family's quantiser of activations goes through rows: eight groups at a time, whose maxima and sums are
// found side by side; what is left over, and what holds a group without a scale, one group after the other. Local to
// each unit that includes it (see unroll.hpp).
#pragma once
#include "kernels.hpp"

namespace octavo {
namespace {

constexpr int kAtOnce = 8;                 // groups
constexpr float kLeast = 127 * 0x1p-126f;  // below it the scale would be subnormal
constexpr float kMost = 0x1p120f;          // from here on the sum might overflow

// eight(x, q, scale, sum, part_sum) is false, and has written nothing, if one of eight groups has no scale; one(…) does
// a single group.
template <class Eight, class One>
void quantize_rows_by(Eight&& eight, One&& one, const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k,
                      const QuantisedRows& out) {
  const std::int64_t groups = k / kGroup;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups;) {
      const float* from = x + r * ldx + g * kGroup;
      const std::int64_t at = r * groups + g;
      std::int64_t next = g + kAtOnce;
      if (next <= groups && eight(from, out.q + at * kGroup, out.scale + at, out.sum + at, out.part_sum + 2 * at)) {
        g = next;
        continue;
      }
      if (next > groups) next = groups;
      for (std::int64_t i = 0; g < next; ++g, ++i) {
        one(from + i * kGroup, out.q + (at + i) * kGroup, out.scale + at + i, out.sum + at + i,
            out.part_sum + 2 * (at + i));
      }
    }
  }
}

}  // namespace
}  // namespace octavo
