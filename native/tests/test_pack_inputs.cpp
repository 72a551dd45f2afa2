// The packer on whatever a file may hold: any bytes, at any address, in any number of rows, in memory that ends where
// they do. It packs them or refuses by name; what it packs can be read back; shapes and ranges that do not fit are
// refused.
#include <algorithm>

#include "pack.hpp"
#include "support.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

constexpr int kSources = static_cast<int>(SourceType::I8_CHANNEL) + 1;

void test_any_bytes(SourceType source, WeightFormat target, Random& random) {
  const std::int64_t k = std::max(block_shape(source).length, k_unit(target)) * (1 + below(random, 3));
  const std::int64_t n = 1 + below(random, 40), shift = below(random, 4);
  const auto row_bytes = static_cast<std::int64_t>(source_row_bytes(source, k));
  const Buffer<std::uint8_t> bytes = random_bytes(shift + n * row_bytes, random);
  Buffer<std::uint8_t> packed(static_cast<std::int64_t>(packed_bytes(target, n, k)), 0xa5);
  const PackedMatrix w{target, n, k, packed.data()};
  const std::string what =
      std::string(name(source)) + " as " + name(target) + ", n=" + std::to_string(n) + ", k=" + std::to_string(k);
  try {
    pack(source, target, bytes.data() + shift, n, k, 0, num_panels(w), packed.data());
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    check(message.find(name(source)) != std::string::npos && message.find(" of row ") != std::string::npos,
          what + ": a refusal that does not say where: " + message);
    return;
  }
  Buffer<float> row(k);
  for (std::int64_t r = 0; r < n; ++r) dequantize_row(w, r, row.data());
  // Panels one by one, backwards, into memory that holds no more than has been packed: the same bytes.
  Buffer<std::uint8_t> again(packed.size(), 0x5a);
  for (std::int64_t p = num_panels(w); p-- > 0;)
    pack(source, target, bytes.data() + shift, n, k, p, p + 1, again.data());
  check(same(packed, again), what + ": panels packed one by one");
}

void test_refusals() {
  Buffer<std::uint8_t> bytes(4096), out(1 << 16);
  for (int s = 0; s < kSources; ++s) {
    const auto source = static_cast<SourceType>(s);
    const std::int64_t length = block_shape(source).length;
    for (const std::int64_t k : {std::int64_t{0}, std::int64_t{-1}, -length, length + 1, length - 1}) {
      if (k > 0 && k % length == 0) continue;
      check_refused(std::string("a row of ") + name(source), "k = " + std::to_string(k),
                    [&] { source_row_bytes(source, k); });
    }
    const WeightFormat target = packed_format(source);
    const std::int64_t k = std::max(length, k_unit(target));
    const auto packing = [&](WeightFormat format, std::int64_t n, std::int64_t width, std::int64_t begin,
                             std::int64_t end) {
      return [=, &bytes, &out] { pack(source, format, bytes.data(), n, width, begin, end, out.data()); };
    };
    const std::string what = name(source);
    check_refused(what + " with no rows", "n = 0", packing(target, 0, k, 0, 0));
    check_refused(what + " with rows below none", "n = -3", packing(target, -3, k, 0, 0));
    check_refused(what + ": panels beyond the end", "panels 0 to 2", packing(target, 1, k, 0, 2));
    check_refused(what + ": panels before the beginning", "panels -1 to 1", packing(target, 1, k, -1, 1));
    check_refused(what + ": panels backwards", "panels 1 to 0", packing(target, 1, k, 1, 0));
    if (k_unit(target) > 1)
      check_refused(what + ": half a group", "k = ", packing(target, 1, k_unit(target) / 2, 0, 1));
    const WeightFormat other = target == WeightFormat::F16 ? WeightFormat::INT8_G32 : WeightFormat::F16;
    check_refused(what + " as " + name(other), name(other), packing(other, 1, std::int64_t{256}, 0, 1));
  }
  check_refused("a type that there is not", "unknown",
                [] { source_row_bytes(static_cast<SourceType>(kSources), 256); });
  check_refused("a type far beyond", "unknown", [] { name(static_cast<SourceType>(255)); });
  check_refused("a format that there is not", "unknown", [] { name(static_cast<WeightFormat>(99)); });
}

}  // namespace

int main() {
  Random random(11);
  test_refusals();
  for (int s = 0; s < kSources; ++s) {
    const auto source = static_cast<SourceType>(s);
    for (int i = 0; i < 8; ++i) {
      test_any_bytes(source, packed_format(source), random);
      test_any_bytes(source, WeightFormat::F32, random);
    }
  }
  return report();
}
