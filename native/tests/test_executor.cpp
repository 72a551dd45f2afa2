// A small program through the executor, on every ISA family and number of threads: the same logits, however its tokens
// are cut into steps. Then steps and choices with anything in their arrays: refused by the name of the field, or run.
#include <algorithm>
#include <iterator>
#include <memory>
#include <type_traits>

#include "count_allocations.hpp"
#include "executor.hpp"
#include "support.hpp"

using namespace octavo;
using namespace octavo::tests;

namespace {

constexpr std::int64_t kHidden = 64, kVocabulary = 40, kHeads = 2, kHeadDim = 16, kTokens = 64, kModelLength = 96,
                       kBlocks = 16;

// Random rows of Q8_0 or F32.
Buffer<std::uint8_t> random_weights(SourceType source, std::int64_t n, std::int64_t k, Random& random) {
  Buffer<std::uint8_t> data = random_bytes(n * static_cast<std::int64_t>(source_row_bytes(source, k)), random);
  if (source == SourceType::F32) {
    const Buffer<float> values = normal_floats(n * k, random);
    std::memcpy(data.data(), values.data(), static_cast<std::size_t>(data.size()));
  } else {
    for (std::int64_t at = 0; at < data.size(); at += 34) data[at + 1] = 0x14;  // scales around 2^-10
  }
  return data;
}

struct Model {
  std::unique_ptr<Executor> executor;
  std::int64_t arena_bytes = 0;

  Slice slice(std::int64_t width, bool logits = false) {
    const Slice slice{arena_bytes, width + 16, width, logits};
    arena_bytes += kTokens * (width + 16) * 4;
    return slice;
  }
  QuantisedSlice quantised(std::int64_t width, bool logits = false) {
    const std::int64_t q = arena_bytes, scale = q + kTokens * width, sum = scale + kTokens * width / kGroup * 4;
    const std::int64_t part_sum = sum + kTokens * width / kGroup * 4;
    arena_bytes = part_sum + kTokens * width / kGroup * 4;
    return {q, scale, sum, part_sum, width, logits};
  }
  int matrix(SourceType source, std::int64_t n, std::int64_t k, Random& random) {
    const WeightFormat format = packed_format(source);
    const Buffer<std::uint8_t> data = random_weights(source, n, k, random);
    const int handle =
        executor->add_matrix(std::make_shared<MappedMemory>(packed_bytes(format, n, k)), 0, format, n, k);
    executor->pack_matrix(handle, source, data.data());
    return handle;
  }

  // `early`: logits rows are selected before attention, not before the logits.
  Model(const IsaFamily& isa, int num_threads, KvType type, bool early = false)
      : executor(std::make_unique<Executor>(
            isa, ExecutorOptions{num_threads, type, kTokens, kTokens, kModelLength, 1, 1, kHeadDim})) {
    Random random(5);
    const int embedding = matrix(SourceType::F32, kVocabulary, kHidden, random),
              qkv = matrix(SourceType::Q8_0, 64, kHidden, random);
    const int project = matrix(SourceType::Q8_0, kHidden, 32, random),
              gate_up = matrix(SourceType::F32, 2 * kHidden, kHidden, random);
    const Buffer<float> norm = normal_floats(kHidden, random), bias = normal_floats(64, random);
    const int weight = executor->add_vector({norm.data(), kHidden}),
              bias_of_qkv = executor->add_vector({bias.data(), 64});
    const double frequencies[] = {1, 0.5, 0.25, 0.125, 0.06, 0.03, 0.01, 0.001};
    const int table = executor->add_rope_table(frequencies, 1.0, RopeStyle::HALF_SPLIT);
    const Slice x = slice(kHidden), heads = slice(64), attended = slice(32, early), sum = slice(kHidden, early),
                wide = slice(2 * kHidden, early);
    const Slice product = slice(kHidden, early), last = slice(kHidden, early), rotated = slice(kHidden, early),
                chosen = slice(kHidden, true), chosen_q = slice(32, true);
    const Slice logits = slice(kVocabulary, true);
    const QuantisedSlice normed = quantised(kHidden), attended_q = quantised(32, early);
    const auto part = [](const Slice& s, std::int64_t at, std::int64_t width) {
      return Slice{s.offset + 4 * at, s.stride, width, s.logits};
    };
    const Slice k = part(heads, 32, 16), v = part(heads, 48, 16), q = part(heads, 0, 32);
    executor->emit(EmbeddingOp{embedding, x});
    executor->emit(RmsNormOp{x, weight, 1e-5f, {}, normed});
    executor->emit(LinearOp{{}, normed, {{qkv, bias_of_qkv}}, {}, heads});
    executor->emit(WriteKvOp{k, v, table, 0});
    if (early) executor->emit(SelectRowsOp{q, chosen_q});
    if (early) executor->emit(SelectRowsOp{x, chosen});
    executor->emit(AttentionOp{early ? chosen_q : q, table, 0, kHeads, 0.25f, attended});
    executor->emit(QuantizeOp{attended, attended_q});
    executor->emit(LinearOp{{}, attended_q, {{project, -1}}, early ? chosen : x, sum});
    executor->emit(LinearOp{sum, {}, {{gate_up, -1}}, {}, wide});
    executor->emit(SiluMulOp{part(wide, 0, kHidden), part(wide, kHidden, kHidden), product, {}});
    executor->emit(AddOp{product, sum, last});
    executor->emit(RopeOp{last, table, kHeadDim, rotated});
    if (!early) executor->emit(SelectRowsOp{rotated, chosen});
    executor->emit(LinearOp{early ? rotated : chosen, {}, {{embedding, -1}}, {}, logits});
    executor->finish(arena_bytes, logits, kVocabulary);
    executor->allocate_kv(kBlocks, true);
  }
};

// A step's arrays on the heap, each of its own exact size.
struct Arrays {
  std::vector<std::int32_t> token_ids, positions, query_start_loc{0}, seq_lens, block_tables, logits_rows;
  std::vector<std::int64_t> slot_mapping;
  std::int64_t table_width = kModelLength / kBlockSize;

  // Tokens begin … end-1 of a sequence of token t ↦ 7 t + id, whose blocks are id, id + 2, id + 4, …
  void add(std::int32_t id, std::int32_t begin, std::int32_t end) {
    for (std::int32_t b = 0; b < table_width; ++b)
      block_tables.push_back((id + 2 * b) % static_cast<std::int32_t>(kBlocks));
    const std::int32_t* table = block_tables.data() + block_tables.size() - static_cast<std::size_t>(table_width);
    for (std::int32_t t = begin; t < end; ++t) {
      token_ids.push_back((7 * t + id) % static_cast<std::int32_t>(kVocabulary));
      positions.push_back(t);
      slot_mapping.push_back(table[t / kBlockSize] * kBlockSize + t % kBlockSize);
      logits_rows.push_back(static_cast<std::int32_t>(token_ids.size()) - 1);
    }
    seq_lens.push_back(end);
    query_start_loc.push_back(static_cast<std::int32_t>(token_ids.size()));
  }
  Step step() const {
    return {token_ids,   positions,           query_start_loc,
            seq_lens,    block_tables.data(), static_cast<std::int64_t>(seq_lens.size()),
            table_width, slot_mapping,        logits_rows};
  }
};

void run(Executor& executor, const Arrays& arrays, Buffer<float>& out, std::int64_t& used) {
  const float* logits = executor.run(arrays.step());
  for (std::size_t r = 0; r < arrays.logits_rows.size(); ++r) {
    std::memcpy(&out[used], logits + static_cast<std::int64_t>(r) * executor.logits().stride,
                kVocabulary * sizeof(float));
    used += kVocabulary;
  }
}

// Logits of one sequence's `length` tokens, in chunks; another sequence keeps it company in every step.
Buffer<float> chunked(Model& model, std::int32_t length, std::int32_t chunk) {
  Buffer<float> out(length * kVocabulary);
  std::int64_t used = 0;
  for (std::int32_t t = 0; t < length; t += chunk) {
    const std::int32_t end = std::min(length, t + chunk);
    Arrays arrays;
    arrays.add(0, t, end);
    run(*model.executor, arrays, out, used);
    Arrays both;
    both.add(1, t, end);
    both.add(0, t, end);
    if (both.token_ids.size() > kTokens) continue;
    Buffer<float> again(2 * (end - t) * kVocabulary);
    std::int64_t at = 0;
    run(*model.executor, both, again, at);
    const std::int64_t mine = (end - t) * kVocabulary;
    check(std::memcmp(again.data() + mine, out.data() + used - mine, static_cast<std::size_t>(mine) * 4) == 0,
          "company changes logits");
  }
  return out;
}

void test_same_logits(KvType type) {
  Model first(select_isa_family("scalar"), 1, type);
  const Buffer<float> want = chunked(first, 60, 60);
  for (std::int64_t i = 0; i < want.size(); ++i) {
    if (!check(std::isfinite(want[i]), "logits are finite")) return;
  }
  for (const IsaFamily& isa : available_isa_families()) {
    for (const int threads : {1, 3}) {
      Model model(isa, threads, type);
      for (const std::int32_t chunk : {1, 7, 16, 60}) {
        check(same(chunked(model, 60, chunk), want), isa.name + ", " + std::to_string(threads) +
                                                         " threads, chunks of " + std::to_string(chunk) +
                                                         ": other logits");
      }
    }
  }
}

// Rows that nobody asks for are left out, wherever they are selected: the same logits of the others, and of later
// steps.
void test_some_logits(Random& random) {
  for (const IsaFamily& isa : available_isa_families()) {
    Model late(isa, 1, KvType::F16), early(isa, 3, KvType::F16, true);
    const Buffer<float> want = chunked(late, 60, 16);
    check(same(chunked(early, 60, 16), want), isa.name + ": other logits where all are asked for early");
    for (int round = 0; round < 12; ++round) {
      Arrays arrays;
      std::vector<std::int64_t> wanted;  // positions
      const auto begin = static_cast<std::int32_t>(16 * below(random, 3));
      const auto end = begin + 1 + static_cast<std::int32_t>(below(random, 28));
      arrays.add(1, 0, end - begin);
      arrays.add(0, begin, end);
      const auto all = arrays.logits_rows;
      arrays.logits_rows.clear();
      for (const std::int32_t row : all) {
        if (round == 0 || below(random, 4) >= round % 5) continue;
        arrays.logits_rows.push_back(row);
        wanted.push_back(row < end - begin ? -1 : begin + row - (end - begin));
      }
      const float* logits = early.executor->run(arrays.step());
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i] < 0) continue;
        const float* row = logits + static_cast<std::int64_t>(i) * early.executor->logits().stride;
        check(std::memcmp(row, &want[wanted[i] * kVocabulary], kVocabulary * sizeof(float)) == 0,
              isa.name + ": other logits of a row that was asked for");
      }
    }
  }
}

// Steps of any shape allocate nothing, the first one neither.
void test_allocations() {
  for (const int threads : {1, 3}) {
    Model model(available_isa_families().front(), threads, KvType::F16, threads == 3);
    std::vector<Arrays> steps(5);
    steps[0].add(0, 0, 60);
    for (std::int32_t id = 0; id < 16; ++id) steps[1].add(id, 70, 71);
    for (std::int32_t id = 0; id < 4; ++id) steps[2].add(0, 80 - id, 81);
    steps[3].add(1, 3, 50);
    steps[4].add(1, 3, 50);
    steps[4].logits_rows = {1, 2, 40};
    const std::int64_t before = allocations;
    for (const Arrays& arrays : steps) model.executor->run(arrays.step());
    const std::int64_t after = allocations;
    check(before > 0 && after == before, "a step allocates nothing");
  }
}

// One number of a good step is replaced by another: the step is refused and names a field, or it runs.
void test_faulty_steps(Random& random) {
  Model model(available_isa_families().front(), 2, KvType::F16);
  const std::int64_t odd[] = {-1, 0, 1, 2, 15, 16, 39, 40, 63, 64, 96, 97, 255, 256, 2147483647, -2147483647 - 1};
  int refused = 0;
  for (int i = 0; i < 600; ++i) {
    Arrays arrays;
    arrays.add(0, 0, 20);
    arrays.add(1, 0, 33);
    const auto value = odd[random() % std::size(odd)];
    const auto spoil = [&](auto& array) {
      using Element = typename std::decay_t<decltype(array)>::value_type;
      if (random() % 8 == 0) {
        array.resize(random() % (array.size() + 3));  // cut off, or longer than it should be
      } else {
        array[random() % array.size()] = static_cast<Element>(value);
      }
    };
    switch (random() % 6) {
      case 0:
        spoil(arrays.token_ids);
        break;
      case 1:
        spoil(arrays.positions);
        break;
      case 2:
        spoil(arrays.query_start_loc);
        break;
      case 3:
        arrays.seq_lens[random() % 2] = static_cast<std::int32_t>(value);
        break;
      case 4:
        arrays.block_tables[random() % arrays.block_tables.size()] = static_cast<std::int32_t>(value);
        break;
      default:
        random() % 2 ? spoil(arrays.slot_mapping) : spoil(arrays.logits_rows);
    }
    try {
      model.executor->run(arrays.step());
    } catch (const std::invalid_argument& error) {
      ++refused;
      const std::string message = error.what();
      const char* const fields[] = {"token_ids",    "positions",    "query_start_loc", "seq_lens",
                                    "block_tables", "slot_mapping", "logits_rows"};
      check(std::any_of(std::begin(fields), std::end(fields), [&](const char* f) { return message.find(f) == 0; }),
            "a refusal that names no field: " + message);
    }
  }
  check(refused > 300, "most faulty steps are refused");
  check_refused("a block that there is not", "block=16", [&] { model.executor->block(kBlocks); });
  check_refused("a matrix that there is not", "matrix 99", [&] { model.executor->matrix(99); });
  check_refused("a matrix beyond its memory", "does not fit",
                [&] { model.executor->add_matrix(std::make_shared<MappedMemory>(64), 0, WeightFormat::F32, 16, 2); });
  check_refused("a matrix at an odd place", "does not fit", [&] {
    model.executor->add_matrix(std::make_shared<MappedMemory>(4096), 32, WeightFormat::F32, 16, 2);
  });
  check_refused("a head size that kernels lack", "head_dim=12",
                [] { Executor(select_isa_family("scalar"), ExecutorOptions{1, KvType::F32, 1, 1, 1, 1, 1, 12}); });
}

// Choices over odd logits on every family: the same tokens, all of them in the vocabulary.
void test_choices(Random& random) {
  constexpr std::int64_t kRows = 60, kWidth = 333;
  Buffer<float> logits = normal_floats(kRows * kWidth, random, 4.0f);
  for (std::int64_t i = 0; i < logits.size(); i += 1 + below(random, 40)) logits[i] = random() % 2 ? -INFINITY : 5.0f;
  std::vector<std::int32_t> rows, top_k, num_logprobs, edit_choices, edit_tokens, count_choices, count_tokens, counts;
  std::vector<std::int32_t> allowed_choices, allowed_tokens;
  std::vector<float> temperature, top_p, min_p, typical_p, repetition, frequency, presence, edit_values;
  std::vector<std::uint64_t> seed;
  std::vector<std::uint32_t> branch, position;
  const float temperatures[] = {0, 0.2f, 1, 3}, shares[] = {1, 0.9f, 0.3f, 1e-6f};
  const std::int32_t limits[] = {0, 1, 5, 332, 333, 100000};
  for (std::int32_t r = 0; r < kRows; ++r) {
    rows.push_back(r), temperature.push_back(temperatures[r % 4]), top_k.push_back(limits[r % 6]),
        top_p.push_back(shares[r % 4]);
    min_p.push_back(r % 7 == 0 ? 0.2f : 0.0f), seed.push_back(random()), branch.push_back(0),
        position.push_back(random());
    num_logprobs.push_back(r % 5 - 1), edit_choices.push_back(r),
        edit_tokens.push_back(static_cast<std::int32_t>(below(random, kWidth)));
    edit_values.push_back(r % 2 ? -INFINITY : 2.0f);
    typical_p.push_back(shares[r % 3]), repetition.push_back(r % 3 ? 1.0f : 1.3f);
    frequency.push_back(r % 2 ? 0.0f : 0.7f), presence.push_back(r % 2 ? -0.4f : 0.4f);
    for (std::int32_t i = 0; i < r % 4; ++i) {
      count_choices.push_back(r), count_tokens.push_back(i * 80 + r), counts.push_back(i);
    }
    for (std::int32_t i = 0; r % 5 == 4 && i < 200; ++i) allowed_choices.push_back(r), allowed_tokens.push_back(i);
  }
  const ChoiceRequest request{logits.data(),   kRows,         kWidth,      kWidth,        rows,         temperature,
                              top_k,           top_p,         min_p,       seed,          branch,       position,
                              num_logprobs,    typical_p,     repetition,  frequency,     presence,     {},
                              edit_choices,    edit_tokens,   edit_values, count_choices, count_tokens, counts,
                              allowed_choices, allowed_tokens};
  std::vector<std::int32_t> first;
  for (const IsaFamily& isa : available_isa_families()) {
    Model model(isa, 2, KvType::F32);
    std::vector<std::int32_t> ids(kRows), ranks(kRows), top_ids(kRows * 3);
    std::vector<float> logprobs(kRows), top_logprobs(kRows * 3);
    model.executor->choose(request,
                           {ids.data(), logprobs.data(), ranks.data(), top_ids.data(), top_logprobs.data(), 3});
    check(std::all_of(ids.begin(), ids.end(), [](std::int32_t id) { return id >= 0 && id < kWidth; }),
          isa.name + ": tokens are in the vocabulary");
    if (first.empty()) first = ids;
    check(ids == first, isa.name + ": other tokens");
  }
  rows[3] = static_cast<std::int32_t>(kRows);
  check_refused("a row that there is not", "rows[3]", [&] { check_choices(request); });
}

}  // namespace

int main() {
  Random random(21);
  test_same_logits(KvType::F32);
  test_same_logits(KvType::F16);
  test_same_logits(KvType::INT8);
  test_some_logits(random);
  test_allocations();
  test_faulty_steps(random);
  test_choices(random);
  return report();
}
