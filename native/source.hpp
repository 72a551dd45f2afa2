// The quantised and float types of GGUF tensors, as a packer reads them: whole rows of blocks, decoded a group of 32
// weights at a time to integers with their scales. Layouts: ggml-org/ggml, src/ggml-common.h, little-endian.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace octavo {

// Row-major (n, k) blocks as GGUF stores them. With d, m halves; the offsets are in source.cpp.
enum class SourceType : std::uint8_t {
  F32,
  F16,
  BF16,
  Q8_0,        // blocks of 32: d * q, q signed bytes                                     (34 bytes)
  Q4_0,        // blocks of 32: d * (q - 8), q nibbles                                    (18)
  Q4_1,        // blocks of 32: d * q + m                                                 (20)
  Q5_0,        // blocks of 32: d * (q - 16), q of 5 bits                                 (22)
  Q5_1,        // blocks of 32: d * q + m                                                 (24)
  Q2_K,        // blocks of 256: (d * s) * q - (m * t), 4-bit s and t for each 16         (84)
  Q3_K,        // blocks of 256: (d * (s - 32)) * (q - 4), 6-bit s for each 16            (110)
  Q4_K,        // blocks of 256: (d * s) * q - (m * t), 6-bit s and t for each 32         (144)
  Q5_K,        // as Q4_K, q of 5 bits                                                    (176)
  Q6_K,        // blocks of 256: (d * s) * (q - 32), s a signed byte for each 16          (210)
  IQ4_NL,      // blocks of 32: d * table[q], q nibbles                                   (18)
  IQ4_XS,      // blocks of 256: (d * (s - 32)) * table[q], 6-bit s for each 32           (136)
  I8_CHANNEL,  // no type of GGUF's: Q8_0 with the same d in all blocks of a row         (34)
};

const char* name(SourceType source);  // throws std::invalid_argument if there is no such type

// Weights and bytes of one block.
struct BlockShape {
  std::int64_t length;
  std::int64_t bytes;
};

BlockShape block_shape(SourceType source);

constexpr bool float_source(SourceType source) {
  return source == SourceType::F32 || source == SourceType::F16 || source == SourceType::BF16;
}

// 32 consecutive weights: weight i is scale[i / 16] * q[i] + minimum[i / 16], each operation rounded once; in IQ4_NL
// and IQ4_XS kTable4[q[i]] takes the place of q[i].
struct SourceGroup {
  float scale[2], minimum[2];
  std::int8_t q[32];  // signed in Q8_0, I8_CHANNEL, Q4_0, Q5_0, Q3_K and Q6_K, and 0 … 2^bits - 1 elsewhere
};

// Group g of a row of a type that is no float.
void read_group(SourceType source, const std::uint8_t* row, std::int64_t g, SourceGroup& out);

// The numbers that types of two levels multiply for group g: scale[h] is d * s[h], minimum[h] is -m * t[h]. m is 0
// where there is no minimum.
struct TwoLevelScale {
  std::uint16_t d, m;  // halves
  std::int8_t s[2];
  std::uint8_t t[2];
};

TwoLevelScale read_two_level_scale(SourceType source, const std::uint8_t* row, std::int64_t g);

// `count` weights of a float type.
void read_floats(SourceType source, const std::uint8_t* row, std::int64_t count, float* out);

constexpr float half_to_float(std::uint16_t half) {
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

// The nearest half, ties to even; beyond the greatest, infinity; NaN stays NaN.
constexpr std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) {  // 2^16 and more, infinity, NaN
    return static_cast<std::uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | rounded >> 13);
}

}  // namespace octavo
