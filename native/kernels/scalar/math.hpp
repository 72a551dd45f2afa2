// Small pieces shared by the scalar family's kernels: halves, rounding, exponentials, sums in lanes, the rotation of a
// head. Each is one lane of its namesake in avx2/math.hpp and avx2/rope.hpp.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "../attention.hpp"

namespace octavo::scalar {

static_assert(std::endian::native == std::endian::little, "packed weights and GGUF blocks are little-endian");

inline float to_float(float x) { return x; }
inline float to_float(std::int8_t x) { return static_cast<float>(x); }

inline float to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 1023u;
  // Zero or subnormal: a multiple of 2^-24, exact in float.
  const std::uint32_t tiny = std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f);
  const std::uint32_t rebiased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (exponent == 0 ? tiny : rebiased << 23 | mantissa << 13));
}

// The nearest half, ties to even; from 65520 on infinity; a NaN keeps the upper bits of its payload and becomes quiet.
inline std::uint16_t to_half(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 1023u);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5, whose last place is 2^-24, rounds to a multiple of that
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

// The nearest integer, ties to even, of |x| < 2^22 and < 2^51: that is where the last place of the sum is 1.
inline float round_to_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
inline double round_to_even(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

// exp(x) to about one unit in the last place: 0 below -87, exp(88) above 88, NaN for NaN. Cephes' expf polynomial after
// reduction to |r| <= ln 2 / 2.
inline float exp(float x) {
  if (!(x >= -87.0f)) return x < -87.0f ? 0.0f : x;
  if (x > 88.0f) x = 88.0f;
  const float n = round_to_even(x * 1.44269504088896341f);
  float r = std::fma(-n, 0.693359375f, x);
  r = std::fma(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = std::fma(p, r, c);
  }
  p = std::fma(p, r * r, r + 1.0f);
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(p) + (static_cast<std::int32_t>(n) << 23));
}

// For -700 <= x <= 0 to about 1e-16 relative, 0 below. Degree-13 Taylor after |r| <= ln 2 / 2.
inline double exp(double x) {
  if (!(x >= -700.0)) return x < -700.0 ? 0.0 : x;
  const double n = round_to_even(x * 1.4426950408889634);
  double r = std::fma(-n, 6.93145751953125e-1, x);
  r = std::fma(-n, 1.42860682030941723212e-6, r);
  double p = 1.0 / 6227020800.0;
  for (const double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                         1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0}) {
    p = std::fma(p, r, c);
  }
  return std::bit_cast<double>(std::bit_cast<std::int64_t>(p) + (static_cast<std::int64_t>(n) << 52));
}

// The sum of eight lanes in the order of a vector that is folded in halves.
inline float sum_of_lanes(const float* s) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

// out = x with its first rotary_dim elements rotated by the table's row; out may be x.
inline void rotate_head(const float* x, const float* row, std::int64_t rotary_dim, RopeStyle style,
                        std::int64_t head_dim, float* out) {
  const std::int64_t half = rotary_dim / 2;
  const bool interleaved = style == RopeStyle::INTERLEAVED;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
    const float a = x[first], b = x[second], cosine = row[i], sine = row[half + i];
    out[first] = std::fma(a, cosine, -(b * sine));
    out[second] = std::fma(b, cosine, a * sine);
  }
  for (std::int64_t d = rotary_dim; d < head_dim; ++d) out[d] = x[d];
}

}  // namespace octavo::scalar
