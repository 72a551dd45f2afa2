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
//
// A weight is scale * q (INT8) or scale * q + minimum, 0 <= q <= 15 (INT4).
#pragma once
#include <cstddef>
#include <cstdint>

namespace octavo {

enum class WeightFormat : std::uint8_t { F32, F16, INT8_G32, INT4_G32 };

inline constexpr std::int64_t kPanelColumns = 16;
inline constexpr std::int64_t kGroup = 32;  // k elements that share a scale

struct PackedMatrix {
  WeightFormat format;
  std::int64_t n;            // output columns (rows of the weight as models store it)
  std::int64_t k;            // inputs; a multiple of kGroup for the integer formats
  const std::uint8_t* data;  // 64-byte aligned
};

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
      return k / kGroup * (64 + 256);
  }
  return 0;
}

constexpr bool quantised(WeightFormat format) {
  return format == WeightFormat::INT8_G32 || format == WeightFormat::INT4_G32;
}

}  // namespace octavo
