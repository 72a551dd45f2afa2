// Packing and linear kernels against an independent scalar reference, bit for bit.
//
// The reference reads the *source* blocks (of types that are re-rounded, the packed ones), quantises activations and
// multiplies in the order that kernels.hpp and packed.hpp promise, one std::fma at a time. A kernel must give the same
// bits for every format, number of rows, position in a batch, range of panels, odd size, bias and residual, on every
// ISA family of this machine.
//
//   cd native && mkdir -p /tmp/test_linear && cd /tmp/test_linear && N=$OLDPWD
//   F="-O1 -g1 -std=c++20 -ffp-contract=off -fsanitize=address,undefined -I$N"
//   V="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
//   g++ $F -I$N/kernels -c $N/kernels/scalar/linear.cpp -o scalar.o
//   for f in $N/kernels/avx2/linear*.cpp; do g++ $F -mavx2 -mfma -mf16c -c $f -o 2_$(basename $f).o; done
//   for f in $N/kernels/avx512/linear*.cpp; do g++ $F -mfma -mf16c $V -c $f -o 512_$(basename $f).o; done
//   F="$F -DOCTAVO_HAVE_AVX2 -DOCTAVO_HAVE_AVX512"
//   g++ $F $N/tests/test_linear.cpp $N/{source,reround,pack}.cpp *.o -o test_linear && ./test_linear
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/scalar/scalar.hpp"
#include "pack.hpp"

using namespace octavo;

namespace {

int failures = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition) && ++failures <= 20) {                       \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

// 64-byte aligned bytes of exactly the asked size, so that a sanitiser sees a read or write beyond them.
class Bytes {
 public:
  explicit Bytes(std::size_t size)
      : size_(size), data_(static_cast<std::uint8_t*>(::operator new(size, std::align_val_t{64}))) {
    std::memset(data_, 0xa5, size);
  }
  Bytes(const Bytes&) = delete;
  ~Bytes() { ::operator delete(data_, std::align_val_t{64}); }
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  std::uint8_t* data_;
};

double half_value(std::uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

std::uint16_t load16(const std::uint8_t* p) { return static_cast<std::uint16_t>(p[0] | p[1] << 8); }
void store16(std::uint8_t* p, unsigned v) {
  p[0] = static_cast<std::uint8_t>(v), p[1] = static_cast<std::uint8_t>(v >> 8);
}

constexpr SourceType kSources[] = {SourceType::F32,  SourceType::F16,    SourceType::BF16,  SourceType::Q8_0,
                                   SourceType::Q4_0, SourceType::Q4_1,   SourceType::Q5_0,  SourceType::Q5_1,
                                   SourceType::Q2_K, SourceType::Q3_K,   SourceType::Q4_K,  SourceType::Q5_K,
                                   SourceType::Q6_K, SourceType::IQ4_NL, SourceType::IQ4_XS};

// k, or the next multiple of what a row of that type may hold.
std::int64_t whole_blocks(SourceType type, std::int64_t k) {
  const std::int64_t length = block_shape(type).length;
  return (k + length - 1) / length * length;
}

using Random = std::mt19937;

// A random (n, k) tensor in its source layout: extreme quants and subnormal scales included.
std::vector<std::uint8_t> random_source(SourceType type, std::int64_t n, std::int64_t k, Random& random) {
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

double iq4_level(int q) {
  constexpr int kLevels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kLevels[q];
}

Weight source_weight(SourceType type, const std::uint8_t* row, std::int64_t i) {
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
      return {d, static_cast<double>(i % 32 < 16 ? byte & 15 : byte >> 4),
              with_minimum ? half_value(load16(b + 2)) : -8 * d};
    }
    case SourceType::Q5_0:
    case SourceType::Q5_1: {
      const bool with_minimum = type == SourceType::Q5_1;
      const std::uint8_t* b = row + i / 32 * (with_minimum ? 24 : 22);
      const std::uint8_t* bits = b + (with_minimum ? 4 : 2);
      const std::int64_t j = i % 32;
      const int low = j < 16 ? bits[4 + j] & 15 : bits[4 + j - 16] >> 4;
      const double d = half_value(load16(b));
      return {d, static_cast<double>(low + 16 * (bits[j / 8] >> j % 8 & 1)),
              with_minimum ? half_value(load16(b + 2)) : -16 * d};
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

// The same of what is packed, read as packed.hpp describes it.
Weight packed_weight(const PackedMatrix& w, std::int64_t row, std::int64_t i) {
  const std::int64_t c = row % 16, g = i / 32, j = i % 32;
  const std::uint8_t* panel = w.data + row / 16 * panel_bytes(w.format, w.k);
  if (w.format == WeightFormat::INT8_G32) {
    const std::uint8_t* p = panel + g * 544;
    const auto q = static_cast<std::int8_t>(p[32 + j / 4 * 64 + c * 4 + j % 4]);
    return {half_value(load16(p + 2 * c)), static_cast<double>(q), 0};
  }
  const bool five = w.format == WeightFormat::INT5_G32;
  if (!five && w.format != WeightFormat::INT4_G32) std::abort();
  const std::uint8_t* p = panel + g * (five ? 384 : 320);
  const int byte = p[64 + j / 8 * 64 + c * 4 + j % 4];
  const int low = j % 8 < 4 ? byte & 15 : byte >> 4;
  const int high = five ? p[320 + c * 4 + j % 4] >> (j / 4) & 1 : 0;
  return {half_value(load16(p + 2 * c)), static_cast<double>(low + 16 * high), half_value(load16(p + 32 + 2 * c))};
}

struct QuantisedRows {
  std::vector<std::int8_t> q;
  std::vector<float> scale, sum;
  QuantisedRows(std::int64_t m, std::int64_t k)
      : q(static_cast<std::size_t>(m * k)), scale(static_cast<std::size_t>(m * k / 32)), sum(scale.size()) {}
};

void reference_quantise(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k, QuantisedRows& out) {
  for (std::int64_t r = 0; r < m; ++r) {
    for (std::int64_t g = 0; g < k / 32; ++g) {
      const float* v = x + r * ldx + g * 32;
      float most = 0;
      bool finite = true;
      for (int i = 0; i < 32; ++i) finite &= std::fabs(v[i]) < 0x1p120f, most = std::fmax(most, std::fabs(v[i]));
      const auto at = static_cast<std::size_t>(r * (k / 32) + g);
      const bool zero = most < 127 * std::numeric_limits<float>::min();
      const float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : most / 127.0f;
      int total = 0;
      for (int i = 0; i < 32; ++i) {
        const int q = !finite || zero ? 0 : static_cast<int>(std::nearbyint(v[i] / scale));
        total += q;
        out.q[at * 32 + static_cast<std::size_t>(i)] = static_cast<std::int8_t>(q);
      }
      out.scale[at] = scale;
      out.sum[at] = scale * static_cast<float>(total);
    }
  }
}

bool same(const void* a, const void* b, std::size_t bytes) { return std::memcmp(a, b, bytes) == 0; }
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same(a.data(), b.data(), a.size() * sizeof(float));
}

// The promised result, scalar: (m, n) without bias or residual.
std::vector<float> reference_linear(SourceType type, const PackedMatrix& packed,
                                    const std::vector<std::uint8_t>& source, const std::vector<float>& x,
                                    const QuantisedRows& rows, std::int64_t m) {
  const WeightFormat format = packed.format;
  const std::int64_t n = packed.n, k = packed.k;
  const bool from_source = packs_exactly(type) || !quantised(format);
  std::vector<float> out(static_cast<std::size_t>(m * n));
  const std::size_t row_bytes = source_row_bytes(type, k);
  std::vector<Weight> weights(static_cast<std::size_t>(k));
  for (std::int64_t c = 0; c < n; ++c) {
    for (std::int64_t i = 0; i < k; ++i) {
      weights[static_cast<std::size_t>(i)] =
          from_source ? source_weight(type, source.data() + static_cast<std::size_t>(c) * row_bytes, i)
                      : packed_weight(packed, c, i);
    }
    for (std::int64_t r = 0; r < m; ++r) {
      float acc = 0;
      if (!quantised(format)) {
        for (std::int64_t i = 0; i < k; ++i) {
          acc = std::fma(x[static_cast<std::size_t>(r * k + i)], weights[static_cast<std::size_t>(i)].value(), acc);
        }
      } else {
        for (std::int64_t g = 0; g < k / 32; ++g) {
          const Weight* w = &weights[static_cast<std::size_t>(g * 32)];
          const auto at = static_cast<std::size_t>(r * (k / 32) + g);
          int total = 0;
          for (int i = 0; i < 32; ++i)
            total += static_cast<int>(w[i].q) * rows.q[at * 32 + static_cast<std::size_t>(i)];
          acc = std::fma(static_cast<float>(total), static_cast<float>(w->scale) * rows.scale[at], acc);
          if (format != WeightFormat::INT8_G32) acc = std::fma(static_cast<float>(w->minimum), rows.sum[at], acc);
        }
      }
      out[static_cast<std::size_t>(r * n + c)] = acc;
    }
  }
  return out;
}

std::vector<float> random_rows(std::int64_t m, std::int64_t k, Random& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(m * k));
  for (auto& v : x) v = normal(random);
  for (std::int64_t i = 0; i < k && i < 32; ++i) x[static_cast<std::size_t>(i)] = 0;  // a group of zeros
  return x;
}

// What re-rounding may cost a group of 32: the root of its mean square error, and half the step that a plain
// round-to-nearest would have; scales and minimums that are rounded to halves may add a little.
void check_rerounded(SourceType type, const float* expected, const float* got) {
  const auto [least, most] = std::minmax_element(expected, expected + 32);
  const float largest = std::max(-*least, *most);
  const float step = type == SourceType::IQ4_XS ? largest * 0x1p-11f
                     : type == SourceType::Q6_K ? largest / 127
                                                : (*most - *least) / (type == SourceType::Q3_K ? 31 : 15);
  double squares = 0;
  for (int i = 0; i < 32; ++i) squares += std::pow(got[i] - expected[i], 2);
  const double rounding = largest * 0x1p-11 + 0x1p-18;  // 2^-18: 128 times half a step of the smallest halves
  CHECK(std::sqrt(squares / 32) <= step / 2 + rounding, "%s: off by %g, step %g", name(type), std::sqrt(squares / 32),
        static_cast<double>(step));
}

void test_pack(Random& random) {
  for (const SourceType type : kSources) {
    for (const std::int64_t n : {1, 15, 16, 17, 40}) {
      const std::int64_t k = float_source(type) ? 37 : whole_blocks(type, 96);
      const auto source = random_source(type, n, k, random);
      for (const WeightFormat format : {packed_format(type), WeightFormat::F32}) {
        Bytes whole(packed_bytes(format, n, k)), parts(packed_bytes(format, n, k));
        const PackedMatrix w{format, n, k, whole.data()};
        pack(type, format, source.data(), n, k, 0, num_panels(w), whole.data());
        for (std::int64_t p = num_panels(w); p-- > 0;) pack(type, format, source.data(), n, k, p, p + 1, parts.data());
        CHECK(same(whole.data(), parts.data(), whole.size()), "%s packed in parts", name(type));
        std::vector<float> row(static_cast<std::size_t>(k)), expected(row);
        for (std::int64_t r = 0; r < n; ++r) {
          for (std::int64_t i = 0; i < k; ++i) {
            expected[static_cast<std::size_t>(i)] =
                source_weight(type, source.data() + static_cast<std::size_t>(r) * source_row_bytes(type, k), i).value();
          }
          dequantize_row(w, r, row.data());
          if (!packs_exactly(type) && format != WeightFormat::F32) {
            for (std::int64_t i = 0; i < k; i += 32)
              check_rerounded(type, &expected[static_cast<std::size_t>(i)], &row[static_cast<std::size_t>(i)]);
            continue;
          }
          CHECK(row == expected, "%s n=%d row %d", name(type), static_cast<int>(n), static_cast<int>(r));
        }
      }
    }
  }
}

void expect_refusal(const char* what, const std::function<void()>& f) {
  try {
    f();
  } catch (const std::invalid_argument&) {
    return;
  }
  CHECK(false, "%s was not refused", what);
}

void test_refusals() {
  std::uint8_t block[34] = {}, out[16 * 32 * 4];
  expect_refusal("k = 33 in Q8_0", [] { source_row_bytes(SourceType::Q8_0, 33); });
  expect_refusal("k = 0", [] { source_row_bytes(SourceType::F32, 0); });
  expect_refusal("k = 48 in INT4_G32", [] { packed_bytes(WeightFormat::INT4_G32, 16, 48); });
  expect_refusal("k = 96 in INT4_K", [] { packed_bytes(WeightFormat::INT4_K, 16, 96); });
  expect_refusal("k = 96 in Q6_K", [] { source_row_bytes(SourceType::Q6_K, 96); });
  expect_refusal("Q4_K as INT4_G32", [&] { pack(SourceType::Q4_K, WeightFormat::INT4_G32, block, 1, 256, 0, 1, out); });
  expect_refusal("n = 0", [] { packed_bytes(WeightFormat::F32, 0, 48); });
  expect_refusal("Q8_0 as F16", [&] { pack(SourceType::Q8_0, WeightFormat::F16, block, 1, 32, 0, 1, out); });
  expect_refusal("a panel too many", [&] { pack(SourceType::Q8_0, WeightFormat::F32, block, 1, 32, 0, 2, out); });
  for (const unsigned scale :
       {0x7c00u, 0xfc00u, 0x7e00u, 0x7000u, 0x7bffu, 0xf000u}) {  // infinities, NaN, 8192 and more
    store16(block, scale);
    expect_refusal("Q4_0 scale without a minimum",
                   [&] { pack(SourceType::Q4_0, WeightFormat::INT4_G32, block, 1, 32, 0, 1, out); });
  }
  for (const unsigned scale : {0x7c00u, 0x6c00u, 0xec00u}) {  // infinity, 4096
    store16(block, scale);
    expect_refusal("Q5_0 scale without a minimum",
                   [&] { pack(SourceType::Q5_0, WeightFormat::INT5_G32, block, 1, 32, 0, 1, out); });
  }
  for (unsigned half = 0; half < 0x10000; ++half) {
    const float value = half_to_float(static_cast<std::uint16_t>(half));
    CHECK(std::isnan(value) ? (half & 0x7c00) == 0x7c00 && (half & 1023)
                            : value == static_cast<float>(half_value(static_cast<std::uint16_t>(half))),
          "half %#x", half);
    CHECK(std::isnan(value) || float_to_half(value) == half, "half %#x and back", half);
    if (half % 0x8000 < 0x7bff) {  // halfway to the next: to the even one
      const float next = half_to_float(static_cast<std::uint16_t>(half + 1)), middle = (value + next) / 2;
      CHECK(float_to_half(middle) == half + (half & 1), "halfway after %#x", half);
      CHECK(float_to_half(std::nextafter(middle, value)) == half &&
                float_to_half(std::nextafter(middle, next)) == half + 1,
            "around halfway after %#x", half);
    }
  }
  for (unsigned scale = 0; scale < 0x7000; ++scale) {  // every other scale has an exact minimum
    store16(block, scale);
    pack(SourceType::Q4_0, WeightFormat::INT4_G32, block, 1, 32, 0, 1, out);
    CHECK(half_value(load16(out + 32)) == -8 * half_value(scale), "minimum of Q4_0 scale %#x", scale);
  }
}

void test_quantise(const char* isa, const LinearKernels& kernels, Random& random) {
  const std::int64_t m = 9, k = 160, ldx = 171;
  std::vector<float> x(static_cast<std::size_t>(m * ldx));
  std::normal_distribution<float> normal;
  for (auto& v : x) v = normal(random);
  const auto group = [&](std::int64_t row, std::int64_t g) { return &x[static_cast<std::size_t>(row * ldx + g * 32)]; };
  for (int i = 0; i < 32; ++i) {
    group(0, 0)[i] = 0;                                                        // nothing
    group(0, 1)[i] = (i % 2 ? -1.0f : 1.0f) * static_cast<float>(i) * 1e-44f;  // subnormal
    group(0, 2)[i] = static_cast<float>(i) + 0.5f;                             // ties, with the scale 1 below
    group(0, 3)[i] = i % 2 ? 1.3e36f : -1.3e36f;                               // just below 2^120
    group(1, 0)[i] = -1;                                                       // the same extreme everywhere
  }
  group(0, 2)[31] = -127;
  group(2, 1)[7] = std::numeric_limits<float>::quiet_NaN();
  group(3, 4)[31] = -INFINITY;
  group(6, 2)[5] = 0x1p120f;
  group(4, 0)[0] = -std::numeric_limits<float>::quiet_NaN();
  group(5, 0)[3] = 127 * std::numeric_limits<float>::min();
  QuantisedRows expected(m, k), got(m, k);
  reference_quantise(x.data(), ldx, m, k, expected);
  kernels.quantize_rows(x.data(), ldx, m, k, got.q.data(), got.scale.data(), got.sum.data());
  CHECK(got.q == expected.q, "%s quantised bytes", isa);
  for (std::size_t i = 0; i < got.scale.size(); ++i) {
    const bool nan = std::isnan(expected.scale[i]);
    CHECK(nan ? std::isnan(got.scale[i]) : got.scale[i] == expected.scale[i], "%s scale of group %zu", isa, i);
    CHECK(nan ? std::isnan(got.sum[i]) : got.sum[i] == expected.sum[i], "%s sum of group %zu", isa, i);
  }
}

struct Call {
  std::int64_t row, m, panel_begin, panel_end;
};

void test_linear(const char* isa, const LinearKernels& kernels, SourceType type, WeightFormat format, std::int64_t n,
                 std::int64_t k, std::int64_t most, Random& random) {
  const auto source = random_source(type, n, k, random);
  Bytes packed(packed_bytes(format, n, k));
  const PackedMatrix w{format, n, k, packed.data()};
  pack(type, format, source.data(), n, k, 0, num_panels(w), packed.data());

  const auto x = random_rows(most, k, random);
  QuantisedRows rows(most, quantised(format) ? k : 0);
  if (quantised(format)) reference_quantise(x.data(), k, most, k, rows);
  const std::int64_t ldf = k + 3;
  std::vector<float> apart(static_cast<std::size_t>(most * ldf));
  for (std::int64_t r = 0; r < most; ++r) std::copy_n(x.data() + r * k, k, apart.data() + r * ldf);
  const auto plain = reference_linear(type, w, source, x, rows, most);

  std::vector<float> bias(static_cast<std::size_t>(n)), residual(static_cast<std::size_t>(most * n));
  std::normal_distribution<float> normal;
  for (auto& v : bias) v = normal(random);
  for (auto& v : residual) v = normal(random);

  std::vector<Call> calls;
  for (const std::int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 130, 257, 512}) {
    if (m > most) break;
    calls.push_back({m % 3 * (most - m) / 2, m, 0, num_panels(w)});
    for (int i = 0; i < 3; ++i) {
      const auto begin = static_cast<std::int64_t>(random() % static_cast<unsigned>(num_panels(w)));
      const auto length = 1 + static_cast<std::int64_t>(random() % static_cast<unsigned>(num_panels(w) - begin));
      const auto row = static_cast<std::int64_t>(random() % static_cast<unsigned>(most - m + 1));
      calls.push_back({row, m, begin, begin + length});
    }
  }
  for (const Call& call : calls) {
    for (int epilogue = 0; epilogue < 5; ++epilogue) {  // bit 0: bias; 1: residual; 4: residual aliases out
      const bool with_bias = epilogue & 1, alias = epilogue == 4, with_residual = epilogue & 2 || alias;
      const std::int64_t ldo = n + (alias ? 0 : 5), column_begin = call.panel_begin * 16;
      const std::int64_t column_end = std::min(n, call.panel_end * 16);
      constexpr float kUntouched = 12345;
      std::vector<float> out(static_cast<std::size_t>(call.m * ldo), kUntouched), expected(out);
      for (std::int64_t r = 0; r < call.m; ++r) {
        for (std::int64_t c = 0; c < n; ++c) {
          const auto at = static_cast<std::size_t>(r * ldo + c), in = static_cast<std::size_t>((call.row + r) * n + c);
          if (alias) out[at] = expected[at] = residual[in];
          if (c < column_begin || c >= column_end) continue;
          expected[at] = plain[in];
          if (with_bias) expected[at] += bias[static_cast<std::size_t>(c)];
          if (with_residual) expected[at] += residual[in];
        }
      }
      const std::int64_t at = quantised(format) ? call.row * (k / 32) : 0;
      const Activations a{apart.data() + call.row * ldf, ldf, rows.q.data() + at * 32, rows.scale.data() + at,
                          rows.sum.data() + at};
      const float* from = !with_residual ? nullptr : alias ? out.data() : residual.data() + call.row * n;
      const LinearOutput o{out.data(), ldo, with_bias ? bias.data() : nullptr, from, alias ? ldo : n};
      kernels.linear(w, a, call.m, call.panel_begin, call.panel_end, o);
      CHECK(same(out, expected), "%s %s in %d, n=%d k=%d: rows %d+%d, panels %d..%d, epilogue %d", isa, name(type),
            static_cast<int>(format), static_cast<int>(n), static_cast<int>(k), static_cast<int>(call.row),
            static_cast<int>(call.m), static_cast<int>(call.panel_begin), static_cast<int>(call.panel_end), epilogue);
    }
  }
}

// A row with a NaN or an infinity gives NaN in its own outputs and leaves its neighbours alone.
void test_bad_row(const char* isa, const LinearKernels& kernels, SourceType type, Random& random) {
  const std::int64_t n = 33, k = whole_blocks(type, 96), m = 7;
  const WeightFormat format = packed_format(type);
  const auto source = random_source(type, n, k, random);
  Bytes packed(packed_bytes(format, n, k));
  const PackedMatrix w{format, n, k, packed.data()};
  pack(type, format, source.data(), n, k, 0, num_panels(w), packed.data());
  auto x = random_rows(m, k, random);
  const auto run = [&] {
    QuantisedRows rows(m, k);
    kernels.quantize_rows(x.data(), k, m, k, rows.q.data(), rows.scale.data(), rows.sum.data());
    std::vector<float> out(static_cast<std::size_t>(m * n));
    kernels.linear(w, {x.data(), k, rows.q.data(), rows.scale.data(), rows.sum.data()}, m, 0, num_panels(w),
                   {out.data(), n, nullptr, nullptr, 0});
    return out;
  };
  const auto clean = run();
  x[static_cast<std::size_t>(3 * k + 40)] = std::numeric_limits<float>::quiet_NaN();
  const auto got = run();
  for (std::int64_t i = 0; i < m * n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (i / n == 3) {
      CHECK(std::isnan(got[at]), "%s %s NaN row", isa, name(type));
    } else {
      CHECK(same(&got[at], &clean[at], sizeof(float)), "%s %s neighbour of a NaN row", isa, name(type));
    }
  }
}

void test_family(const char* isa, const LinearKernels& kernels) {
  const int before = failures;
  Random random(7);
  test_quantise(isa, kernels, random);
  for (const SourceType type : kSources) {
    const WeightFormat native = packed_format(type);
    const bool integer = quantised(native);
    const auto width = [&](std::int64_t k) { return whole_blocks(type, k); };
    test_linear(isa, kernels, type, native, 150, width(integer ? 96 : 77), 512, random);
    test_linear(isa, kernels, type, native, 1, width(32), 9, random);
    test_linear(isa, kernels, type, native, 16, width(integer ? 32 : 1), 17, random);
    test_linear(isa, kernels, type, native, 80, width(integer ? 1632 : 1601), 33, random);  // beyond one cached stretch
    if (integer) test_linear(isa, kernels, type, native, 33, 6144, 33, random);
    if (native != WeightFormat::F32) test_linear(isa, kernels, type, WeightFormat::F32, 40, width(64), 17, random);
    test_bad_row(isa, kernels, type, random);
  }
  std::printf("%s: %s\n", isa, failures == before ? "ok" : "FAILED");
}

}  // namespace

int main() {
  Random random(1);
  test_pack(random);
  test_refusals();
  std::printf("packing: %s\n", failures == 0 ? "ok" : "FAILED");
  test_family("scalar", scalar_linear_kernels());
#ifdef OCTAVO_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    test_family("avx2", avx2_linear_kernels());
  }
#endif
#ifdef OCTAVO_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    test_family("avx512", avx512_linear_kernels());
  }
#endif
  return failures == 0 ? 0 : 1;
}
