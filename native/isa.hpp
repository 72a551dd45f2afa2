// Which kernels this machine runs: one table per ISA family, chosen once per executor.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/kernels.hpp"

namespace octavo {

struct IsaFamily {
  std::string name;
  const LinearKernels* linear;
  const AttentionKernels* attention;
  const ElementwiseKernels* elementwise;
};

// The families that were built and that this CPU has, best first; the last one is scalar, which every CPU has.
std::vector<IsaFamily> available_isa_families();

// The family of that name, or the best one if it is empty. Throws std::runtime_error if none has that name.
IsaFamily select_isa_family(std::string_view name);

}  // namespace octavo
