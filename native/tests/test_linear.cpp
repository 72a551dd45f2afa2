// Linear kernels against an independent scalar reference, bit for bit.
//
// The reference reads the *source* blocks, quantises activations and multiplies in the order that kernels.hpp and
// packed.hpp promise, one std::fma at a time. A kernel must give the same bits for every format, number of rows,
// position in a batch, range of panels, odd size, bias and residual, on every ISA family of this machine.
//
//   cd native && mkdir -p /tmp/test_linear && cd /tmp/test_linear && N=$OLDPWD
//   F="-O1 -g1 -std=c++20 -ffp-contract=off -fsanitize=address,undefined -I$N"
//   V="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
//   g++ $F -I$N/kernels -c $N/kernels/scalar/linear.cpp -o scalar.o
//   for f in $N/kernels/avx2/linear*.cpp; do g++ $F -mavx2 -mfma -mf16c -c $f -o 2_$(basename $f).o; done
//   for f in $N/kernels/avx512/linear*.cpp; do g++ $F -mfma -mf16c $V -c $f -o 512_$(basename $f).o; done
//   F="$F -DOCTAVO_HAVE_AVX2 -DOCTAVO_HAVE_AVX512"
//   g++ $F $N/tests/test_linear.cpp $N/{source,pack}.cpp *.o -o test_linear && ./test_linear
#include "kernels/scalar/scalar.hpp"
#include "sources.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

// Weights that share a scale, and whether a format of that type has minimums.
int scale_length(SourceType type) {
  return type == SourceType::Q2_K || type == SourceType::Q3_K || type == SourceType::Q6_K ? 16 : 32;
}

bool has_minimum(SourceType type) {
  switch (type) {
    case SourceType::Q4_1:
    case SourceType::Q5_1:
    case SourceType::Q2_K:
    case SourceType::Q4_K:
    case SourceType::Q5_K:
      return true;
    default:
      return false;
  }
}

struct RowsOf8Bits {
  std::vector<std::int8_t> q;
  std::vector<float> scale, sum;
  std::vector<std::int16_t> part_sum;
  RowsOf8Bits(std::int64_t m, std::int64_t k)
      : q(static_cast<std::size_t>(m * k)),
        scale(static_cast<std::size_t>(m * k / 32)),
        sum(scale.size()),
        part_sum(2 * scale.size()) {}
  RowsOf8Bits(RowsOf8Bits&&) = delete;
  QuantisedRows out() { return {q.data(), scale.data(), sum.data(), part_sum.data()}; }
};

void reference_quantise(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k, RowsOf8Bits& out) {
  for (std::int64_t r = 0; r < m; ++r) {
    for (std::int64_t g = 0; g < k / 32; ++g) {
      const float* v = x + r * ldx + g * 32;
      float most = 0;
      bool finite = true;
      for (int i = 0; i < 32; ++i) finite &= std::fabs(v[i]) < 0x1p120f, most = std::fmax(most, std::fabs(v[i]));
      const auto at = static_cast<std::size_t>(r * (k / 32) + g);
      const bool zero = most < 127 * std::numeric_limits<float>::min();
      const float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : most / 127.0f;
      int total = 0, parts[2] = {};
      for (int i = 0; i < 32; ++i) {
        const int q = !finite || zero ? 0 : static_cast<int>(std::nearbyint(v[i] * (127.0f / most)));
        total += q;
        parts[i / 16] += q;
        out.q[at * 32 + static_cast<std::size_t>(i)] = static_cast<std::int8_t>(q);
      }
      out.scale[at] = scale;
      for (std::size_t h = 0; h < 2; ++h) out.part_sum[2 * at + h] = static_cast<std::int16_t>(parts[h]);
      out.sum[at] = scale * static_cast<float>(total);
    }
  }
}

// The promised result, scalar: (m, n) without bias or residual.
std::vector<float> reference_linear(SourceType type, const PackedMatrix& packed,
                                    const std::vector<std::uint8_t>& source, const std::vector<float>& x,
                                    const RowsOf8Bits& rows, std::int64_t m) {
  const WeightFormat format = packed.format;
  const std::int64_t n = packed.n, k = packed.k;
  std::vector<float> out(static_cast<std::size_t>(m * n));
  const std::size_t row_bytes = source_row_bytes(type, k);
  std::vector<Weight> weights(static_cast<std::size_t>(k));
  for (std::int64_t c = 0; c < n; ++c) {
    for (std::int64_t i = 0; i < k; ++i) {
      weights[static_cast<std::size_t>(i)] =
          source_weight(type, source.data() + static_cast<std::size_t>(c) * row_bytes, i);
    }
    for (std::int64_t r = 0; r < m; ++r) {
      float acc = 0;
      if (!quantised(format)) {
        for (std::int64_t i = 0; i < k; ++i) {
          acc = std::fma(x[static_cast<std::size_t>(r * k + i)], weights[static_cast<std::size_t>(i)].value(), acc);
        }
      } else {
        const int length = scale_length(type);
        for (std::int64_t first = 0; first < k; first += length) {
          const Weight* w = &weights[static_cast<std::size_t>(first)];
          const auto at = static_cast<std::size_t>(r * k + first), group = at / 32;
          int total = 0, sum_x = 0;
          for (int i = 0; i < length; ++i) {
            const int x_i = rows.q[at + static_cast<std::size_t>(i)];
            total += static_cast<int>(w[i].q) * x_i, sum_x += x_i;
          }
          const float scale = format == WeightFormat::INT8_CHANNEL ? 1.0f : static_cast<float>(w->scale);
          acc = std::fma(static_cast<float>(total), scale * rows.scale[group], acc);
          const float x_sum = rows.scale[group] * static_cast<float>(sum_x);
          if (has_minimum(type)) acc = std::fma(static_cast<float>(w->minimum), x_sum, acc);
        }
      }
      if (format == WeightFormat::INT8_CHANNEL) acc *= static_cast<float>(weights[0].scale);
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
  RowsOf8Bits expected(m, k), got(m, k);
  reference_quantise(x.data(), ldx, m, k, expected);
  kernels.quantize_rows(x.data(), ldx, m, k, got.out());
  CHECK(got.q == expected.q, "%s quantised bytes", isa);
  CHECK(got.part_sum == expected.part_sum, "%s sums of halves", isa);
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
  Buffer<std::uint8_t> packed(static_cast<std::int64_t>(packed_bytes(format, n, k)), 0xa5);
  const PackedMatrix w{format, n, k, packed.data()};
  pack(type, format, source.data(), n, k, 0, num_panels(w), packed.data());

  const auto x = random_rows(most, k, random);
  RowsOf8Bits rows(most, quantised(format) ? k : 0);
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
      const Activations a{apart.data() + call.row * ldf, ldf,
                          rows.q.data() + at * 32,       rows.scale.data() + at,
                          rows.sum.data() + at,          rows.part_sum.data() + 2 * at};
      const float* from = !with_residual ? nullptr : alias ? out.data() : residual.data() + call.row * n;
      const LinearOutput o{out.data(), ldo, with_bias ? bias.data() : nullptr, from, alias ? ldo : n};
      kernels.linear(w, a, call.m, call.panel_begin, call.panel_end, o);
      CHECK(same(out.data(), expected.data(), out.size() * sizeof(float)),
            "%s %s in %d, n=%d k=%d: rows %d+%d, panels %d..%d, epilogue %d", isa, name(type), static_cast<int>(format),
            static_cast<int>(n), static_cast<int>(k), static_cast<int>(call.row), static_cast<int>(call.m),
            static_cast<int>(call.panel_begin), static_cast<int>(call.panel_end), epilogue);
    }
  }
}

// A row with a NaN or an infinity gives NaN in its own outputs and leaves its neighbours alone.
void test_bad_row(const char* isa, const LinearKernels& kernels, SourceType type, Random& random) {
  const std::int64_t n = 33, k = whole_blocks(type, 96), m = 7;
  const WeightFormat format = packed_format(type);
  const auto source = random_source(type, n, k, random);
  Buffer<std::uint8_t> packed(static_cast<std::int64_t>(packed_bytes(format, n, k)), 0xa5);
  const PackedMatrix w{format, n, k, packed.data()};
  pack(type, format, source.data(), n, k, 0, num_panels(w), packed.data());
  auto x = random_rows(m, k, random);
  const auto run = [&] {
    RowsOf8Bits rows(m, k);
    kernels.quantize_rows(x.data(), k, m, k, rows.out());
    std::vector<float> out(static_cast<std::size_t>(m * n));
    kernels.linear(w, {x.data(), k, rows.q.data(), rows.scale.data(), rows.sum.data(), rows.part_sum.data()}, m, 0,
                   num_panels(w), {out.data(), n, nullptr, nullptr, 0});
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
  return report();
}
