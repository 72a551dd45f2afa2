// What the tests of packing and of linear kernels share: random tensors in their source layouts, and an independent,
// plain reading of every weight. Each test includes it once.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "pack.hpp"
#include "support.hpp"

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition) && ++octavo::tests::failures <= 20) {        \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

namespace octavo::tests {

inline double half_value(std::uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

inline std::uint16_t load16(const std::uint8_t* p) { return static_cast<std::uint16_t>(p[0] | p[1] << 8); }
inline void store16(std::uint8_t* p, unsigned v) {
  p[0] = static_cast<std::uint8_t>(v), p[1] = static_cast<std::uint8_t>(v >> 8);
}

inline constexpr SourceType kSources[] = {
    SourceType::F32,  SourceType::F16,    SourceType::BF16,   SourceType::Q8_0,      SourceType::Q4_0, SourceType::Q4_1,
    SourceType::Q5_0, SourceType::Q5_1,   SourceType::Q2_K,   SourceType::Q3_K,      SourceType::Q4_K, SourceType::Q5_K,
    SourceType::Q6_K, SourceType::IQ4_NL, SourceType::IQ4_XS, SourceType::I8_CHANNEL};

// k, or the next multiple of what a row of that type may hold.
inline std::int64_t whole_blocks(SourceType type, std::int64_t k) {
  const std::int64_t length = block_shape(type).length;
  return (k + length - 1) / length * length;
}

// A random (n, k) tensor in its source layout: extreme quants and subnormal scales included.
inline std::vector<std::uint8_t> random_source(SourceType type, std::int64_t n, std::int64_t k, Random& random) {
  const std::size_t row = source_row_bytes(type, k);
  std::vector<std::uint8_t> data(static_cast<std::size_t>(n) * row);
  for (auto& byte : data) byte = static_cast<std::uint8_t>(random());
  std::normal_distribution<float> normal;
  const auto scale = [&] {
    return (random() & 0x8000) | (random() % 16 ? 0x1c00 + random() % 0x1000 : random() % 1024);
  };
  const auto extreme = [&](std::uint8_t* q, int count) {
    if (random() % 4 == 0) std::memset(q, random() % 2 ? 0xff : 0x80, static_cast<std::size_t>(count));
  };
  const std::int64_t elements = n * k;
  switch (type) {
    case SourceType::F32:
      for (std::int64_t i = 0; i < elements; ++i) {
        const float v = normal(random);
        std::memcpy(&data[static_cast<std::size_t>(i) * 4], &v, 4);
      }
      break;
    case SourceType::F16:
      for (std::int64_t i = 0; i < elements; ++i) store16(&data[static_cast<std::size_t>(i) * 2], scale());
      break;
    case SourceType::BF16:
      for (std::int64_t i = 0; i < elements; ++i) {
        store16(&data[static_cast<std::size_t>(i) * 2], std::bit_cast<std::uint32_t>(normal(random)) >> 16);
      }
      break;
    default: {  // where a block has its halves
      const auto bytes = static_cast<std::size_t>(block_shape(type).bytes);
      std::vector<std::size_t> halves{0};
      if (type == SourceType::Q4_1 || type == SourceType::Q5_1 || type == SourceType::Q4_K || type == SourceType::Q5_K)
        halves = {0, 2};
      if (type == SourceType::Q2_K) halves = {80, 82};
      if (type == SourceType::Q3_K) halves = {108};
      if (type == SourceType::Q6_K) halves = {208};
      for (std::size_t b = 0; b < data.size(); b += bytes) {
        extreme(&data[b], static_cast<int>(bytes));
        for (const std::size_t at : halves) store16(&data[b + at], scale());
        if (type == SourceType::I8_CHANNEL) std::memcpy(&data[b], &data[b / row * row], 2);
      }
    }
  }
  return data;
}

// One weight as the source defines it: scale * q + minimum.
struct Weight {
  double scale, q, minimum;
  float value() const { return static_cast<float>(static_cast<float>(scale * q) + minimum); }
};

inline double iq4_level(int q) {
  constexpr int kLevels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kLevels[q];
}

inline Weight source_weight(SourceType type, const std::uint8_t* row, std::int64_t i) {
  switch (type) {
    case SourceType::F32: {
      float v;
      std::memcpy(&v, row + i * 4, 4);
      return {1, v, 0};
    }
    case SourceType::F16:
      return {1, half_value(load16(row + i * 2)), 0};
    case SourceType::BF16:
      return {1, std::bit_cast<float>(static_cast<std::uint32_t>(load16(row + i * 2)) << 16), 0};
    case SourceType::I8_CHANNEL:
    case SourceType::Q8_0: {
      const std::uint8_t* b = row + i / 32 * 34;
      return {half_value(load16(b)), static_cast<double>(static_cast<std::int8_t>(b[2 + i % 32])), 0};
    }
    case SourceType::Q4_0:
    case SourceType::Q4_1: {
      const bool with_minimum = type == SourceType::Q4_1;
      const std::uint8_t* b = row + i / 32 * (with_minimum ? 20 : 18);
      const std::uint8_t byte = b[(with_minimum ? 4 : 2) + i % 16];
      const double d = half_value(load16(b));
      return {d, (i % 32 < 16 ? byte & 15 : byte >> 4) - (with_minimum ? 0.0 : 8.0),
              with_minimum ? half_value(load16(b + 2)) : 0};
    }
    case SourceType::Q5_0:
    case SourceType::Q5_1: {
      const bool with_minimum = type == SourceType::Q5_1;
      const std::uint8_t* b = row + i / 32 * (with_minimum ? 24 : 22);
      const std::uint8_t* bits = b + (with_minimum ? 4 : 2);
      const std::int64_t j = i % 32;
      const int low = j < 16 ? bits[4 + j] & 15 : bits[4 + j - 16] >> 4;
      const double d = half_value(load16(b));
      return {d, low + 16 * (bits[j / 8] >> j % 8 & 1) - (with_minimum ? 0.0 : 16.0),
              with_minimum ? half_value(load16(b + 2)) : 0};
    }
    case SourceType::IQ4_NL: {
      const std::uint8_t* b = row + i / 32 * 18;
      return {half_value(load16(b)), iq4_level(b[2 + i % 16] >> (i % 32 / 16 * 4) & 15), 0};
    }
    case SourceType::IQ4_XS: {
      const std::uint8_t* b = row + i / 256 * 136;
      const std::int64_t g = i % 256 / 32, j = i % 32;
      const int s = (b[4 + g / 2] >> (4 * (g % 2)) & 15) + 16 * (load16(b + 2) >> (2 * g) & 3);
      return {half_value(load16(b)) * (s - 32), iq4_level(b[8 + 16 * g + j % 16] >> (j / 16 * 4) & 15), 0};
    }
    case SourceType::Q4_K:
    case SourceType::Q5_K: {
      const bool five = type == SourceType::Q5_K;
      const std::uint8_t* b = row + i / 256 * (five ? 176 : 144);
      const std::int64_t e = i % 256, g = e / 32, j = e % 32;
      const std::uint8_t* p = b + 4;
      const int s = g < 4 ? p[g] % 64 : p[g + 4] % 16 + p[g - 4] / 64 * 16;
      const int t = g < 4 ? p[g + 4] % 64 : p[g + 4] / 16 + p[g] / 64 * 16;
      const int low = b[(five ? 48 : 16) + e / 64 * 32 + j] >> (g % 2 * 4) & 15;
      const int high = five ? b[16 + j] >> g & 1 : 0;
      return {half_value(load16(b)) * s, static_cast<double>(low + 16 * high), -half_value(load16(b + 2)) * t};
    }
    case SourceType::Q2_K: {
      const std::uint8_t* b = row + i / 256 * 84;
      const std::int64_t e = i % 256;
      const int q = b[16 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3;
      return {half_value(load16(b + 80)) * (b[e / 16] % 16), static_cast<double>(q),
              -half_value(load16(b + 82)) * (b[e / 16] / 16)};
    }
    case SourceType::Q3_K: {
      const std::uint8_t* b = row + i / 256 * 110;
      const std::int64_t e = i % 256, h = e / 16;
      const int s = (h < 8 ? b[96 + h] % 16 : b[96 + h - 8] / 16) + 16 * (b[104 + h % 4] >> (h / 4 * 2) & 3);
      const int q = (b[32 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3) - (b[e % 32] >> (e / 32) & 1 ? 0 : 4);
      return {half_value(load16(b + 108)) * (s - 32), static_cast<double>(q), 0};
    }
    case SourceType::Q6_K: {
      const std::uint8_t* b = row + i / 256 * 210;
      const std::int64_t e = i % 256, n = e / 128, j = e % 32, part = e % 128 / 32;
      const int low = b[64 * n + j + (part % 2 ? 32 : 0)] >> (part / 2 * 4) & 15;
      const int high = b[128 + 32 * n + j] >> (2 * part) & 3;
      return {half_value(load16(b + 208)) * static_cast<std::int8_t>(b[192 + e / 16]),
              static_cast<double>(low + 16 * high - 32), 0};
    }
  }
  std::abort();
}

inline bool same(const void* a, const void* b, std::size_t bytes) { return std::memcmp(a, b, bytes) == 0; }

}  // namespace octavo::tests
