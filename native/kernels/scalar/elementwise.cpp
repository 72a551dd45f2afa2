// Row kernels in scalar code. Sums run in the lanes of AVX2's vectors.
#include "math.hpp"
#include "scalar.hpp"

namespace octavo {
namespace scalar {
namespace {

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
  float sum[8][8] = {};  // eight vectors side by side; what is left over goes to the first
  const std::int64_t whole = width / 64 * 64;
  for (std::int64_t i = 0; i < whole; ++i) {
    float& lane = sum[i % 64 / 8][i % 8];
    lane = std::fma(x[i], x[i], lane);
  }
  for (std::int64_t i = whole; i < width; ++i) sum[0][i % 8] = std::fma(x[i], x[i], sum[0][i % 8]);
  float lanes[8];
  for (int i = 0; i < 8; ++i) {
    lanes[i] =
        ((sum[0][i] + sum[4][i]) + (sum[2][i] + sum[6][i])) + ((sum[1][i] + sum[5][i]) + (sum[3][i] + sum[7][i]));
  }
  const float factor = 1.0f / std::sqrt(sum_of_lanes(lanes) / static_cast<float>(width) + eps);
  for (std::int64_t i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void silu_mul(const float* gate, const float* up, std::int64_t width, float* out) {
  for (std::int64_t i = 0; i < width; ++i) out[i] = gate[i] / (1.0f + exp(-gate[i])) * up[i];
}

void add(const float* x, const float* y, std::int64_t width, float* out) {
  for (std::int64_t i = 0; i < width; ++i) out[i] = x[i] + y[i];
}

void rope(const float* x, const RopeTable& table, std::int64_t position, std::int64_t num_heads, std::int64_t head_dim,
          float* out) {
  const float* row = table.row(position);
  for (std::int64_t head = 0; head < num_heads; ++head) {
    rotate_head(x + head * head_dim, row, table.rotary_dim, table.style, head_dim, out + head * head_dim);
  }
}

bool row_max(const float* x, std::int64_t n, float* max) {
  float largest = -__builtin_inff();
  bool ordered = true;
  for (std::int64_t i = 0; i < n; ++i) {
    ordered &= x[i] == x[i];
    largest = x[i] > largest ? x[i] : largest;
  }
  *max = largest;
  return ordered;
}

constexpr std::int64_t kSumBlock = 256;

double exp_weights(const float* x, std::int64_t n, double max, double temperature, double* out) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kSumBlock) {
    const std::int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    double sum[4] = {};
    for (std::int64_t i = begin; i < end; ++i) {
      const double value = x[i];
      const double weight = exp(value == max ? 0.0 : (value - max) / temperature);
      sum[i % 4] += weight;
      if (out != nullptr) out[i] = weight;
    }
    total += (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
  return total;
}

}  // namespace
}  // namespace scalar

const ElementwiseKernels& scalar_elementwise_kernels() {
  using namespace scalar;
  static constexpr ElementwiseKernels kernels{rms_norm, silu_mul, add, rope, row_max, exp_weights};
  return kernels;
}

}  // namespace octavo
