// Every ISA family of this machine against the scalar one, kernel by kernel and bit for bit, on odd sizes, extreme
// values and memory that ends where the operands do. The row kernels' bits are AVX2's in every family.
#include <algorithm>
#include <functional>
#include <iterator>
#include <limits>

#include "isa.hpp"
#include "packed.hpp"
#include "support.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kExtremes[] = {0.0f,  -0.0f,  kNaN,  kInfinity, -kInfinity, 1e-45f, -1e-39f,
                           3e38f, -3e38f, 87.0f, -87.0f,    88.5f,      -88.5f, 700.0f};

const IsaFamily& scalar() {
  static const IsaFamily family = select_isa_family("scalar");
  return family;
}

Buffer<float> with_extremes(std::int64_t size, Random& random) {
  Buffer<float> out = normal_floats(size, random, 10.0f);
  for (std::int64_t i = 0; i < size; ++i) {
    if (random() % 7 == 0) out[i] = kExtremes[random() % std::size(kExtremes)];
  }
  return out;
}

// Runs f(family) for the scalar family and this one and compares what it returns.
void compare(const IsaFamily& family, const std::string& what,
             const std::function<Buffer<float>(const IsaFamily&)>& f) {
  check(same(f(family), f(scalar())), family.name + " differs from scalar: " + what);
}

void test_rows(const IsaFamily& family, Random& random) {
  for (const std::int64_t width : {1, 7, 8, 31, 33, 64, 100, 257, 576}) {
    for (const bool extremes : {false, true}) {
      const Buffer<float> x = extremes ? with_extremes(width, random) : normal_floats(width, random);
      const Buffer<float> y = extremes ? with_extremes(width, random) : normal_floats(width, random);
      const std::string at = " of " + std::to_string(width);
      const auto row = [&](const char* what, auto&& f) {
        compare(family, what + at, [&](const IsaFamily& isa) {
          Buffer<float> out(width);
          f(*isa.elementwise, out.data());
          return out;
        });
      };
      row("rms_norm",
          [&](const ElementwiseKernels& k, float* out) { k.rms_norm(x.data(), y.data(), 1e-5f, width, out); });
      row("silu_mul", [&](const ElementwiseKernels& k, float* out) { k.silu_mul(x.data(), y.data(), width, out); });
      row("add", [&](const ElementwiseKernels& k, float* out) { k.add(x.data(), y.data(), width, out); });
    }
  }
}

void test_choosing(const IsaFamily& family, Random& random) {
  for (const std::int64_t n : {1, 3, 4, 5, 255, 256, 257, 1000}) {
    for (const double temperature : {1.0, 0.3, 1.7}) {
      Buffer<float> x = normal_floats(n, random, 30.0f);
      for (std::int64_t i = 0; i < n; ++i) {
        if (random() % 9 == 0) x[i] = -kInfinity;
      }
      x[below(random, n)] = 100.0f;
      compare(family, "exp_weights of " + std::to_string(n), [&](const IsaFamily& isa) {
        Buffer<double> weights(n);
        Buffer<float> out(2 * n + 4);
        float max = 0;
        out[0] = isa.elementwise->row_max(x.data(), n, &max) ? 1.0f : 0.0f;
        out[1] = max;
        const double total = isa.elementwise->exp_weights(x.data(), n, max, temperature, weights.data());
        check(isa.elementwise->exp_weights(x.data(), n, max, temperature, nullptr) == total,
              "exp_weights without weights");
        std::memcpy(&out[2], &total, sizeof total);
        std::memcpy(&out[4], weights.data(), static_cast<std::size_t>(n) * sizeof(double));
        return out;
      });
    }
    Buffer<float> x = normal_floats(n, random);
    x[below(random, n)] = kNaN;
    float max = 0;
    check(!family.elementwise->row_max(x.data(), n, &max), family.name + " overlooks a NaN");
  }
}

void test_quantise(const IsaFamily& family, std::int64_t k, Random& random) {
  const std::int64_t rows = 5, ldx = k + 5, groups = rows * k / kGroup;
  const auto run = [&](const Buffer<float>& x) {
    compare(family, "quantize_rows", [&](const IsaFamily& isa) {
      Buffer<std::int8_t> q(rows * k);
      Buffer<std::int16_t> part_sum(2 * groups);
      Buffer<float> out(4 * groups + rows * k);
      isa.linear->quantize_rows(x.data(), ldx, rows, k, {q.data(), out.data(), out.data() + groups, part_sum.data()});
      for (std::int64_t i = 0; i < 2 * groups; ++i) out[2 * groups + i] = part_sum[i];
      for (std::int64_t i = 0; i < rows * k; ++i) out[4 * groups + i] = q[i];
      return out;
    });
  };
  for (int i = 0; i < 50; ++i) {
    Buffer<float> x =
        normal_floats((rows - 1) * ldx + k, random, std::exp2(static_cast<float>(below(random, 200) - 100)));
    run(x);
    for (int bad = 0; bad < 8; ++bad) x[below(random, x.size())] = kExtremes[random() % std::size(kExtremes)];
    for (int tie = 0; tie < kGroup; ++tie) x[tie] = static_cast<float>(tie) + 0.5f;
    x[31] = 127;
    run(x);
  }
}

// A packed matrix of random quants. Halves lead each block; those of most blocks are finite.
Buffer<std::uint8_t> random_matrix(WeightFormat format, std::int64_t n, std::int64_t k, Random& random) {
  const std::int64_t panels = (n + kPanelColumns - 1) / kPanelColumns;
  Buffer<std::uint8_t> data = random_bytes(panels * panel_bytes(format, k), random);
  if (format == WeightFormat::F32) {
    const Buffer<float> values = normal_floats(data.size() / 4, random);
    std::memcpy(data.data(), values.data(), static_cast<std::size_t>(data.size()));
    return data;
  }
  const std::int64_t block = panel_bytes(format, k_unit(format));
  const std::int64_t halves = quantised(format) ? std::min<std::int64_t>(64, group_layout(format).header_bytes) : block;
  for (std::int64_t at = 0; at < data.size(); at += block) {
    if (random() % 64 == 0) continue;
    for (std::int64_t i = 1; i < halves; i += 2) data[at + i] &= 0xaf;  // an exponent of 11 at most
  }
  return data;
}

void test_linear(const IsaFamily& family, WeightFormat format, std::int64_t n, std::int64_t k, Random& random) {
  const Buffer<std::uint8_t> data = random_matrix(format, n, k, random);
  const PackedMatrix w{format, n, k, data.data()};
  const Buffer<float> bias = normal_floats(n, random);
  for (const std::int64_t m : {1, 2, 3, 4, 5, 7, 13, 34}) {
    const Buffer<float> x = normal_floats(m * k, random), residual = normal_floats(m * n, random);
    Buffer<std::int8_t> q(quantised(format) ? m * k : 0);
    Buffer<float> scale(q.size() / kGroup), sum(q.size() / kGroup);
    Buffer<std::int16_t> part_sum(2 * scale.size());
    if (quantised(format)) {
      scalar().linear->quantize_rows(x.data(), k, m, k, {q.data(), scale.data(), sum.data(), part_sum.data()});
    }
    const std::int64_t begin = below(random, num_panels(w)), end = begin + 1 + below(random, num_panels(w) - begin);
    const std::string what = "linear, format " + std::to_string(static_cast<int>(format)) + ", n=" + std::to_string(n) +
                             ", k=" + std::to_string(k) + ", m=" + std::to_string(m);
    for (const bool more : {false, true}) {
      compare(family, what, [&](const IsaFamily& isa) {
        Buffer<float> out(m * n, 12345.0f);
        const Activations a{x.data(), k, q.data(), scale.data(), sum.data(), part_sum.data()};
        const LinearOutput o{out.data(), n, more ? bias.data() : nullptr, more ? residual.data() : nullptr, n};
        isa.linear->linear(w, a, m, begin, end, o);
        return out;
      });
    }
  }
}

void test_rope(const IsaFamily& family, Random& random) {
  for (const std::int64_t rotary_dim : {2, 6, 16, 40, 64}) {
    for (const RopeStyle style : {RopeStyle::INTERLEAVED, RopeStyle::HALF_SPLIT}) {
      const Buffer<float> table = normal_floats(3 * rotary_dim, random), x = with_extremes(4 * 64, random);
      compare(family, "rope of " + std::to_string(rotary_dim), [&](const IsaFamily& isa) {
        Buffer<float> out(4 * 64);
        isa.elementwise->rope(x.data(), {table.data(), rotary_dim, style}, 2, 4, 64, out.data());
        Buffer<float> in_place(4 * 64);
        std::memcpy(in_place.data(), x.data(), 4 * 64 * sizeof(float));
        isa.elementwise->rope(in_place.data(), {table.data(), rotary_dim, style}, 2, 4, 64, in_place.data());
        check(same(out, in_place), isa.name + ": rope in place");
        return out;
      });
    }
  }
}

// A KV slot holds what F16C and the software conversion both make of floats of every kind.
void test_halves(const IsaFamily& family, Random& random) {
  const std::int64_t head_dim = 1024;
  for (int round = 0; round < 40; ++round) {
    Buffer<float> k(head_dim), v(head_dim);
    for (std::int64_t i = 0; i < head_dim; ++i) {  // any bits; halfway between halves; around the subnormal ones
      const auto bits = static_cast<std::uint32_t>(random());
      std::memcpy(&k[i], &bits, 4);
      const std::uint32_t near = (bits & 0x80000000u) | (0x33000000u + bits % 0x15000000u);
      const std::uint32_t tie = (near & ~0x1fffu) | 0x1000u;
      std::memcpy(&v[i], bits % 3 == 0 ? &tie : &near, 4);
    }
    compare(family, "write_kv in halves", [&](const IsaFamily& isa) {
      Buffer<std::uint16_t> slot(2 * kBlockSize * head_dim, 0x7e00);
      isa.attention->write_kv(k.data(), v.data(), 1, head_dim, KvType::F16, nullptr, 0,
                              reinterpret_cast<std::uint8_t*>(slot.data()), 5);
      Buffer<float> out(slot.size());
      for (std::int64_t i = 0; i < slot.size(); ++i) {  // all NaNs alike
        const bool nan = (slot[i] & 0x7c00) == 0x7c00 && (slot[i] & 0x3ff) != 0;
        out[i] = nan ? kNaN : static_cast<float>(slot[i]);
      }
      return out;
    });
  }
}

// An int8 slot and its scales: ties, and what is too small, too large, infinite or NaN.
void test_int8_slots(const IsaFamily& family, Random& random) {
  for (const std::int64_t head_dim : {8, 24, 64, 1024}) {
    for (int round = 0; round < 60; ++round) {
      const float size = std::exp2(static_cast<float>(below(random, 252)) - 126.0f);
      Buffer<float> k = normal_floats(head_dim, random, size), v(head_dim);
      for (std::int64_t i = 0; i < head_dim; ++i) v[i] = size * (static_cast<float>(below(random, 255)) - 127.0f) / 2;
      v[0] = 63.5f * size;
      if (round % 3 == 0) k[below(random, head_dim)] = kExtremes[random() % std::size(kExtremes)];
      if (round % 5 == 0) v[below(random, head_dim)] = kExtremes[random() % std::size(kExtremes)];
      compare(family, "write_kv in int8", [&](const IsaFamily& isa) {
        Buffer<std::uint8_t> slot(kv_head_bytes(KvType::INT8, head_dim), 0xff);
        isa.attention->write_kv(k.data(), v.data(), 1, head_dim, KvType::INT8, nullptr, 0, slot.data(), 11);
        Buffer<float> out(slot.size());
        for (std::int64_t i = 0; i < slot.size(); ++i) out[i] = slot[i];
        return out;
      });
    }
  }
}

struct AttentionCase {
  std::int64_t num_heads, num_kv_heads, head_dim, first_position, num_positions;
  KvType type;
  bool rope;
};

void test_attention(const IsaFamily& family, const AttentionCase& c, Random& random) {
  const std::int64_t length = c.first_position + c.num_positions, blocks = (length + kBlockSize - 1) / kBlockSize;
  const std::int64_t block_bytes = c.num_kv_heads * kv_head_bytes(c.type, c.head_dim);
  const std::int64_t ld = c.num_heads * c.head_dim + 3, kv_width = c.num_kv_heads * c.head_dim;
  const RopeStyle style = random() % 2 ? RopeStyle::HALF_SPLIT : RopeStyle::INTERLEAVED;
  const Buffer<float> angles = normal_floats(length * c.head_dim, random, 0.5f);
  const RopeTable table{angles.data(), c.head_dim, style};
  Buffer<std::uint8_t> kv(blocks * block_bytes, 0xff);  // NaN wherever nothing is written
  Buffer<std::int32_t> block_table(blocks);
  for (std::int64_t b = 0; b < blocks; ++b) block_table[b] = static_cast<std::int32_t>(blocks - 1 - b);
  for (std::int64_t t = 0; t < length; ++t) {
    const Buffer<float> k = normal_floats(kv_width, random), v = normal_floats(kv_width, random);
    scalar().attention->write_kv(k.data(), v.data(), c.num_kv_heads, c.head_dim, c.type, &table, t,
                                 kv.data() + block_table[t / kBlockSize] * block_bytes, t % kBlockSize);
  }
  const Buffer<float> q = normal_floats(c.num_positions * ld, random, 2.0f);
  const std::int64_t group = c.num_heads / c.num_kv_heads;
  const auto run = [&](const IsaFamily& isa, bool in_splits) {
    Buffer<float> out(c.num_positions * ld), scratch(attention_scratch_floats(group, c.head_dim));
    const AttentionCall call{q.data(),   ld,          out.data(),  ld,
                             kv.data(),  block_bytes, c.num_heads, c.num_kv_heads,
                             c.head_dim, 0.125f,      c.type,      c.rope ? &table : nullptr,
                             {}};
    for (std::int64_t first = 0; first < c.num_positions; first += tile_positions(group)) {
      const std::int64_t positions = std::min(tile_positions(group), c.num_positions - first);
      const AttentionTile tile{block_table.data(), first, c.first_position + first, positions};
      for (std::int64_t head = 0; head < c.num_kv_heads; ++head) {
        if (!in_splits) {
          isa.attention->attend(call, tile, head, nullptr, scratch.data());
          continue;
        }
        const std::int64_t state = state_floats(positions * group, c.head_dim);
        Buffer<float> states(tile.num_splits() * state);
        for (std::int64_t s = 0; s < tile.num_splits(); ++s) {
          isa.attention->attend_split(call, tile, head, s, states.data() + s * state, scratch.data());
        }
        isa.attention->merge_splits(call, tile, head, states.data());
      }
    }
    return out;
  };
  const Buffer<float> whole = run(family, false);
  const std::string what = std::to_string(c.num_heads) + "/" + std::to_string(c.num_kv_heads) + " heads of " +
                           std::to_string(c.head_dim) + ", " + std::to_string(c.num_positions) + " tokens from " +
                           std::to_string(c.first_position);
  check(same(whole, run(family, true)), family.name + ": attention in splits: " + what);
  check(same(whole, run(scalar(), false)), family.name + " differs from scalar: attention: " + what);
  for (std::int64_t i = 0; i < c.num_positions; ++i) {
    for (std::int64_t d = 0; d < c.num_heads * c.head_dim; ++d) {
      if (!check(std::isfinite(whole[i * ld + d]), family.name + ": an unseen slot was read: " + what)) return;
    }
  }
}

void test_family(const IsaFamily& family) {
  Random random(3);
  test_rows(family, random);
  test_choosing(family, random);
  for (const std::int64_t k : {96, 608}) test_quantise(family, k, random);
  for (const WeightFormat format :
       {WeightFormat::F32, WeightFormat::F16, WeightFormat::BF16, WeightFormat::INT8_G32, WeightFormat::TABLE4_G32,
        WeightFormat::TABLE4_K, WeightFormat::INT4_G32, WeightFormat::INT5_G32, WeightFormat::INT4_K,
        WeightFormat::INT8_CHANNEL, WeightFormat::OFFSET4_G32, WeightFormat::OFFSET5_G32, WeightFormat::INT5_K,
        WeightFormat::INT6_K, WeightFormat::INT3_K, WeightFormat::INT2_K}) {
    test_linear(family, format, 150, 3 * k_unit(format), random);
    test_linear(family, format, 1, k_unit(format), random);
    test_linear(family, format, 48, quantised(format) ? 2048 : 199, random);
  }
  test_rope(family, random);
  test_halves(family, random);
  test_int8_slots(family, random);
  const AttentionCase cases[] = {
      {1, 1, 8, 0, 1, KvType::F32, false},     {9, 3, 64, 0, 40, KvType::F16, true},
      {9, 3, 64, 510, 5, KvType::F32, true},   {6, 2, 16, 1023, 40, KvType::F16, true},
      {5, 1, 72, 600, 3, KvType::F16, false},  {7, 7, 80, 63, 2, KvType::F32, true},
      {50, 1, 8, 70, 4, KvType::F16, true},    {4, 1, 128, 511, 13, KvType::F32, true},
      {12, 1, 32, 30, 9, KvType::F16, false},  {9, 3, 64, 1100, 2, KvType::INT8, true},
      {6, 2, 16, 500, 40, KvType::INT8, true}, {5, 1, 72, 60, 3, KvType::INT8, false},
      {50, 1, 8, 70, 4, KvType::INT8, true},   {16, 1, 128, 511, 9, KvType::INT8, true},
  };
  for (const AttentionCase& c : cases) test_attention(family, c, random);
  std::printf("%s done\n", family.name.c_str());
}

}  // namespace

int main() {
  for (const IsaFamily& family : available_isa_families()) test_family(family);
  return report();
}
