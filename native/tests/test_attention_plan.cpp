// Plans of attention: tables that begin alike are found, what they share is walked once, and the bits are those of
// sequences that walk alone, on every ISA family, whoever shares what with whom.
#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "attention_plan.hpp"
#include "count_allocations.hpp"
#include "isa.hpp"
#include "support.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

constexpr std::int32_t kBlocks = 400;

struct Heads {
  std::int64_t num_heads, num_kv_heads, head_dim;
  std::int64_t group() const { return num_heads / num_kv_heads; }
};

// A step's arrays as far as a plan looks at them.
struct Arrays {
  std::vector<std::int32_t> token_ids, positions, query_start_loc{0}, seq_lens, block_tables, logits_rows;
  std::int64_t table_width = 0;

  Step step() const {
    return {token_ids,           positions,
            query_start_loc,     seq_lens,
            block_tables.data(), static_cast<std::int64_t>(seq_lens.size()),
            table_width,         {},
            logits_rows};
  }
};

struct Sequence {
  std::vector<std::int32_t> table;
  std::int64_t length, num_rows;  // the last rows are in the step
};

Arrays arrays_of(const std::vector<Sequence>& sequences) {
  Arrays out;
  for (const Sequence& s : sequences) {
    out.table_width = std::max(out.table_width, static_cast<std::int64_t>(s.table.size()));
  }
  for (const Sequence& s : sequences) {
    std::vector<std::int32_t> row = s.table;
    row.resize(static_cast<std::size_t>(out.table_width), 1 << 30);
    out.block_tables.insert(out.block_tables.end(), row.begin(), row.end());
    for (std::int64_t p = s.length - s.num_rows; p < s.length; ++p) {
      out.positions.push_back(static_cast<std::int32_t>(p));
      out.token_ids.push_back(0);
    }
    out.seq_lens.push_back(static_cast<std::int32_t>(s.length));
    out.query_start_loc.push_back(static_cast<std::int32_t>(out.positions.size()));
  }
  return out;
}

// Sequences that each begin as another does, for a random number of blocks, or do not.
std::vector<Sequence> random_tree(Random& random, std::int64_t count, std::int64_t max_length) {
  std::vector<Sequence> sequences;
  for (std::int64_t i = 0; i < count; ++i) {
    Sequence s{{}, 1 + below(random, max_length), 1};
    const std::int64_t blocks = (s.length + kBlockSize - 1) / kBlockSize;
    if (i > 0 && random() % 8 != 0) {
      const std::vector<std::int32_t>& parent = sequences[static_cast<std::size_t>(below(random, i))].table;
      const auto longest = std::min(blocks, static_cast<std::int64_t>(parent.size()));
      const std::int64_t shared = random() % 2 ? longest : below(random, longest + 1);
      s.table.assign(parent.begin(), parent.begin() + shared);
    }
    while (static_cast<std::int64_t>(s.table.size()) < blocks) {
      s.table.push_back(static_cast<std::int32_t>(below(random, kBlocks)));
    }
    if (random() % 3 == 0) s.num_rows = 1 + below(random, std::min<std::int64_t>(s.length, 60));
    sequences.push_back(std::move(s));
  }
  return sequences;
}

// Storage of one layer, full of tokens.
struct Cache {
  Heads heads;
  KvType type;
  std::int64_t block_bytes;
  Buffer<std::uint8_t> bytes;

  Cache(const Heads& h, KvType t, Random& random)
      : heads(h), type(t), block_bytes(kv_head_bytes(t, h.head_dim) * h.num_kv_heads), bytes(kBlocks * block_bytes) {
    const AttentionKernels& kernels = *available_isa_families().back().attention;
    const Buffer<float> k = normal_floats(4096, random), v = normal_floats(4096, random);
    const std::int64_t width = h.num_kv_heads * h.head_dim;
    for (std::int64_t token = 0; token < kBlocks * kBlockSize; ++token) {
      kernels.write_kv(k.data() + below(random, 4096 - width), v.data() + below(random, 4096 - width), h.num_kv_heads,
                       h.head_dim, t, nullptr, 0, bytes.data() + token / kBlockSize * block_bytes, token % kBlockSize);
    }
  }
};

// The step's attention, twice over as in two layers, its items within a wave in random order.
Buffer<float> attend(AttentionPlan& plan, const IsaFamily& isa, const Cache& cache, const Buffer<float>& q,
                     std::int64_t rows, Random& random) {
  const Heads& h = cache.heads;
  const std::int64_t width = h.num_heads * h.head_dim;
  Buffer<float> out(rows * width, std::nanf("")), scratch(attention_scratch_floats(h.group(), h.head_dim));
  const AttentionCall call{q.data(),    width,          out.data(), width,  cache.bytes.data(), cache.block_bytes,
                           h.num_heads, h.num_kv_heads, h.head_dim, 0.125f, cache.type,         nullptr,
                           {}};
  for (int layer = 0; layer < 2; ++layer) {
    for (std::int32_t wave = 0; wave < plan.num_waves(); ++wave) {
      std::vector<std::int64_t> items(static_cast<std::size_t>(plan.wave_end(wave) - plan.wave_begin(wave)));
      std::iota(items.begin(), items.end(), plan.wave_begin(wave));
      check(!items.empty(), "a wave has items");
      std::shuffle(items.begin(), items.end(), random);
      for (const std::int64_t item : items) plan.run(item, *isa.attention, call, scratch.data());
    }
  }
  return out;
}

// Logits rows alone, few, most and none of the step's: the bits that they have among all rows, shared prefixes or not.
void test_some_rows(AttentionPlan& plan, const IsaFamily& isa, const Cache& cache, Arrays arrays,
                    const Buffer<float>& q, const Buffer<float>& want, Random& random) {
  const std::int64_t width = cache.heads.num_heads * cache.heads.head_dim;
  const auto rows = static_cast<std::int64_t>(arrays.positions.size());
  for (const std::int64_t of_eight : {1, 7}) {
    arrays.logits_rows.clear();
    for (std::int64_t row = 0; row < rows; ++row) {
      if (below(random, 8) < of_eight) arrays.logits_rows.push_back(static_cast<std::int32_t>(row));
    }
    if (arrays.logits_rows.empty()) arrays.logits_rows.push_back(static_cast<std::int32_t>(rows - 1));
    const auto some = static_cast<std::int64_t>(arrays.logits_rows.size());
    Buffer<float> some_q(some * width);
    for (std::int64_t i = 0; i < some; ++i) {
      std::memcpy(&some_q[i * width], &q[arrays.logits_rows[static_cast<std::size_t>(i)] * width],
                  static_cast<std::size_t>(width) * sizeof(float));
    }
    const std::int64_t before = allocations;
    plan.prepare(arrays.step(), cache.heads.group(), true, random() % 4 != 0);
    const std::int64_t after = allocations;
    check(after == before, "a plan of some rows allocates nothing");
    const Buffer<float> out = attend(plan, isa, cache, some_q, some, random);
    for (std::int64_t i = 0; i < some; ++i) {
      const std::int64_t row = arrays.logits_rows[static_cast<std::size_t>(i)];
      if (!check(std::memcmp(&out[i * width], &want[row * width], static_cast<std::size_t>(width) * sizeof(float)) == 0,
                 isa.name + ": other bits of a logits row without the rest")) {
        break;
      }
    }
  }
  arrays.logits_rows.clear();
  plan.prepare(arrays.step(), cache.heads.group(), true, true);
  check(plan.num_waves() == 1 && plan.wave_end(0) == 0, "no rows, no items");
}

void test_bits(const Heads& heads, KvType type, int num_threads, Random& random) {
  const Cache cache(heads, type, random);
  AttentionPlan plan(heads.num_kv_heads, heads.head_dim, heads.group(), 1400, 1400, num_threads);
  std::set<std::int32_t> waves;
  for (int round = 0; round < 16; ++round) {
    const std::vector<Sequence> sequences =
        random_tree(random, round == 0 ? 1 : 2 + below(random, 20), round % 2 ? 1400 : 700);
    const Arrays arrays = arrays_of(sequences);
    const auto rows = static_cast<std::int64_t>(arrays.positions.size());
    const Buffer<float> q = normal_floats(rows * heads.num_heads * heads.head_dim, random, 2.0f);
    for (const IsaFamily& isa : available_isa_families()) {
      if (isa.name == "scalar" && round % 4 != 1) continue;  // slow
      plan.prepare(arrays.step(), heads.group(), false, false);
      check(plan.num_waves() == 1, "tiles that walk alone need nobody");
      const Buffer<float> alone = attend(plan, isa, cache, q, rows, random);
      const std::int64_t before = allocations;
      plan.prepare(arrays.step(), heads.group(), false, true);
      const std::int64_t after = allocations;
      check(before > 0 && after == before, "a plan allocates nothing");
      waves.insert(plan.num_waves());
      const Buffer<float> shared = attend(plan, isa, cache, q, rows, random);
      check(std::memcmp(alone.data(), shared.data(), static_cast<std::size_t>(alone.size()) * sizeof(float)) == 0,
            isa.name + ": other bits in company, " + std::to_string(plan.num_waves()) + " waves");
      for (std::int64_t i = 0; i < alone.size(); ++i) {
        if (!check(std::isfinite(alone[i]), isa.name + ": a row without an output")) break;
      }
      Random of_rows(static_cast<std::uint64_t>(rows));  // the trees above stay as they are
      test_some_rows(plan, isa, cache, arrays, q, alone, of_rows);
    }
  }
  check(waves.contains(1) && waves.contains(2) && waves.contains(3), "steps with and without shared runs, also nested");
}

// Runs against what a naive look at all pairs of tables says.
void test_runs(Random& random) {
  SharedPrefixes prefixes(64);
  int found = 0, deep = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<std::vector<std::int32_t>> tables;
    for (std::int64_t i = 1 + below(random, 20); i > 0; --i) {
      std::vector<std::int32_t> table(static_cast<std::size_t>(4 * below(random, 8)));
      for (auto& block : table) block = random() % 16 != 0 ? 0 : 1;
      tables.push_back(std::move(table));
    }
    prefixes.clear();
    for (std::size_t i = 0; i < tables.size(); ++i) {
      prefixes.add(tables[i].data(), static_cast<std::int32_t>(tables[i].size() / 4), static_cast<std::int32_t>(i));
    }
    prefixes.sort();
    std::vector<std::int32_t> covered(tables.size(), 0), depth(tables.size(), 0);
    prefixes.visit([&](const SharedPrefixes::Run& run) {
      const auto table = [&](std::int32_t i) -> const auto& {
        return tables[static_cast<std::size_t>(prefixes.tag(i))];
      };
      check(run.count >= 2 && run.begin < run.end && run.depth < SharedPrefixes::kMaxDepth, "a run's shape");
      const auto end = run.first + run.count;
      for (std::int32_t i = run.first; i < end; ++i) {
        const auto tag = static_cast<std::size_t>(prefixes.tag(i));
        check(covered[tag] == run.begin && depth[tag] == run.depth, "a run begins where the one before it ended");
        check(std::equal(table(i).begin(), table(i).begin() + 4 * run.end, table(run.first).begin()),
              "a run's tables begin with the same blocks");
      }
      // Nobody else begins like that, and not all of them are alike for longer.
      const std::vector<std::int32_t> prefix(table(run.first).begin(), table(run.first).begin() + 4 * run.end);
      const auto begins = [&](const std::vector<std::int32_t>& t) {
        return t.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), t.begin());
      };
      check(std::count_if(tables.begin(), tables.end(), begins) == run.count, "a run has all tables that share it");
      bool longer = true;
      for (std::int32_t i = run.first; i < end; ++i) {
        longer = longer && static_cast<std::int32_t>(table(i).size()) >= 4 * run.end + 4 &&
                 std::equal(table(i).begin(), table(i).begin() + 4 * run.end + 4, table(run.first).begin());
      }
      check(!longer, "a run is as long as it can be");
      if (random() % 4 == 0) return false;
      for (std::int32_t i = run.first; i < end; ++i) {
        const auto tag = static_cast<std::size_t>(prefixes.tag(i));
        covered[tag] = run.end;
        ++depth[tag];
      }
      ++found;
      deep += run.depth == 2;
      return true;
    });
  }
  check(found > 500 && deep > 10, "runs of every depth were found");
}

// One prompt and its samples: the prompt is walked by all of them together, whatever the number of threads.
void test_samples() {
  for (const int num_threads : {1, 2, 64}) {
    AttentionPlan plan(3, 64, 3, 128, 2048, num_threads);
    std::vector<Sequence> sequences(8, Sequence{{}, 513, 1});
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      for (std::int32_t b = 0; b < 32; ++b) sequences[i].table.push_back(b);
      sequences[i].table.push_back(100 + static_cast<std::int32_t>(i));
    }
    Arrays arrays = arrays_of(sequences);
    plan.prepare(arrays.step(), 3, false, true);
    check(plan.num_waves() == 2, "samples share their prompt");
    check(plan.wave_end(1) - plan.wave_begin(1) == 8 * 3, "then each goes on alone");
    check(plan.wave_end(0) < 8 * 3, "together they are fewer");
    for (std::size_t i = 0; i < sequences.size(); ++i) sequences[i].table[0] = 200 + static_cast<std::int32_t>(i);
    arrays = arrays_of(sequences);
    plan.prepare(arrays.step(), 3, false, true);
    check(plan.num_waves() == 1, "blocks behind different ones are not shared");
  }
}

}  // namespace

int main() {
  Random random(11);
  test_runs(random);
  test_samples();
  test_bits({9, 3, 64}, KvType::F16, 2, random);
  test_bits({2, 2, 16}, KvType::F32, 8, random);
  test_bits({5, 1, 24}, KvType::INT8, 1, random);
  return report();
}
