#include "source.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace octavo {
namespace {

template <class T>
T read(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float read_half(const std::uint8_t* p) { return half_to_float(read<std::uint16_t>(p)); }

// Field e of `Bits` bits: a run of `Run` bytes holds Run fields in its lowest bits, the next Run in the bits above, and
// so on.
template <int Run, int Bits>
int field(const std::uint8_t* p, int e) {
  constexpr int kPerRun = Run * 8 / Bits;
  const int within = e % kPerRun;
  return p[e / kPerRun * Run + within % Run] >> (within / Run * Bits) & ((1 << Bits) - 1);
}

// Fields e … e + 31 of Bits bits, where e is a multiple of 32 and a run has 32 bytes at least.
template <int Run, int Bits>
struct Fields {
  const std::uint8_t* p;
  int shift;
  Fields(const std::uint8_t* begin, int e) {
    constexpr int kPerRun = Run * 8 / Bits;
    p = begin + e / kPerRun * Run + e % kPerRun % Run;
    shift = e % kPerRun / Run * Bits;
  }
  int operator[](int i) const { return p[i] >> shift & ((1 << Bits) - 1); }
};

// In two loops, as no type has runs of fewer than 16 bytes of one shift: compilers make vectors of them.
template <class Quant>
void fill_quants(std::int8_t* q, Quant quant) {
  for (int i = 0; i < 16; ++i) q[i] = static_cast<std::int8_t>(quant(i));
  for (int i = 16; i < 32; ++i) q[i] = static_cast<std::int8_t>(quant(i));
}

template <class Quant>
void fill(SourceGroup& out, float scale, float minimum, Quant quant) {
  out.scale[0] = out.scale[1] = scale;
  out.minimum[0] = out.minimum[1] = minimum;
  fill_quants(out.q, quant);
}

template <class Quant>
void fill(SourceGroup& out, const TwoLevelScale& f, Quant quant) {
  const float d = half_to_float(f.d), m = half_to_float(f.m);
  for (int h = 0; h < 2; ++h) {
    out.scale[h] = d * static_cast<float>(f.s[h]);
    out.minimum[h] = -(m * static_cast<float>(f.t[h]));
  }
  fill_quants(out.q, quant);
}

}  // namespace

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
    case SourceType::Q5_0:
      return "Q5_0";
    case SourceType::Q5_1:
      return "Q5_1";
    case SourceType::Q2_K:
      return "Q2_K";
    case SourceType::Q3_K:
      return "Q3_K";
    case SourceType::Q4_K:
      return "Q4_K";
    case SourceType::Q5_K:
      return "Q5_K";
    case SourceType::Q6_K:
      return "Q6_K";
    case SourceType::IQ4_NL:
      return "IQ4_NL";
    case SourceType::IQ4_XS:
      return "IQ4_XS";
    case SourceType::I8_CHANNEL:
      return "I8_CHANNEL";
  }
  throw std::invalid_argument("unknown source type " + std::to_string(static_cast<int>(source)));
}

BlockShape block_shape(SourceType source) {
  switch (source) {
    case SourceType::F32:
      return {1, 4};
    case SourceType::F16:
    case SourceType::BF16:
      return {1, 2};
    case SourceType::Q8_0:
    case SourceType::I8_CHANNEL:
      return {32, 34};
    case SourceType::Q4_0:
    case SourceType::IQ4_NL:
      return {32, 18};
    case SourceType::Q4_1:
      return {32, 20};
    case SourceType::Q5_0:
      return {32, 22};
    case SourceType::Q5_1:
      return {32, 24};
    case SourceType::Q2_K:
      return {256, 84};
    case SourceType::Q3_K:
      return {256, 110};
    case SourceType::Q4_K:
      return {256, 144};
    case SourceType::Q5_K:
      return {256, 176};
    case SourceType::Q6_K:
      return {256, 210};
    case SourceType::IQ4_XS:
      return {256, 136};
  }
  throw std::invalid_argument("unknown source type " + std::to_string(static_cast<int>(source)));
}

TwoLevelScale read_two_level_scale(SourceType source, const std::uint8_t* row, std::int64_t g) {
  const std::uint8_t* b = row + g / 8 * block_shape(source).bytes;
  const auto i = static_cast<int>(g % 8);
  TwoLevelScale out{};
  const auto set = [&](int h, int s, int t) {
    out.s[h] = static_cast<std::int8_t>(s), out.t[h] = static_cast<std::uint8_t>(t);
  };
  switch (source) {
    case SourceType::Q4_K:
    case SourceType::Q5_K: {
      out.d = read<std::uint16_t>(b), out.m = read<std::uint16_t>(b + 2);
      const std::uint8_t* p = b + 4;  // 12 bytes: six bits of s and t of the first four groups, the rest around them
      const int s = i < 4 ? p[i] & 63 : (p[i + 4] & 15) | (p[i - 4] >> 6) << 4;
      const int t = i < 4 ? p[i + 4] & 63 : p[i + 4] >> 4 | (p[i] >> 6) << 4;
      set(0, s, t), set(1, s, t);
      break;
    }
    case SourceType::Q2_K:
      out.d = read<std::uint16_t>(b + 80), out.m = read<std::uint16_t>(b + 82);
      for (int h = 0; h < 2; ++h) set(h, b[2 * i + h] & 15, b[2 * i + h] >> 4);
      break;
    case SourceType::Q3_K:
      out.d = read<std::uint16_t>(b + 108);
      for (int h = 0; h < 2; ++h) {
        set(h, (field<8, 4>(b + 96, 2 * i + h) | field<4, 2>(b + 104, 2 * i + h) << 4) - 32, 0);
      }
      break;
    case SourceType::IQ4_XS: {
      out.d = read<std::uint16_t>(b);
      const int s = (field<1, 4>(b + 4, i) | field<1, 2>(b + 2, i) << 4) - 32;
      set(0, s, 0), set(1, s, 0);
      break;
    }
    case SourceType::Q6_K:
      out.d = read<std::uint16_t>(b + 208);
      for (int h = 0; h < 2; ++h) set(h, b[192 + 2 * i + h], 0);
      break;
    default:
      throw std::invalid_argument(std::string(name(source)) + " has no scales of two levels");
  }
  return out;
}

void read_group(SourceType source, const std::uint8_t* row, std::int64_t g, SourceGroup& out) {
  const BlockShape shape = block_shape(source);
  const std::int64_t groups = shape.length / 32;
  const std::uint8_t* b = row + g / groups * shape.bytes;
  const int sub = static_cast<int>(g % groups), e = 32 * sub;  // the group's and its first weight's place in the block
  switch (source) {
    case SourceType::F32:
    case SourceType::F16:
    case SourceType::BF16:
      break;
    case SourceType::Q8_0:
    case SourceType::I8_CHANNEL:
      return fill(out, read_half(b), 0, [=](int i) { return b[2 + i]; });
    case SourceType::Q4_0:
      return fill(out, read_half(b), 0, [=](int i) { return field<16, 4>(b + 2, i) - 8; });
    case SourceType::Q4_1:
      return fill(out, read_half(b), read_half(b + 2), [=](int i) { return field<16, 4>(b + 4, i); });
    case SourceType::Q5_0:
      return fill(out, read_half(b), 0,
                  [=](int i) { return (field<16, 4>(b + 6, i) | field<1, 1>(b + 2, i) << 4) - 16; });
    case SourceType::Q5_1:
      return fill(out, read_half(b), read_half(b + 2),
                  [=](int i) { return field<16, 4>(b + 8, i) | field<1, 1>(b + 4, i) << 4; });
    case SourceType::IQ4_NL:
      return fill(out, read_half(b), 0, [=](int i) { return field<16, 4>(b + 2, i); });
    case SourceType::Q4_K:
      return fill(out, read_two_level_scale(source, row, g), [q = Fields<32, 4>(b + 16, e)](int i) { return q[i]; });
    case SourceType::Q5_K:
      return fill(
          out, read_two_level_scale(source, row, g),
          [low = Fields<32, 4>(b + 48, e), high = Fields<32, 1>(b + 16, e)](int i) { return low[i] | high[i] << 4; });
    case SourceType::Q2_K:
      return fill(out, read_two_level_scale(source, row, g), [q = Fields<32, 2>(b + 16, e)](int i) { return q[i]; });
    case SourceType::Q3_K:
      return fill(
          out, read_two_level_scale(source, row, g),
          [low = Fields<32, 2>(b + 32, e), high = Fields<32, 1>(b, e)](int i) { return (low[i] | high[i] << 2) - 4; });
    case SourceType::Q6_K:
      return fill(out, read_two_level_scale(source, row, g),
                  [low = Fields<64, 4>(b, e), high = Fields<32, 2>(b + 128, e)](int i) {
                    return (low[i] | high[i] << 4) - 32;
                  });
    case SourceType::IQ4_XS:
      return fill(out, read_two_level_scale(source, row, g), [=](int i) { return field<16, 4>(b + 8 + 16 * sub, i); });
  }
  throw std::invalid_argument(std::string(name(source)) + " has no groups");
}

void read_floats(SourceType source, const std::uint8_t* row, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (source == SourceType::F32) {
      out[i] = read<float>(row + 4 * i);
    } else if (source == SourceType::F16) {
      out[i] = read_half(row + 2 * i);
    } else {
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(read<std::uint16_t>(row + 2 * i)) << 16);
    }
  }
}

}  // namespace octavo
