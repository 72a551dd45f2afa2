#include "isa.hpp"

#include <stdexcept>

#include "kernels/scalar/scalar.hpp"

namespace octavo {

std::vector<IsaFamily> available_isa_families() {
  std::vector<IsaFamily> families;
#ifdef OCTAVO_HAVE_AVX2
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
#ifdef OCTAVO_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
      families.push_back(
          {"avx512", &avx512_linear_kernels(), &avx512_attention_kernels(), &avx512_elementwise_kernels()});
    }
#endif
    families.push_back({"avx2", &avx2_linear_kernels(), &avx2_attention_kernels(), &avx2_elementwise_kernels()});
  }
#endif
  families.push_back({"scalar", &scalar_linear_kernels(), &scalar_attention_kernels(), &scalar_elementwise_kernels()});
  return families;
}

IsaFamily select_isa_family(std::string_view name) {
  const std::vector<IsaFamily> families = available_isa_families();
  std::string known;
  for (const IsaFamily& family : families) {
    if (name.empty() || family.name == name) return family;
    known += (known.empty() ? "" : ", ") + family.name;
  }
  throw std::runtime_error("OCTAVO_ISA='" + std::string(name) + "' is not available here; choose one of: " + known);
}

}  // namespace octavo
