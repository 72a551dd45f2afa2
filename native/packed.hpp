// Packed weights: one layout per format, shared by every kernel, every number of rows and every ISA family.
//
// A matrix (n output columns, k inputs) is cut into panels of 16 output columns; a panel is contiguous, and a
// panel's k runs in order. The last panel is padded with zero columns.
//
//   F32       per k: 16 floats
//   F16       per k: 16 IEEE halves
//   BF16      per k: 16 bfloat16, the upper halves of floats
//   INT8_G32  per group of 32 k: 16 half scales, then 8 vectors of 64 bytes: vector j holds, for each of the 16
//             columns in turn, the 4 signed bytes of k = 4j … 4j+3                                  (544 bytes)
//   INT8_CHANNEL  16 floats, the columns' scales, then per group of 32 k the 8 vectors of INT8_G32 with 128 added to
//             each byte                                                                               (512 bytes)
//   INT4_G32  per group of 32 k: 16 half scales, 16 half minimums, then 4 vectors of 64 bytes: byte (column, i) of
//             vector j holds k = 8j+i in its low and k = 8j+4+i in its high nibble, i < 4          (320 bytes)
//   INT5_G32  as INT4_G32, then a vector of fifth bits: bit b of byte (column, i) belongs to k = 4b+i  (384 bytes)
//   OFFSET4_G32  as INT4_G32, without minimums                                                         (288 bytes)
//   OFFSET5_G32  as INT5_G32, without minimums                                                         (352 bytes)
//   INT4_K    per block of 256 k: 16 half d, 16 half e, per group of 32 k 16 bytes that hold s in their lower six and
//             the upper bits of t in their upper two bits, then 4 times 16 bytes, of which number i holds the lower
//             bits of group i's t in its low and those of group i + 4's in its high nibbles, then per group the 4
//             vectors of INT4_G32; a group's scale is d * s and its minimum e * t, exact in float (2304 bytes)
//   INT5_K    as INT4_K, with the 5 vectors of INT5_G32 per group                                      (2816 bytes)
//   INT6_K    per block of 256 k: 16 half d, 32 bytes of zeros, per group of 32 k 16 signed bytes s for its first and
//             16 for its last 16 k, then per group the 4 vectors of INT4_G32 and 2 vectors of upper bits: bits 2b and
//             2b+1 of byte (column, i) of vector h belong to k = 16h+4b+i. The scale of each 16 k is d * s (3392 bytes)
//   INT3_K    as INT6_K, but per group 2 vectors of lower bits, laid out as those upper bits, and a vector of third
//             bits, laid out as fifth bits                                                             (1856 bytes)
//   INT2_K    per block of 256 k: 16 half d, 16 half e, per group of 32 k 16 bytes s + 16 t for its first 16 k and 16
//             for its last 16 k, then per group the 2 vectors of lower bits of INT3_K; each 16 k have the scale d * s
//             and the minimum e * t                                                                    (1344 bytes)
//   TABLE4_G32  per group of 32 k: 16 half scales, then the 4 vectors of INT4_G32                       (288 bytes)
//   TABLE4_K  per block of 256 k: 16 half d, 32 bytes of zeros, per group of 32 k 16 signed bytes s, then per group the
//             4 vectors of INT4_G32; a group's scale is d * s                                          (2240 bytes)
//
// A weight is scale * q (INT8_G32, signed), scale * (q - 128) (INT8_CHANNEL), scale * (q - 32) (INT6), scale * (q - 16)
// (OFFSET5), scale * (q - 8) (OFFSET4), scale * (q - 4) (INT3), scale * kTable4[q] (TABLE4), or scale * q + minimum in
// the others, with 0 <= q < 2^bits.
#pragma once
#include <cstddef>
#include <cstdint>

namespace octavo {

enum class WeightFormat : std::uint8_t {
  F32,
  F16,
  BF16,
  INT8_G32,
  INT4_G32,
  INT5_G32,
  INT4_K,
  INT5_K,
  INT6_K,
  INT3_K,
  INT2_K,
  TABLE4_G32,
  TABLE4_K,
  OFFSET4_G32,
  OFFSET5_G32,
  INT8_CHANNEL,
};

inline constexpr std::int64_t kPanelColumns = 16;
inline constexpr std::int64_t kGroup = 32;        // k elements that share a scale
inline constexpr std::int64_t kPart = 16;         // those that do where a group has two scales
inline constexpr std::int64_t kVectorBytes = 64;  // of an integer panel: 16 columns of 4 bytes

struct PackedMatrix {
  WeightFormat format;
  std::int64_t n;            // output columns (rows of the weight as models store it)
  std::int64_t k;            // inputs; a multiple of k_unit(format)
  const std::uint8_t* data;  // 64-byte aligned
};

constexpr bool quantised(WeightFormat format) {
  return format != WeightFormat::F32 && format != WeightFormat::F16 && format != WeightFormat::BF16;
}

// The levels of TABLE4 formats, those of IQ4_NL.
inline constexpr std::int8_t kTable4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr bool has_table(WeightFormat format) {
  return format == WeightFormat::TABLE4_G32 || format == WeightFormat::TABLE4_K;
}

// Integer formats. A block is what shares a header: `groups` groups, after each other, each of `group_bytes` of
// vectors.
struct GroupLayout {
  int bits;
  int parts;         // of a group, each with a scale of its own: 1 of 32 k or 2 of 16
  int offset;        // a weight is scale * (q - offset), or of its level in a table
  bool has_minimum;  // + minimum
  std::int64_t groups, header_bytes, group_bytes;
  constexpr std::int64_t block_bytes() const { return header_bytes + groups * group_bytes; }
  // Of two levels, whose block's halves are multiplied by bytes or parts of them: where those of a group begin. With
  // one scale and a minimum, where the lower bits of the minimum's are.
  constexpr std::int64_t factors(std::int64_t group) const { return 64 + 16 * (parts == 2 ? 2 : 1) * group; }
  constexpr std::int64_t low_factors(std::int64_t group) const { return 64 + 16 * groups + 16 * (group % 4); }
};

constexpr GroupLayout group_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::INT8_G32:
      return {8, 1, 0, false, 1, 32, 8 * kVectorBytes};
    case WeightFormat::INT4_G32:
      return {4, 1, 0, true, 1, 64, 4 * kVectorBytes};
    case WeightFormat::INT5_G32:
      return {5, 1, 0, true, 1, 64, 5 * kVectorBytes};
    case WeightFormat::INT8_CHANNEL:
      return {8, 1, 128, false, 1, 0, 8 * kVectorBytes};
    case WeightFormat::OFFSET4_G32:
      return {4, 1, 8, false, 1, 32, 4 * kVectorBytes};
    case WeightFormat::OFFSET5_G32:
      return {5, 1, 16, false, 1, 32, 5 * kVectorBytes};
    case WeightFormat::INT4_K:
      return {4, 1, 0, true, 8, 64 + 8 * 24, 4 * kVectorBytes};
    case WeightFormat::INT5_K:
      return {5, 1, 0, true, 8, 64 + 8 * 24, 5 * kVectorBytes};
    case WeightFormat::INT6_K:
      return {6, 2, 32, false, 8, 64 + 8 * 32, 6 * kVectorBytes};
    case WeightFormat::INT3_K:
      return {3, 2, 4, false, 8, 64 + 8 * 32, 3 * kVectorBytes};
    case WeightFormat::INT2_K:
      return {2, 2, 0, true, 8, 64 + 8 * 32, 2 * kVectorBytes};
    case WeightFormat::TABLE4_G32:
      return {4, 1, 0, false, 1, 32, 4 * kVectorBytes};
    case WeightFormat::TABLE4_K:
      return {4, 1, 0, false, 8, 64 + 8 * 16, 4 * kVectorBytes};
    default:
      return {};
  }
}

// Scales that are a half times a byte.
constexpr bool two_level(WeightFormat format) { return group_layout(format).groups > 1; }

// k is a multiple of this.
constexpr std::int64_t k_unit(WeightFormat format) {
  return !quantised(format) ? 1 : two_level(format) ? 8 * kGroup : kGroup;
}

// A scale for a whole column, which is multiplied into its finished sum; it is at the start of the panel.
constexpr bool channel_scales(WeightFormat format) { return format == WeightFormat::INT8_CHANNEL; }
constexpr std::int64_t panel_header_bytes(WeightFormat format) { return channel_scales(format) ? 64 : 0; }

constexpr std::int64_t num_panels(const PackedMatrix& w) { return (w.n + kPanelColumns - 1) / kPanelColumns; }

constexpr std::int64_t panel_bytes(WeightFormat format, std::int64_t k) {
  if (quantised(format)) return panel_header_bytes(format) + k / k_unit(format) * group_layout(format).block_bytes();
  return k * kPanelColumns * (format == WeightFormat::F32 ? 4 : 2);
}

}  // namespace octavo
