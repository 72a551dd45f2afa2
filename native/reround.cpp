#include "reround.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace octavo {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22; the same on every machine, and without a call.
float nearest(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

class Fit {
 public:
  Fit(const float (&values)[32], float least, float most) : values_(values), least_(least), most_(most) {
    best_.scale = best_.minimum = 0;
    std::fill_n(best_.q, 32, std::int8_t{0});
  }

  // Keeps this scale and minimum if they are better than all before.
  void consider(float scale, float minimum) {
    const std::uint16_t scale_half = float_to_half(scale), minimum_half = float_to_half(minimum);
    const float s = half_to_float(scale_half), m = half_to_float(minimum_half);
    if (s == 0 || !std::isfinite(s) || !std::isfinite(m)) return;
    float error = 0, q[32];
    for (int i = 0; i < 32; ++i) {
      q[i] = nearest(std::min(std::max((values_[i] - m) / s, least_), most_));
      const float off = s * q[i] + m - values_[i];
      error += off * off;
    }
    if (!(error < error_)) return;
    error_ = error;
    best_.scale = scale_half, best_.minimum = minimum_half;
    for (int i = 0; i < 32; ++i) best_.q[i] = static_cast<std::int8_t>(q[i]);
  }

  // The scale and minimum that fit the best quants so far in the least squares' sense.
  void refine() {
    float sum_q = 0, sum_qq = 0, sum_v = 0, sum_qv = 0;
    for (int i = 0; i < 32; ++i) {
      const float q = best_.q[i];
      sum_q += q, sum_qq += q * q, sum_v += values_[i], sum_qv += q * values_[i];
    }
    const float determinant = 32 * sum_qq - sum_q * sum_q;
    if (determinant <= 0) return;
    const float scale = (32 * sum_qv - sum_q * sum_v) / determinant;
    consider(scale, (sum_v - scale * sum_q) / 32);
  }

  const Rerounded& best() const { return best_; }

 private:
  const float (&values_)[32];
  float least_, most_;
  float error_ = std::numeric_limits<float>::infinity();
  Rerounded best_;
};

// False if one of them is not finite.
bool values_of(const SourceGroup& group, float (&values)[32]) {
  bool finite = true;
  for (int i = 0; i < 32; ++i) {
    values[i] = group.scale[i / 16] * static_cast<float>(group.q[i]) + group.minimum[i / 16];
    finite &= std::isfinite(values[i]);
  }
  return finite;
}

constexpr Rerounded kNotFinite{0x7e00, 0, {}};

}  // namespace

Rerounded reround_signed(const SourceGroup& group) {
  float values[32];
  if (!values_of(group, values)) return kNotFinite;
  const auto [lowest, highest] = std::minmax_element(values, values + 32);
  const float least = *lowest, most = *highest;
  if (least == 0 && most == 0) return {};
  Fit fit(values, -128, 127);
  fit.consider(std::max(-least, most) / 127, 0);
  fit.consider(std::max(-least / 128, most / 127), 0);
  fit.consider(-std::max(most / 128, -least / 127), 0);
  for (const float scale : group.scale) {
    for (int divisor = 1; divisor <= 4; ++divisor) fit.consider(scale / static_cast<float>(divisor), 0);
  }
  return fit.best();
}

Rerounded reround_with_minimum(const SourceGroup& group, int levels) {
  float values[32];
  if (!values_of(group, values)) return kNotFinite;
  const auto [lowest, highest] = std::minmax_element(values, values + 32);
  const float least = *lowest, most = *highest;
  Fit fit(values, 0, static_cast<float>(levels));
  if (least == most) {  // one value: scale 1 and quants 0
    fit.consider(1, least);
    return fit.best();
  }
  const float range = most - least;
  for (const float part : {1.0f, 0.95f, 0.9f}) {  // the ends may give a little for the middle
    fit.consider(range * part / static_cast<float>(levels), least + range * (1 - part) / 2);
  }
  for (int h = 0; h < 2; ++h) {  // grids on which one half of the group lies exactly
    for (int divisor = 1; divisor <= 4; ++divisor) {
      const float step = std::fabs(group.scale[h]) / static_cast<float>(divisor);
      if (step * static_cast<float>(levels) < 0.8f * range) continue;
      fit.consider(step, group.minimum[h] + step * std::floor((least - group.minimum[h]) / step));
      fit.consider(step, group.minimum[h] + step * std::ceil((least - group.minimum[h]) / step));
    }
  }
  fit.refine();
  fit.refine();
  return fit.best();
}

}  // namespace octavo
