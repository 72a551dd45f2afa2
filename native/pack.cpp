#include "pack.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace octavo {
namespace {

constexpr std::int64_t kMaxColumns = std::int64_t{1} << 31;
constexpr std::int64_t kMaxInputs = std::int64_t{1} << 27;

template <class T>
T read(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void write_half(std::uint8_t* p, std::uint16_t half) { std::memcpy(p, &half, sizeof half); }

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void pack_column_f32(SourceType source, const std::uint8_t* row, std::int64_t k, std::int64_t column,
                     std::uint8_t* panel) {
  const auto put = [&](std::int64_t i, float value) {
    std::memcpy(panel + (i * kPanelColumns + column) * 4, &value, 4);
  };
  if (float_source(source)) {
    const std::int64_t bytes = block_shape(source).bytes;
    for (std::int64_t i = 0; i < k; ++i, row += bytes) {
      float value;
      read_floats(source, row, 1, &value);
      put(i, value);
    }
    return;
  }
  const bool table = has_table(packed_format(source));
  SourceGroup group;
  for (std::int64_t g = 0; g < k / kGroup; ++g) {
    read_group(source, row, g, group);
    for (int i = 0; i < kGroup; ++i) {
      put(g * kGroup + i,
          group.scale[i / 16] * static_cast<float>(table ? kTable4[group.q[i]] : group.q[i]) + group.minimum[i / 16]);
    }
  }
}

void pack_column_16_bits(const std::uint8_t* row, std::int64_t k, std::int64_t column, std::uint8_t* panel) {
  for (std::int64_t i = 0; i < k; ++i) std::memcpy(panel + (i * kPanelColumns + column) * 2, row + i * 2, 2);
}

// These write 32 numbers of a column of a group: as nibbles, as pairs of bits, as bits. `vectors` points at the
// column's bytes.
void write_nibbles(const std::uint8_t* q, std::uint8_t* vectors) {
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 4; ++i) {
      vectors[j * kVectorBytes + i] = static_cast<std::uint8_t>(q[8 * j + i] | q[8 * j + 4 + i] << 4);
    }
  }
}

void write_pairs_of_bits(const std::uint8_t* q, std::uint8_t* vectors) {
  for (int h = 0; h < 2; ++h) {
    for (int i = 0; i < 4; ++i) {
      const std::uint8_t* from = q + 16 * h + i;
      const int pairs = from[0] | from[4] << 2 | from[8] << 4 | from[12] << 6;
      vectors[h * kVectorBytes + i] = static_cast<std::uint8_t>(pairs);
    }
  }
}

void write_bits(const std::uint8_t* q, std::uint8_t* vector) {
  for (int i = 0; i < 4; ++i) {
    int bits = 0;
    for (int b = 0; b < 8; ++b) bits |= q[4 * b + i] << b;
    vector[i] = static_cast<std::uint8_t>(bits);
  }
}

void write_quants(const GroupLayout& layout, const std::int8_t* q, std::uint8_t* vectors) {
  if (layout.bits == 8) {
    for (int i = 0; i < kGroup; ++i) {
      vectors[i / 4 * kVectorBytes + i % 4] = static_cast<std::uint8_t>(q[i] + layout.offset);
    }
    return;
  }
  const int low_bits = layout.bits < 4 ? 2 : 4;
  std::uint8_t low[kGroup], high[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    const int quant = q[i] + layout.offset;
    low[i] = static_cast<std::uint8_t>(quant & ((1 << low_bits) - 1));
    high[i] = static_cast<std::uint8_t>(quant >> low_bits);
  }
  if (low_bits == 2) {
    write_pairs_of_bits(low, vectors);
  } else {
    write_nibbles(low, vectors);
  }
  std::uint8_t* upper = vectors + low_bits * kVectorBytes;  // after 2 or 4 vectors
  if (layout.bits - low_bits == 1) write_bits(high, upper);
  if (layout.bits - low_bits == 2) write_pairs_of_bits(high, upper);
}

int quant(const GroupLayout& layout, int i, const std::uint8_t* vectors) {
  const int bits = layout.bits;
  if (bits == 8) {
    const std::uint8_t byte = vectors[i / 4 * kVectorBytes + i % 4];
    return layout.offset == 0 ? static_cast<std::int8_t>(byte) : byte;
  }
  const auto pair = [i](const std::uint8_t* v) { return v[i / 16 * kVectorBytes + i % 4] >> (i / 4 % 4 * 2) & 3; };
  const auto single = [i](const std::uint8_t* v) { return v[i % 4] >> i / 4 & 1; };
  if (bits < 4) return pair(vectors) | (bits == 3 ? single(vectors + 2 * kVectorBytes) << 2 : 0);
  const int low = vectors[i / 8 * kVectorBytes + i % 4] >> (i % 8 < 4 ? 0 : 4) & 15;
  const std::uint8_t* upper = vectors + 4 * kVectorBytes;
  return low | (bits == 5 ? single(upper) : bits == 6 ? pair(upper) : 0) << 4;
}

void write_two_level_scale(const GroupLayout& layout, const TwoLevelScale& f, std::int64_t place, std::int64_t column,
                           std::uint8_t* header) {
  write_half(header + column * 2, f.d);
  write_half(header + 32 + column * 2, layout.has_minimum ? f.m ^ 0x8000 : 0);
  std::uint8_t* factors = header + layout.factors(place) + column;
  if (layout.parts == 1 && layout.has_minimum) {
    std::uint8_t& low = header[layout.low_factors(place) + column];
    factors[0] = static_cast<std::uint8_t>(f.s[0] | f.t[0] >> 4 << 6);
    low = static_cast<std::uint8_t>(place < 4 ? f.t[0] & 15 : low | (f.t[0] & 15) << 4);
    return;
  }
  for (int h = 0; h < layout.parts; ++h) factors[16 * h] = static_cast<std::uint8_t>(f.s[h] | f.t[h] << 4);
}

// The scale that all blocks of a row have.
float channel_scale(SourceType source, const std::uint8_t* row, std::int64_t row_index, std::int64_t groups) {
  const std::int64_t bytes = block_shape(source).bytes;
  for (std::int64_t g = 1; g < groups; ++g) {
    if (read<std::uint16_t>(row + g * bytes) != read<std::uint16_t>(row)) {
      refuse(std::string(name(source)) + " scale " +
             std::to_string(half_to_float(read<std::uint16_t>(row + g * bytes))) + " of row " +
             std::to_string(row_index) + ", block " + std::to_string(g) + ": the row begins with " +
             std::to_string(half_to_float(read<std::uint16_t>(row))));
    }
  }
  return half_to_float(read<std::uint16_t>(row));
}

void pack_column_groups(SourceType source, WeightFormat target, const std::uint8_t* row, std::int64_t row_index,
                        std::int64_t groups, std::int64_t column, std::uint8_t* panel) {
  const GroupLayout layout = group_layout(target);
  if (channel_scales(target)) {
    const float scale = channel_scale(source, row, row_index, groups);
    std::memcpy(panel + column * 4, &scale, 4);
  }
  SourceGroup group;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::uint8_t* header = panel + panel_header_bytes(target) + g / layout.groups * layout.block_bytes();
    const std::int64_t place = g % layout.groups;
    read_group(source, row, g, group);
    if (two_level(target)) {
      write_two_level_scale(layout, read_two_level_scale(source, row, g), place, column, header);
    } else if (!channel_scales(target)) {
      write_half(header + column * 2, float_to_half(group.scale[0]));
      if (layout.has_minimum) write_half(header + 32 + column * 2, float_to_half(group.minimum[0]));
    }
    std::uint8_t* vectors = header + layout.header_bytes + place * layout.group_bytes + column * 4;
    write_quants(layout, group.q, vectors);
  }
}

void dequantize_groups(const PackedMatrix& w, std::int64_t column, const std::uint8_t* panel, float* out) {
  const GroupLayout layout = group_layout(w.format);
  for (std::int64_t g = 0; g < w.k / kGroup; ++g, out += kGroup) {
    const std::uint8_t* header = panel + panel_header_bytes(w.format) + g / layout.groups * layout.block_bytes();
    const std::int64_t place = g % layout.groups;
    const std::uint8_t* factors = header + layout.factors(place) + column;
    const std::uint8_t* vectors = header + layout.header_bytes + place * layout.group_bytes + column * 4;
    const float d = channel_scales(w.format) ? read<float>(panel + column * 4)
                                             : half_to_float(read<std::uint16_t>(header + column * 2));
    const float e = layout.has_minimum ? half_to_float(read<std::uint16_t>(header + 32 + column * 2)) : 0;
    for (int h = 0; h < 2; ++h) {
      float scale = d, minimum = e;
      if (two_level(w.format)) {
        const std::uint8_t factor = factors[layout.parts == 1 ? 0 : 16 * h];
        if (!layout.has_minimum) {
          scale *= static_cast<float>(static_cast<std::int8_t>(factor));
        } else if (layout.parts == 1) {
          const int low = header[layout.low_factors(place) + column] >> (place / 4 * 4) & 15;
          scale *= static_cast<float>(factor & 63), minimum *= static_cast<float>(factor >> 6 << 4 | low);
        } else {
          scale *= static_cast<float>(factor & 15), minimum *= static_cast<float>(factor >> 4);
        }
      }
      for (int i = 16 * h; i < 16 * h + 16; ++i) {
        const int q = quant(layout, i, vectors);
        out[i] = scale * static_cast<float>(has_table(w.format) ? kTable4[q] : q - layout.offset);
        if (layout.has_minimum) out[i] += minimum;
      }
    }
  }
}

}  // namespace

const char* name(WeightFormat format) {
  switch (format) {
    case WeightFormat::F32:
      return "F32";
    case WeightFormat::F16:
      return "F16";
    case WeightFormat::BF16:
      return "BF16";
    case WeightFormat::INT8_G32:
      return "INT8_G32";
    case WeightFormat::TABLE4_G32:
      return "TABLE4_G32";
    case WeightFormat::TABLE4_K:
      return "TABLE4_K";
    case WeightFormat::INT4_G32:
      return "INT4_G32";
    case WeightFormat::INT5_G32:
      return "INT5_G32";
    case WeightFormat::INT8_CHANNEL:
      return "INT8_CHANNEL";
    case WeightFormat::OFFSET4_G32:
      return "OFFSET4_G32";
    case WeightFormat::OFFSET5_G32:
      return "OFFSET5_G32";
    case WeightFormat::INT4_K:
      return "INT4_K";
    case WeightFormat::INT5_K:
      return "INT5_K";
    case WeightFormat::INT6_K:
      return "INT6_K";
    case WeightFormat::INT3_K:
      return "INT3_K";
    case WeightFormat::INT2_K:
      return "INT2_K";
  }
  refuse("unknown weight format " + std::to_string(static_cast<int>(format)));
}

WeightFormat packed_format(SourceType source) {
  switch (source) {
    case SourceType::F32:
      return WeightFormat::F32;
    case SourceType::F16:
      return WeightFormat::F16;
    case SourceType::BF16:
      return WeightFormat::BF16;
    case SourceType::Q8_0:
      return WeightFormat::INT8_G32;
    case SourceType::I8_CHANNEL:
      return WeightFormat::INT8_CHANNEL;
    case SourceType::IQ4_NL:
      return WeightFormat::TABLE4_G32;
    case SourceType::IQ4_XS:
      return WeightFormat::TABLE4_K;
    case SourceType::Q4_0:
      return WeightFormat::OFFSET4_G32;
    case SourceType::Q4_1:
      return WeightFormat::INT4_G32;
    case SourceType::Q5_0:
      return WeightFormat::OFFSET5_G32;
    case SourceType::Q5_1:
      return WeightFormat::INT5_G32;
    case SourceType::Q4_K:
      return WeightFormat::INT4_K;
    case SourceType::Q5_K:
      return WeightFormat::INT5_K;
    case SourceType::Q6_K:
      return WeightFormat::INT6_K;
    case SourceType::Q3_K:
      return WeightFormat::INT3_K;
    case SourceType::Q2_K:
      return WeightFormat::INT2_K;
  }
  refuse("unknown source type " + std::to_string(static_cast<int>(source)));
}

double bits_per_weight(WeightFormat format) {
  constexpr std::int64_t kInputs = 256;
  return static_cast<double>(panel_bytes(format, kInputs)) * 8 / static_cast<double>(kInputs * kPanelColumns);
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
  if (n > kMaxColumns || k > kMaxInputs) {
    refuse(std::to_string(n) + " x " + std::to_string(k) + ": a packed matrix has at most " +
           std::to_string(kMaxColumns) + " output columns of " + std::to_string(kMaxInputs) + " inputs");
  }
  if (k % k_unit(format) != 0) {
    refuse("k = " + std::to_string(k) + ": " + name(format) + " needs a multiple of " + std::to_string(k_unit(format)));
  }
  return static_cast<std::size_t>((n + kPanelColumns - 1) / kPanelColumns * panel_bytes(format, k));
}

void pack(SourceType source, WeightFormat target, const std::uint8_t* src, std::int64_t n, std::int64_t k,
          std::int64_t panel_begin, std::int64_t panel_end, std::uint8_t* dst) {
  if (target != WeightFormat::F32 && target != packed_format(source)) {
    refuse(std::string("cannot pack ") + name(source) + " as " + name(target) + ": only as " +
           name(packed_format(source)) + " or F32");
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
        case WeightFormat::BF16:
          pack_column_16_bits(row, k, c, panel);
          break;
        default:
          pack_column_groups(source, target, row, row_index, k / kGroup, c, panel);
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
    case WeightFormat::BF16:
      for (std::int64_t i = 0; i < w.k; ++i)
        read_floats(SourceType::BF16, panel + (i * kPanelColumns + column) * 2, 1, out + i);
      return;
    default:
      return dequantize_groups(w, column, panel, out);
  }
}

}  // namespace octavo
