// Packed weights: one layout per format, shared by every kernel, every number of rows and every ISA family.
//
// A matrix (n output columns, k inputs) is cut into panels of 16 output columns; a panel is contiguous, and a
// panel's k runs in order. The last panel is padded with zero columns.
//
//   F32       per k: 16 floats
//   F16       per k: 16 IEEE halves
//   INT8_G32  per group of 32 k: 16 half scales, then 8 vectors of 64 bytes: vector j holds, for each of the 16
//             columns in turn, the 4 signed bytes of k = 4j … 4j+3                                  (544 bytes)
//   INT4_G32  per group of 32 k: 16 half scales, 16 half minimums, then 4 vectors of 64 bytes: byte (column, i) of
//             vector j holds k = 8j+i in its low and k = 8j+4+i in its high nibble, i < 4          (320 bytes)
//   INT5_G32  as INT4_G32, then a vector of fifth bits: bit b of byte (column, i) belongs to k = 4b+i  (384 bytes)
//   INT4_K    per block of 256 k: 16 half d, 16 half e, per group of 32 k 16 bytes s and 16 bytes t, then per group
//             the 4 vectors of INT4_G32; a group's scale is d * s and its minimum e * t, exact in float (2368 bytes)
//   INT5_K    as INT4_K, with the 5 vectors of INT5_G32 per group                                      (2880 bytes)
//
// A weight is scale * q (INT8) or scale * q + minimum, 0 <= q <= 15 (INT4) or 31 (INT5).
#pragma once
#include <cstddef>
#include <cstdint>

namespace octavo {

enum class WeightFormat : std::uint8_t { F32, F16, INT8_G32, INT4_G32, INT5_G32, INT4_K, INT5_K };

inline constexpr std::int64_t kPanelColumns = 16;
inline constexpr std::int64_t kGroup = 32;        // k elements that share a scale
inline constexpr std::int64_t kVectorBytes = 64;  // of an integer panel: 16 columns of 4 bytes

struct PackedMatrix {
  WeightFormat format;
  std::int64_t n;            // output columns (rows of the weight as models store it)
  std::int64_t k;            // inputs; a multiple of k_unit(format)
  const std::uint8_t* data;  // 64-byte aligned
};

constexpr bool quantised(WeightFormat format) { return format != WeightFormat::F32 && format != WeightFormat::F16; }

// INT4 and INT5 formats: groups with a minimum whose quants lie in nibbles. A block is what shares a header: `groups`
// groups, after each other, each of `group_bytes` of vectors.
struct NibbleLayout {
  std::int64_t groups, header_bytes, group_bytes;
  constexpr std::int64_t block_bytes() const { return header_bytes + groups * group_bytes; }
};

constexpr bool two_level(WeightFormat format) {
  return format == WeightFormat::INT4_K || format == WeightFormat::INT5_K;
}

constexpr bool five_bits(WeightFormat format) {
  return format == WeightFormat::INT5_G32 || format == WeightFormat::INT5_K;
}

constexpr NibbleLayout nibble_layout(WeightFormat format) {
  const std::int64_t group_bytes = (five_bits(format) ? 5 : 4) * kVectorBytes;
  if (two_level(format)) return {8, 64 + 8 * 32, group_bytes};
  return {1, 64, group_bytes};
}

// k is a multiple of this.
constexpr std::int64_t k_unit(WeightFormat format) {
  return !quantised(format) ? 1 : two_level(format) ? 8 * kGroup : kGroup;
}

constexpr std::int64_t num_panels(const PackedMatrix& w) { return (w.n + kPanelColumns - 1) / kPanelColumns; }

constexpr std::int64_t panel_bytes(WeightFormat format, std::int64_t k) {
  switch (format) {
    case WeightFormat::F32:
      return k * kPanelColumns * 4;
    case WeightFormat::F16:
      return k * kPanelColumns * 2;
    case WeightFormat::INT8_G32:
      return k / kGroup * (32 + 512);
    case WeightFormat::INT4_G32:
    case WeightFormat::INT5_G32:
    case WeightFormat::INT4_K:
    case WeightFormat::INT5_K:
      return k / k_unit(format) * nibble_layout(format).block_bytes();
  }
  return 0;
}

}  // namespace octavo
