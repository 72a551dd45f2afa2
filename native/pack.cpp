#include "pack.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

namespace octavo {
namespace {

constexpr std::int64_t kVectorBytes = 64;  // of an integer panel: 16 columns of 4 bytes

template <class T>
T read(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 31u;
  const std::uint32_t mantissa = half & 1023u;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t rebiased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | rebiased << 23 | mantissa << 13);
}

// -8 * half as a half, exactly. False if that is not finite.
bool minus_eight_times(std::uint16_t half, std::uint16_t& result) {
  const std::uint32_t sign = ~half & 0x8000u;
  std::uint32_t exponent = (half >> 10) & 31u;
  std::uint32_t mantissa = half & 1023u;
  if (exponent == 0) {  // in units of 2^-24; the three bits shifted in are zeros, so normalising is exact
    mantissa <<= 3;
    if (mantissa >= 1024) {
      for (exponent = 1; mantissa >= 2048; ++exponent) mantissa >>= 1;
      mantissa -= 1024;
    }
  } else {
    exponent += 3;
    if (exponent >= 31) return false;
  }
  result = static_cast<std::uint16_t>(sign | exponent << 10 | mantissa);
  return true;
}

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

const char* name(SourceType source) {
  switch (source) {
    case SourceType::F32:
      return "F32";
    case SourceType::F16:
      return "F16";
    case SourceType::BF16:
      return "BF16";
    case SourceType::Q8_0:
      return "Q8_0";
    case SourceType::Q4_0:
      return "Q4_0";
    case SourceType::Q4_1:
      return "Q4_1";
  }
  refuse("unknown source type " + std::to_string(static_cast<int>(source)));
}

const char* name(WeightFormat format) {
  switch (format) {
    case WeightFormat::F32:
      return "F32";
    case WeightFormat::F16:
      return "F16";
    case WeightFormat::INT8_G32:
      return "INT8_G32";
    case WeightFormat::INT4_G32:
      return "INT4_G32";
  }
  refuse("unknown weight format " + std::to_string(static_cast<int>(format)));
}

// Weights and bytes of one block.
struct BlockShape {
  std::int64_t length;
  std::int64_t bytes;
};

BlockShape block_shape(SourceType source) {
  switch (source) {
    case SourceType::F32:
      return {1, 4};
    case SourceType::F16:
      return {1, 2};
    case SourceType::BF16:
      return {1, 2};
    case SourceType::Q8_0:
      return {kGroup, 34};
    case SourceType::Q4_0:
      return {kGroup, 18};
    case SourceType::Q4_1:
      return {kGroup, 20};
  }
  refuse("unknown source type " + std::to_string(static_cast<int>(source)));
}

// Weights i of a block in float.
void dequantize_block(SourceType source, const std::uint8_t* block, float* out) {
  switch (source) {
    case SourceType::F32:
      *out = read<float>(block);
      return;
    case SourceType::F16:
      *out = half_to_float(read<std::uint16_t>(block));
      return;
    case SourceType::BF16:
      *out = std::bit_cast<float>(static_cast<std::uint32_t>(read<std::uint16_t>(block)) << 16);
      return;
    case SourceType::Q8_0: {
      const float d = half_to_float(read<std::uint16_t>(block));
      for (int i = 0; i < kGroup; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
      return;
    }
    case SourceType::Q4_0: {
      const float d = half_to_float(read<std::uint16_t>(block));
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
        out[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
      }
      return;
    }
    case SourceType::Q4_1: {
      const float d = half_to_float(read<std::uint16_t>(block));
      const float m = half_to_float(read<std::uint16_t>(block + 2));
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
        out[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
      }
      return;
    }
  }
}

void pack_column_f32(SourceType source, const std::uint8_t* row, std::int64_t k, std::int64_t column,
                     std::uint8_t* panel) {
  const BlockShape block = block_shape(source);
  float values[kGroup];
  for (std::int64_t k0 = 0; k0 < k; k0 += block.length, row += block.bytes) {
    dequantize_block(source, row, values);
    for (std::int64_t i = 0; i < block.length; ++i) {
      std::memcpy(panel + ((k0 + i) * kPanelColumns + column) * 4, &values[i], 4);
    }
  }
}

void pack_column_f16(const std::uint8_t* row, std::int64_t k, std::int64_t column, std::uint8_t* panel) {
  for (std::int64_t i = 0; i < k; ++i) std::memcpy(panel + (i * kPanelColumns + column) * 2, row + i * 2, 2);
}

void pack_column_int8(const std::uint8_t* row, std::int64_t groups, std::int64_t column, std::uint8_t* panel) {
  for (std::int64_t g = 0; g < groups; ++g, row += 34, panel += panel_bytes(WeightFormat::INT8_G32, kGroup)) {
    std::memcpy(panel + column * 2, row, 2);
    std::uint8_t* vectors = panel + 32 + column * 4;
    for (int j = 0; j < 8; ++j) std::memcpy(vectors + j * kVectorBytes, row + 2 + 4 * j, 4);
  }
}

void pack_column_int4(SourceType source, const std::uint8_t* row, std::int64_t row_index, std::int64_t groups,
                      std::int64_t column, std::uint8_t* panel) {
  const std::int64_t block_bytes = block_shape(source).bytes;
  for (std::int64_t g = 0; g < groups; ++g, row += block_bytes, panel += panel_bytes(WeightFormat::INT4_G32, kGroup)) {
    const auto scale = read<std::uint16_t>(row);
    std::uint16_t minimum = 0;
    if (source == SourceType::Q4_1) {
      minimum = read<std::uint16_t>(row + 2);
    } else if (!minus_eight_times(scale, minimum)) {
      refuse("Q4_0 scale " + std::to_string(half_to_float(scale)) + " of row " + std::to_string(row_index) +
             ", block " + std::to_string(g) + ": -8 times it is not a finite half");
    }
    std::memcpy(panel + column * 2, &scale, 2);
    std::memcpy(panel + 32 + column * 2, &minimum, 2);

    const std::uint8_t* q = row + block_bytes - 16;
    std::uint8_t* vectors = panel + 64 + column * 4;
    for (int j = 0; j < 4; ++j) {  // k = 8j … 8j+7; the source pairs weight i with weight i + 16, the panel with i + 4
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * (j & 1) + i;
        const int low = j < 2 ? q[at] & 15 : q[at] >> 4;
        const int high = j < 2 ? q[at + 4] & 15 : q[at + 4] >> 4;
        vectors[j * kVectorBytes + i] = static_cast<std::uint8_t>(low | high << 4);
      }
    }
  }
}

}  // namespace

WeightFormat lossless_format(SourceType source) {
  switch (source) {
    case SourceType::F32:
    case SourceType::BF16:
      return WeightFormat::F32;
    case SourceType::F16:
      return WeightFormat::F16;
    case SourceType::Q8_0:
      return WeightFormat::INT8_G32;
    case SourceType::Q4_0:
    case SourceType::Q4_1:
      return WeightFormat::INT4_G32;
  }
  refuse("unknown source type " + std::to_string(static_cast<int>(source)));
}

std::size_t source_row_bytes(SourceType source, std::int64_t k) {
  const BlockShape block = block_shape(source);
  if (k < 1 || k % block.length != 0) {
    refuse(std::string("k = ") + std::to_string(k) + ": a row of " + name(source) + " is a positive multiple of " +
           std::to_string(block.length) + " weights");
  }
  return static_cast<std::size_t>(k / block.length * block.bytes);
}

std::size_t packed_bytes(WeightFormat format, std::int64_t n, std::int64_t k) {
  if (n < 1) refuse("n = " + std::to_string(n) + ": a packed matrix has at least one output column");
  if (k < 1) refuse("k = " + std::to_string(k) + ": a packed matrix has at least one input");
  if (quantised(format) && k % kGroup != 0) {
    refuse("k = " + std::to_string(k) + ": " + name(format) + " needs a multiple of " + std::to_string(kGroup));
  }
  return static_cast<std::size_t>((n + kPanelColumns - 1) / kPanelColumns * panel_bytes(format, k));
}

void pack(SourceType source, WeightFormat target, const std::uint8_t* src, std::int64_t n, std::int64_t k,
          std::int64_t panel_begin, std::int64_t panel_end, std::uint8_t* dst) {
  if (target != WeightFormat::F32 && target != lossless_format(source)) {
    refuse(std::string("cannot pack ") + name(source) + " as " + name(target) + ": only as " +
           name(lossless_format(source)) + " or F32");
  }
  packed_bytes(target, n, k);
  const std::size_t row_bytes = source_row_bytes(source, k);
  const std::int64_t panels = (n + kPanelColumns - 1) / kPanelColumns;
  if (panel_begin < 0 || panel_begin > panel_end || panel_end > panels) {
    refuse("panels " + std::to_string(panel_begin) + " to " + std::to_string(panel_end) + " of a matrix of " +
           std::to_string(panels));
  }
  const std::int64_t bytes = panel_bytes(target, k);
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    std::uint8_t* panel = dst + p * bytes;
    const std::int64_t columns = std::min(kPanelColumns, n - p * kPanelColumns);
    if (columns < kPanelColumns) std::memset(panel, 0, static_cast<std::size_t>(bytes));
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t row_index = p * kPanelColumns + c;
      const std::uint8_t* row = src + static_cast<std::size_t>(row_index) * row_bytes;
      switch (target) {
        case WeightFormat::F32:
          pack_column_f32(source, row, k, c, panel);
          break;
        case WeightFormat::F16:
          pack_column_f16(row, k, c, panel);
          break;
        case WeightFormat::INT8_G32:
          pack_column_int8(row, k / kGroup, c, panel);
          break;
        case WeightFormat::INT4_G32:
          pack_column_int4(source, row, row_index, k / kGroup, c, panel);
          break;
      }
    }
  }
}

void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out) {
  const std::int64_t column = row % kPanelColumns;
  const std::uint8_t* panel = w.data + row / kPanelColumns * panel_bytes(w.format, w.k);
  switch (w.format) {
    case WeightFormat::F32:
      for (std::int64_t i = 0; i < w.k; ++i) out[i] = read<float>(panel + (i * kPanelColumns + column) * 4);
      return;
    case WeightFormat::F16:
      for (std::int64_t i = 0; i < w.k; ++i)
        out[i] = half_to_float(read<std::uint16_t>(panel + (i * kPanelColumns + column) * 2));
      return;
    case WeightFormat::INT8_G32:
      for (std::int64_t g = 0; g < w.k / kGroup; ++g, panel += 544, out += kGroup) {
        const float scale = half_to_float(read<std::uint16_t>(panel + column * 2));
        const std::uint8_t* vectors = panel + 32 + column * 4;
        for (int i = 0; i < kGroup; ++i) {
          out[i] = scale * static_cast<float>(static_cast<std::int8_t>(vectors[i / 4 * kVectorBytes + i % 4]));
        }
      }
      return;
    case WeightFormat::INT4_G32:
      for (std::int64_t g = 0; g < w.k / kGroup; ++g, panel += 320, out += kGroup) {
        const float scale = half_to_float(read<std::uint16_t>(panel + column * 2));
        const float minimum = half_to_float(read<std::uint16_t>(panel + 32 + column * 2));
        const std::uint8_t* vectors = panel + 64 + column * 4;
        for (int i = 0; i < kGroup; ++i) {
          const int byte = vectors[i / 8 * kVectorBytes + i % 4];
          out[i] = scale * static_cast<float>(i % 8 < 4 ? byte & 15 : byte >> 4) + minimum;
        }
      }
      return;
  }
}

}  // namespace octavo
