// Compile-time loops for kernels. `#pragma GCC unroll` leaves arrays of accumulators in memory; a fold over an
// index sequence keeps them in registers.
//
// Kernel translation units are compiled for an instruction set that the machine may lack, so nothing they
// instantiate may be shared with another unit: everything here is local to the unit that includes it.
#pragma once
#include <utility>

#define OCTAVO_INLINE __attribute__((always_inline))

namespace octavo {
namespace {

template <int I>
struct Index {
  OCTAVO_INLINE constexpr operator int() const { return I; }
};

// f(Index<0>{}), …, f(Index<N - 1>{}); f is a lambda marked OCTAVO_INLINE whose argument is usable as a constant.
template <int N, class F>
OCTAVO_INLINE inline void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      OCTAVO_INLINE { (f(Index<I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

}  // namespace
}  // namespace octavo
