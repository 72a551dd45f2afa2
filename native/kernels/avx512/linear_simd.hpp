// What the AVX-512 linear kernels share: the operands of vpdpbusd, and the store of a finished row of a tile. Local to
// each unit that includes it (see unroll.hpp).
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics' undefined operands
#endif
#include <immintrin.h>

#include "../linear_tiles.hpp"

namespace octavo::avx512 {
namespace {

OCTAVO_INLINE inline __m512 load_halves(const std::uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The 4 bytes at p in every lane.
OCTAVO_INLINE inline __m512i broadcast_quad(const std::int8_t* p) {
  int quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return _mm512_set1_epi32(quad);
}

// Stops GCC from regrouping integer sums across this point, which makes it spill the accumulators.
OCTAVO_INLINE inline void keep(__m512i& v) { asm volatile("" : "+v"(v)); }

// (acc + bias) + residual, in that order, for R rows from `row` on by P panels from `column` on; columns beyond the
// matrix are dropped. What stores might change, for all the compiler knows, is read before them.
template <int R, int P>
OCTAVO_INLINE inline void store_tile(const LinearOutput& output, std::int64_t row, std::int64_t column, std::int64_t n,
                                     __m512 (&acc)[R][P]) {
  const LinearOutput o = output;
  float* to = o.out + row * o.ldo + column;
  const float* from = o.residual + row * o.ldr + column;
  __mmask16 mask[P];
  unroll<P>([&](auto j) OCTAVO_INLINE {
    const std::int64_t columns = n - column - j * kPanelColumns;
    mask[j] = static_cast<__mmask16>(columns < kPanelColumns ? (1u << columns) - 1 : 0xffff);
  });
  if (o.bias) {
    unroll<P>([&](auto j) OCTAVO_INLINE {
      const __m512 bias = _mm512_maskz_loadu_ps(mask[j], o.bias + column + j * kPanelColumns);
      unroll<R>([&](auto i) OCTAVO_INLINE { acc[i][j] = _mm512_add_ps(acc[i][j], bias); });
    });
  }
  if (o.residual) {
    unroll<R>([&](auto i) OCTAVO_INLINE {
      unroll<P>([&](auto j) OCTAVO_INLINE {
        const float* residual = from + i * o.ldr + j * kPanelColumns;
        acc[i][j] = _mm512_add_ps(acc[i][j], _mm512_maskz_loadu_ps(mask[j], residual));
      });
    });
  }
  if (n - column >= P * kPanelColumns) {
    unroll<R>([&](auto i) OCTAVO_INLINE {
      unroll<P>([&](auto j) OCTAVO_INLINE { _mm512_storeu_ps(to + i * o.ldo + j * kPanelColumns, acc[i][j]); });
    });
    return;
  }
  unroll<R>([&](auto i) OCTAVO_INLINE {
    unroll<P>([&](auto j)
                  OCTAVO_INLINE { _mm512_mask_storeu_ps(to + i * o.ldo + j * kPanelColumns, mask[j], acc[i][j]); });
  });
}

// Calls f(Index<R>{}, Index<P>{}, first row, first panel, tile, tiles) for tiles of R <= Most rows by P panels: two at
// a time, which share the loads of activations; but where one tile has all rows, memory is the bound and one panel at a
// time is the stream that it serves best.
template <int Most, class F>
OCTAVO_INLINE inline void for_each_tile_of_strips(std::int64_t rows, std::int64_t panel, std::int64_t panel_end,
                                                  F&& f) {
  const auto strip = [&](auto panels) OCTAVO_INLINE {
    for_each_tile<Most>(rows, [&](auto height, std::int64_t row, std::int64_t t, std::int64_t tiles)
                                  OCTAVO_INLINE { f(height, panels, row, panel, t, tiles); });
    panel += panels;
  };
  while (rows > Most && panel + 2 <= panel_end) strip(Index<2>{});
  while (panel < panel_end) strip(Index<1>{});
}

}  // namespace

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out);
void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out);
void linear_integer(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                    std::int64_t panel_end, const LinearOutput& out);

}  // namespace octavo::avx512
