// How every ISA family's linear kernels cut a matrix into tiles and fetch weights ahead of use. Local to each unit
// that includes it (see unroll.hpp).
//
// Rows are cut into blocks whose activations stay in the second-level cache while all panels pass over them; within a
// block, a strip of one or more panels is read by one tile of rows after the other.
#pragma once
#include "kernels.hpp"
#include "unroll.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kNear = 8192;  // bytes that a strip's only tile runs ahead of itself

OCTAVO_INLINE inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// Asks for the line that the kernel will write, well before, and for the right to write it: with thousands of columns
// it is in no near cache, or the thread that wrote it last has it, and stores that miss wait for one another.
OCTAVO_INLINE inline void prefetch_row(const LinearOutput& o, std::int64_t row, std::int64_t column) {
  __builtin_prefetch(o.out + row * o.ldo + column, 1, 3);
}

// Weights to ask for while a tile computes: `step` bytes from `at` on per unit (a k or a group) of the tile.
struct Ahead {
  std::uintptr_t at;
  std::int64_t step;
};

// The tiles of a strip, `stride` bytes long, share out the next strip, so that it arrives while they compute; a strip's
// only tile runs kNear bytes ahead of itself. Beyond the last strip this asks for what nobody reads: harmless.
OCTAVO_INLINE inline Ahead ahead_of(const std::uint8_t* strip, std::int64_t stride, std::int64_t unit_bytes,
                                    std::int64_t tile, std::int64_t tiles) {
  const auto at = reinterpret_cast<std::uintptr_t>(strip);
  if (tiles == 1) return {at + kNear, unit_bytes};
  return {at + static_cast<std::uintptr_t>(stride + stride * tile / tiles), unit_bytes / tiles};
}

OCTAVO_INLINE inline void prefetch(Ahead& ahead) {
  const std::uintptr_t end = ahead.at + static_cast<std::uintptr_t>(ahead.step);
  for (; ahead.at < end; ahead.at += 64) prefetch(reinterpret_cast<const void*>(ahead.at));
  ahead.at = end;
}

// The same where a step is 64 bytes at most.
OCTAVO_INLINE inline void prefetch_one(Ahead& ahead) {
  prefetch(reinterpret_cast<const void*>(ahead.at));
  ahead.at += static_cast<std::uintptr_t>(ahead.step);
}

template <WeightFormat Format>
struct FormatIndex {
  OCTAVO_INLINE constexpr operator WeightFormat() const { return Format; }
};

// f(FormatIndex<format>{}) if `format` is one of these.
template <WeightFormat... Formats, class F>
OCTAVO_INLINE inline void for_format(WeightFormat format, F&& f) {
  ((format == Formats ? f(FormatIndex<Formats>{}) : void()), ...);
}

// Calls f(first row, rows) for blocks of rows, as equal as can be, whose activations, `row_bytes` each, take
// `cache_bytes` at most; but blocks have up to `least` rows whatever they take, and never more than `most`.
template <class F>
OCTAVO_INLINE inline void for_each_block(std::int64_t m, std::int64_t row_bytes, std::int64_t cache_bytes,
                                         std::int64_t least, std::int64_t most, F&& f) {
  const std::int64_t fitting = cache_bytes / row_bytes;
  const std::int64_t limit = fitting < least ? least : fitting > most ? most : fitting;
  const std::int64_t blocks = (m + limit - 1) / limit;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t row = m * b / blocks;
    f(row, m * (b + 1) / blocks - row);
  }
}

// Calls f(Index<R>{}, first row, tile, tiles) over `rows` rows in tiles of at most Most, as equal as can be.
template <int Most, class F>
OCTAVO_INLINE inline void for_each_tile(std::int64_t rows, F&& f) {
  constexpr int kMost = tile_limit(Most);
  const std::int64_t tiles = (rows + kMost - 1) / kMost;
  std::int64_t row = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::int64_t height = (rows - row + (tiles - t) - 1) / (tiles - t);
    unroll<kMost>([&](auto i) OCTAVO_INLINE {
      if (height == i + 1) f(Index<i + 1>{}, row, t, tiles);
    });
    row += height;
  }
}

}  // namespace
}  // namespace octavo
