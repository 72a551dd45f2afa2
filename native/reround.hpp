// One scale for 32 weights that had two, or whose scale no half holds: among a few candidates the one with the least
// square error, every candidate judged as it will be stored, with its scale and minimum rounded to halves.
#pragma once
#include "source.hpp"

namespace octavo {

struct Rerounded {
  std::uint16_t scale, minimum;  // halves; no minimum (zero) in signed fits
  std::int8_t q[32];
};

// scale * q, -128 <= q <= 127. Exact but for the scale's rounding where a group's scales are multiples, up to four, of
// one number.
Rerounded reround_signed(const SourceGroup& group);

// scale * q + minimum, 0 <= q <= most.
Rerounded reround_with_minimum(const SourceGroup& group, int most);

}  // namespace octavo
