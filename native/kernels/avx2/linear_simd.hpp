// What the AVX2 linear kernels share: half loads, the store of a finished tile row, and how rows are cut.
// Local to each unit that includes it (see unroll.hpp).
#pragma once
#include <immintrin.h>

#include "../kernels.hpp"
#include "../unroll.hpp"

namespace octavo::avx2 {
namespace {

OCTAVO_INLINE inline __m256 load_halves(const std::uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

OCTAVO_INLINE inline __m256i load_bytes(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// The 4 bytes at p in every lane.
OCTAVO_INLINE inline __m256i broadcast_quad(const std::int8_t* p) {
  int quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Stops GCC from regrouping integer sums across this point, which makes it spill the accumulators.
OCTAVO_INLINE inline void keep(__m256i& v) { asm volatile("" : "+x"(v)); }

OCTAVO_INLINE inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Asks for the line that store_row will write, well before: with thousands of columns it is in no near cache, and
// stores that miss wait for one another.
OCTAVO_INLINE inline void prefetch_row(const LinearOutput& o, std::int64_t row, std::int64_t column) {
  prefetch(o.out + row * o.ldo + column);
}

// (acc + bias) + residual for one row of one panel, in that order; columns beyond the matrix are dropped.
OCTAVO_INLINE inline void store_row(const LinearOutput& o, std::int64_t row, std::int64_t column, std::int64_t n,
                                    __m256 lo, __m256 hi) {
  float* out = o.out + row * o.ldo + column;
  if (column + kPanelColumns <= n) {
    if (o.bias) {
      lo = _mm256_add_ps(lo, _mm256_loadu_ps(o.bias + column));
      hi = _mm256_add_ps(hi, _mm256_loadu_ps(o.bias + column + 8));
    }
    if (o.residual) {
      const float* residual = o.residual + row * o.ldr + column;
      lo = _mm256_add_ps(lo, _mm256_loadu_ps(residual));
      hi = _mm256_add_ps(hi, _mm256_loadu_ps(residual + 8));
    }
    _mm256_storeu_ps(out, lo);
    _mm256_storeu_ps(out + 8, hi);
    return;
  }
  alignas(32) float acc[kPanelColumns];
  _mm256_store_ps(acc, lo);
  _mm256_store_ps(acc + 8, hi);
  for (std::int64_t c = 0; column + c < n; ++c) {
    float value = acc[c];
    if (o.bias) value += o.bias[column + c];
    if (o.residual) value += o.residual[row * o.ldr + column + c];
    out[c] = value;
  }
}

// How many rows a block may have so that its activations, `row_bytes` each, stay in the second-level cache while
// every panel passes over them.
OCTAVO_INLINE inline std::int64_t rows_in_cache(std::int64_t row_bytes, std::int64_t budget_bytes, std::int64_t least,
                                                std::int64_t most) {
  const std::int64_t rows = budget_bytes / row_bytes;
  return rows < least ? least : rows > most ? most : rows;
}

constexpr std::int64_t kNear = 8192;  // bytes that a panel's only tile runs ahead of itself

// Weights to ask for while a tile computes: `step` bytes from `at` on per unit (a k or a group) of the tile.
struct Ahead {
  const std::uint8_t* at;
  std::int64_t step;
};

// The tiles of a panel, `stride` bytes long, share out the next panel, so that it arrives while they compute; a panel's
// only tile runs kNear bytes ahead of itself. Beyond the last panel this asks for what nobody reads: harmless.
OCTAVO_INLINE inline Ahead ahead_of(const std::uint8_t* panel, std::int64_t stride, std::int64_t unit_bytes,
                                    std::int64_t tile, std::int64_t tiles) {
  if (tiles == 1) return {panel + kNear, unit_bytes};
  return {panel + stride + stride * tile / tiles, unit_bytes / tiles};
}

OCTAVO_INLINE inline void prefetch(Ahead& ahead) {
  const std::uint8_t* end = ahead.at + ahead.step;
  for (; ahead.at < end; ahead.at += 64) prefetch(ahead.at);
  ahead.at = end;
}

// Calls f(Index<R>{}, first row, tile, tiles) over `rows` rows in tiles of at most Most, as equal as can be.
template <int Most, class F>
OCTAVO_INLINE inline void for_each_tile(std::int64_t rows, F&& f) {
  const std::int64_t tiles = (rows + Most - 1) / Most;
  std::int64_t row = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::int64_t height = (rows - row + (tiles - t) - 1) / (tiles - t);
    unroll<Most>([&](auto i) OCTAVO_INLINE {
      if (height == i + 1) f(Index<i + 1>{}, row, t, tiles);
    });
    row += height;
  }
}

}  // namespace

void linear_float(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                  std::int64_t panel_end, const LinearOutput& out);
void linear_int8(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out);
void linear_int4(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
                 std::int64_t panel_end, const LinearOutput& out);

}  // namespace octavo::avx2
