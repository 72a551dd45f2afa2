// The scalar family's linear kernels. A panel passes over blocks of rows; integer weights are first spread out, a group
// of 32 inputs at a time, so that every format with scales (and minimums) is multiplied by the same loop.
#include "math.hpp"
#include "scalar.hpp"

namespace octavo {
namespace scalar {
namespace {

constexpr std::int64_t kBlockRows = 32;  // rows that share the spreading of a group

std::uint16_t read_half(const std::uint8_t* p) {
  std::uint16_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return half;
}

// One group of 32. Its largest magnitude decides; no comparison holds for NaN.
void quantize_group(const float* x, std::int8_t* q, float* scale, float* sum, std::int16_t* part_sum) {
  constexpr float kLeast = 127 * 0x1p-126f;  // below it the scale would be subnormal
  constexpr float kMost = 0x1p120f;          // from here on the sum might overflow
  float most = 0.0f;
  bool sound = true;
  for (int i = 0; i < kGroup; ++i) {
    const float magnitude = std::fabs(x[i]);
    sound &= magnitude < kMost;
    most = magnitude > most ? magnitude : most;
  }
  if (!sound || most < kLeast) {
    for (int i = 0; i < kGroup; ++i) q[i] = 0;
    *scale = *sum = sound ? 0.0f : __builtin_nanf("");
    part_sum[0] = part_sum[1] = 0;
    return;
  }
  *scale = most / 127.0f;
  const float inverse = 127.0f / most;
  std::int32_t totals[2] = {};
  for (int i = 0; i < kGroup; ++i) {
    const auto n = static_cast<std::int32_t>(round_to_even(x[i] * inverse));
    q[i] = static_cast<std::int8_t>(n);
    totals[i / kPart] += n;
  }
  *sum = *scale * static_cast<float>(totals[0] + totals[1]);
  for (int h = 0; h < 2; ++h) part_sum[h] = static_cast<std::int16_t>(totals[h]);
}

void quantize_rows(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const QuantisedRows& out) {
  const std::int64_t groups = k / kGroup;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = r * groups + g;
      quantize_group(x + r * ldx + g * kGroup, out.q + at * kGroup, out.scale + at, out.sum + at,
                     out.part_sum + 2 * at);
    }
  }
}

// Sums of one row and one panel so far.
using Sums = float[kPanelColumns];

// (acc + bias) + residual for one row of one panel, in that order; columns beyond the matrix are dropped.
void store_row(const LinearOutput& o, std::int64_t row, std::int64_t column, std::int64_t n, const Sums& acc) {
  for (std::int64_t c = 0; c < kPanelColumns && column + c < n; ++c) {
    float value = acc[c];
    if (o.bias != nullptr) value += o.bias[column + c];
    if (o.residual != nullptr) value += o.residual[row * o.ldr + column + c];
    o.out[row * o.ldo + column + c] = value;
  }
}

struct Bf16 {
  std::uint16_t upper;  // half of a float
};

float weight_of(float x) { return x; }
float weight_of(std::uint16_t half) { return to_float(half); }
float weight_of(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.upper) << 16); }

// F32, F16 and BF16 weights: one chain of FMAs over k per output element.
template <class Element>
void multiply_floats(const std::uint8_t* panel, const Activations& a, std::int64_t row, std::int64_t rows,
                     std::int64_t k, Sums* acc) {
  const auto* weights = reinterpret_cast<const Element*>(panel);
  for (std::int64_t i = 0; i < k; ++i, weights += kPanelColumns) {
    float w[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) w[c] = weight_of(weights[c]);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float x = a.f[(row + r) * a.ldf + i];
      for (int c = 0; c < kPanelColumns; ++c) acc[r][c] = std::fma(x, w[c], acc[r][c]);
    }
  }
}

// A group of 32 inputs of a panel, spread out: a weight is scale * q + minimum, with a scale and a minimum for each
// `parts`-th of the group.
struct Group {
  std::int8_t q[kPanelColumns][kGroup];
  float scale[2][kPanelColumns];
  float minimum[2][kPanelColumns];
  int parts;
  bool has_minimum;
};

// Quant i of the column whose bytes in a group's first vector are at `vectors`.
int quant(int bits, const std::uint8_t* vectors, int i) {
  const auto pair = [i](const std::uint8_t* v) { return v[i / 16 * kVectorBytes + i % 4] >> (i / 4 % 4 * 2) & 3; };
  const auto single = [i](const std::uint8_t* v) { return v[i % 4] >> i / 4 & 1; };
  if (bits == 8) return vectors[i / 4 * kVectorBytes + i % 4];
  if (bits < 4) return pair(vectors) | (bits == 3 ? single(vectors + 2 * kVectorBytes) << 2 : 0);
  const int byte = vectors[i / 8 * kVectorBytes + i % 4];
  const int low = i % 8 < 4 ? byte & 15 : byte >> 4;
  const std::uint8_t* upper = vectors + 4 * kVectorBytes;
  return low | (bits == 5 ? single(upper) : bits == 6 ? pair(upper) : 0) << 4;
}

// In two-level formats the halves are multiplied by a byte for each scale and minimum, exactly.
void spread(WeightFormat format, const std::uint8_t* panel, std::int64_t g, Group& group) {
  const GroupLayout layout = group_layout(format);
  const std::uint8_t* header = panel + panel_header_bytes(format) + g / layout.groups * layout.block_bytes();
  const std::int64_t place = g % layout.groups;
  const std::uint8_t* vectors = header + layout.header_bytes + place * layout.group_bytes;
  group.parts = layout.parts;
  group.has_minimum = layout.has_minimum;
  for (int c = 0; c < kPanelColumns; ++c) {
    const float d = channel_scales(format) ? 1.0f : to_float(read_half(header + 2 * c));
    const float e = layout.has_minimum ? to_float(read_half(header + 2 * kPanelColumns + 2 * c)) : 0;
    group.scale[0][c] = d, group.minimum[0][c] = e;
    for (int part = 0; two_level(format) && part < layout.parts; ++part) {
      const std::uint8_t* factor = header + layout.factors(place) + part * kPanelColumns + c;
      int s = *factor, t = 0;
      if (!layout.has_minimum) {
        s = static_cast<std::int8_t>(s);
      } else if (layout.parts == 1) {
        t = s >> 6 << 4 | (header[layout.low_factors(place) + c] >> (place / 4 * 4) & 15), s &= 63;
      } else {
        t = s >> 4, s &= 15;
      }
      group.scale[part][c] = d * static_cast<float>(s);
      group.minimum[part][c] = e * static_cast<float>(t);
    }
    for (int i = 0; i < kGroup; ++i) {
      const int q = quant(layout.bits, vectors + 4 * c, i);
      group.q[c][i] = has_table(format) ? kTable4[q] : static_cast<std::int8_t>(q - layout.offset);
    }
  }
}

// Integer weights: per group, or each half of it, an exact sum S, then acc = fma(S, scale * x_scale, acc) and, where
// there are minimums, acc = fma(minimum, x_sum, acc). x_sum is a group's or x_scale * a half's. Where scales are
// columns', scale is 1 here, and sums are multiplied by theirs in the end.
void multiply_groups(WeightFormat format, const std::uint8_t* panel, const Activations& a, std::int64_t row,
                     std::int64_t rows, std::int64_t k, Sums* acc) {
  const std::int64_t groups = k / kGroup;
  Group group;
  for (std::int64_t g = 0; g < groups; ++g) {
    spread(format, panel, g, group);
    const auto length = kGroup / group.parts;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = (row + r) * groups + g;
      for (int part = 0; part < group.parts; ++part) {
        const std::int8_t* x = a.q + at * kGroup + part * length;
        const float x_sum = group.parts == 1 ? a.sum[at] : a.scale[at] * static_cast<float>(a.part_sum[2 * at + part]);
        for (int c = 0; c < kPanelColumns; ++c) {
          const std::int8_t* q = group.q[c] + part * length;
          std::int32_t sum = 0;
          for (int i = 0; i < length; ++i) sum += q[i] * x[i];
          acc[r][c] = std::fma(static_cast<float>(sum), group.scale[part][c] * a.scale[at], acc[r][c]);
          if (group.has_minimum) acc[r][c] = std::fma(group.minimum[part][c], x_sum, acc[r][c]);
        }
      }
    }
  }
}

void multiply(const PackedMatrix& w, const std::uint8_t* panel, const Activations& a, std::int64_t row,
              std::int64_t rows, Sums* acc) {
  switch (w.format) {
    case WeightFormat::F32:
      return multiply_floats<float>(panel, a, row, rows, w.k, acc);
    case WeightFormat::F16:
      return multiply_floats<std::uint16_t>(panel, a, row, rows, w.k, acc);
    case WeightFormat::BF16:
      return multiply_floats<Bf16>(panel, a, row, rows, w.k, acc);
    default:
      return multiply_groups(w.format, panel, a, row, rows, w.k, acc);
  }
}

void scale_columns(const std::uint8_t* panel, std::int64_t rows, Sums* acc) {
  for (int c = 0; c < kPanelColumns; ++c) {
    float scale;
    __builtin_memcpy(&scale, panel + 4 * c, sizeof scale);
    for (std::int64_t r = 0; r < rows; ++r) acc[r][c] *= scale;
  }
}

void linear(const PackedMatrix& w, const Activations& a, std::int64_t m, std::int64_t panel_begin,
            std::int64_t panel_end, const LinearOutput& out) {
  const std::int64_t bytes = panel_bytes(w.format, w.k);
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (std::int64_t row = 0; row < m; row += kBlockRows) {
      const std::int64_t rows = m - row < kBlockRows ? m - row : kBlockRows;
      Sums acc[kBlockRows] = {};
      multiply(w, w.data + panel * bytes, a, row, rows, acc);
      if (channel_scales(w.format)) scale_columns(w.data + panel * bytes, rows, acc);
      for (std::int64_t r = 0; r < rows; ++r) store_row(out, row + r, panel * kPanelColumns, w.n, acc[r]);
    }
  }
}

}  // namespace
}  // namespace scalar

const LinearKernels& scalar_linear_kernels() {
  using namespace scalar;
  static constexpr LinearKernels kernels{quantize_rows, linear};
  return kernels;
}

}  // namespace octavo
