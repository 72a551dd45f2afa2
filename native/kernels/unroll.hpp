// Compile-time loops for kernels. `#pragma GCC unroll` leaves arrays of accumulators in memory; a fold over an
// index sequence keeps them in registers.
//
// Kernel translation units are compiled for an instruction set that the machine may lack, so nothing they
// instantiate may be shared with another unit: everything here is local to the unit that includes it.
#pragma once
#include <utility>

#define OCTAVO_INLINE __attribute__((always_inline))

// Rows that any tile may have. Each number of rows is a kernel of its own; with sanitisers some take seconds to
// compile, and so such builds have only the first few. No result depends on it.
#ifndef OCTAVO_MAX_TILE_ROWS
#define OCTAVO_MAX_TILE_ROWS 64
#endif

namespace octavo {
namespace {

template <int I>
struct Index {
  OCTAVO_INLINE constexpr operator int() const { return I; }
};

constexpr int tile_limit(int rows) { return rows < OCTAVO_MAX_TILE_ROWS ? rows : OCTAVO_MAX_TILE_ROWS; }

// f(Index<0>{}), …, f(Index<N - 1>{}); f is a lambda marked OCTAVO_INLINE whose argument is usable as a constant.
template <int N, class F>
OCTAVO_INLINE inline void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      OCTAVO_INLINE { (f(Index<I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

}  // namespace
}  // namespace octavo
