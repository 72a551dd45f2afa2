// Packing against an independent reading of the source blocks: every weight of every type, whole matrices and single
// panels, and what is refused.
#include <functional>
#include <stdexcept>

#include "sources.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

void test_pack(Random& random) {
  for (const SourceType type : kSources) {
    for (const std::int64_t n : {1, 15, 16, 17, 40}) {
      const std::int64_t k = float_source(type) ? 37 : whole_blocks(type, 96);
      const auto source = random_source(type, n, k, random);
      for (const WeightFormat format : {packed_format(type), WeightFormat::F32}) {
        const auto size = static_cast<std::int64_t>(packed_bytes(format, n, k));
        Buffer<std::uint8_t> whole(size, 0xa5), parts(size, 0x5a);
        const PackedMatrix w{format, n, k, whole.data()};
        pack(type, format, source.data(), n, k, 0, num_panels(w), whole.data());
        for (std::int64_t p = num_panels(w); p-- > 0;) pack(type, format, source.data(), n, k, p, p + 1, parts.data());
        CHECK(same(whole, parts), "%s packed in parts", name(type));
        std::vector<float> row(static_cast<std::size_t>(k)), expected(row);
        for (std::int64_t r = 0; r < n; ++r) {
          for (std::int64_t i = 0; i < k; ++i) {
            expected[static_cast<std::size_t>(i)] =
                source_weight(type, source.data() + static_cast<std::size_t>(r) * source_row_bytes(type, k), i).value();
          }
          dequantize_row(w, r, row.data());
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
}

}  // namespace

int main() {
  Random random(1);
  test_pack(random);
  test_refusals();
  return report();
}
