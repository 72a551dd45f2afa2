#include "choose.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "philox.hpp"

namespace octavo {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kHeapLimit = 1024;  // up to this top_k a heap beats a selection
constexpr std::int64_t kSortLimit = 64;    // a nucleus' edge is sorted within so many tokens
constexpr int kBuckets = 1024;             // of probability, to find the one in which a share is reached
constexpr double kBucketsPerNat = 16;
constexpr std::int64_t kSumBlock = 256;

template <class T>
[[noreturn]] void fail(const char* field, std::size_t index, T value, const std::string& hint) {
  throw std::invalid_argument(std::string(field) + "[" + std::to_string(index) + "] = " + std::to_string(value) +
                              " is invalid: " + hint);
}

template <class T, class Valid>
void check_all(const char* field, std::span<const T> values, std::size_t length, Valid&& valid,
               const std::string& hint) {
  if (values.size() != length) {
    throw std::invalid_argument(std::string(field) + " has " + std::to_string(values.size()) +
                                " entries, but there are " + std::to_string(length));
  }
  for (std::size_t i = 0; i < length; ++i) {
    if (!valid(values[i])) fail(field, i, values[i], hint);
  }
}

std::string range(std::int64_t end) { return "must be in [0, " + std::to_string(end) + ")"; }

// Scratch of one choice.
struct Workspace {
  float* adjusted;      // (V,)
  double* weights;      // (V,)
  std::int32_t* ids;    // (V,)
  float* values;        // (V,), shares memory with ids
  std::int32_t* spare;  // (V,)
};

Workspace carve(float* scratch, std::int64_t vocab_size) {
  const std::int64_t padded = (vocab_size + 7) / 8 * 8;
  float* values = scratch + 3 * padded;
  return {scratch, reinterpret_cast<double*>(scratch + padded), reinterpret_cast<std::int32_t*>(values), values,
          reinterpret_cast<std::int32_t*>(values + padded)};
}

struct Entries {
  std::size_t begin, end;
  bool empty() const { return begin == end; }
};

// The entries of choice r, of a sorted list of choices.
Entries entries_of(std::span<const std::int32_t> choices, std::int64_t r) {
  if (choices.empty()) return {0, 0};
  const auto [begin, end] = std::equal_range(choices.begin(), choices.end(), static_cast<std::int32_t>(r));
  return {static_cast<std::size_t>(begin - choices.begin()), static_cast<std::size_t>(end - choices.begin())};
}

float value_or(std::span<const float> values, std::size_t r, float neutral) {
  return values.empty() ? neutral : values[r];
}

void penalise(const ChoiceRequest& request, std::size_t r, Entries counted, float* logits) {
  const float repetition = value_or(request.repetition_penalty, r, 1.0f);
  const float frequency = value_or(request.frequency_penalty, r, 0.0f);
  const float presence = value_or(request.presence_penalty, r, 0.0f);
  for (std::size_t i = counted.begin; i < counted.end; ++i) {
    float& x = logits[request.count_tokens[i]];
    x = x > 0 ? x / repetition : x * repetition;
    if (request.counts[i] > 0) {
      x -= frequency * static_cast<float>(request.counts[i]);
      x -= presence;
    }
  }
}

// The logits of choice r: the model's own, or a copy with its allowed set, edits and penalties. Null if the row is
// faulty where the allowed set would hide it.
const float* adjust(const ChoiceRequest& request, std::int64_t r, const float* row, const ElementwiseKernels& kernels,
                    float* adjusted) {
  const Entries allowed = entries_of(request.allowed_choices, r);
  const Entries edits = entries_of(request.edit_choices, r);
  const Entries counted = entries_of(request.count_choices, r);
  if (allowed.empty() && edits.empty() && counted.empty()) return row;
  const std::int64_t n = request.vocab_size;
  if (allowed.empty()) {
    std::memcpy(adjusted, row, static_cast<std::size_t>(n) * sizeof(float));
  } else {
    float max = 0;
    if (!kernels.row_max(row, n, &max) || max == kInfinity) return nullptr;
    std::fill_n(adjusted, n, -kInfinity);
    for (std::size_t i = allowed.begin; i < allowed.end; ++i) {
      adjusted[request.allowed_tokens[i]] = row[request.allowed_tokens[i]];
    }
  }
  for (std::size_t i = edits.begin; i < edits.end; ++i) adjusted[request.edit_tokens[i]] += request.edit_values[i];
  if (!counted.empty()) penalise(request, static_cast<std::size_t>(r), counted, adjusted);
  return adjusted;
}

// The k-th largest of x, 0 < k < n. `values` has room for n floats.
float kth_largest(const float* x, std::int64_t n, std::int64_t k, float* values) {
  if (k > kHeapLimit) {
    std::memcpy(values, x, static_cast<std::size_t>(n) * sizeof(float));
    std::nth_element(values, values + (k - 1), values + n, std::greater<>());
    return values[k - 1];
  }
  std::memcpy(values, x, static_cast<std::size_t>(k) * sizeof(float));
  std::make_heap(values, values + k, std::greater<>());  // the smallest on top
  for (std::int64_t i = k; i < n; ++i) {
    if (x[i] <= values[0]) continue;
    std::pop_heap(values, values + k, std::greater<>());
    values[k - 1] = x[i];
    std::push_heap(values, values + k, std::greater<>());
  }
  return values[0];
}

// An order of tokens, in which a share of the probability is cut off. `distance` is 0 or more and grows along the
// order, if not strictly; it decides which bucket a token falls into.

// More probable first, ties by lower id.
struct MoreProbable {
  const float* logits;
  double max = 0.0;

  double distance(std::int32_t id) const { return max - logits[id]; }
  bool operator()(std::int32_t a, std::int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// More typical first, ties by lower id: information nearer to the entropy of what is kept. Information and entropy,
// -x / T + ln(total) and -mean(x) / T + ln(total), differ in proportion to the distance of x from its mean.
struct MoreTypical {
  const float* logits;
  double max, mean;  // mean of x - max

  double distance(std::int32_t id) const { return std::abs(logits[id] - max - mean); }
  bool operator()(std::int32_t a, std::int32_t b) const {
    const double x = distance(a), y = distance(b);
    return x != y ? x < y : a < b;
  }
};

double sum_of(const double* weights, const std::int32_t* ids, std::int64_t count) {
  double total = 0.0;
  for (std::int64_t i = 0; i < count; ++i) total += weights[ids[i]];
  return total;
}

// The last id, in the order of `before`, of the smallest set of first ones whose weight reaches `share` of the total.
// Changes ids.
template <class Before>
std::int32_t edge_of(const double* weights, double share, double temperature, const Before& before, std::int32_t* ids,
                     std::int64_t count) {
  const double scale = kBucketsPerNat / temperature;
  const auto bucket_of = [&](std::int32_t id) {
    const double place = before.distance(id) * scale;
    return place < kBuckets - 1 ? static_cast<int>(place) : kBuckets - 1;
  };
  double in_bucket[kBuckets] = {};
  double total = 0.0;
  for (std::int64_t i = 0; i < count; ++i) {
    total += weights[ids[i]];
    in_bucket[bucket_of(ids[i])] += weights[ids[i]];
  }
  double wanted = share * total;  // of the weight from the edge's bucket on
  int edge = 0;
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    if (in_bucket[bucket] == 0.0) continue;
    if (bucket > edge) wanted -= in_bucket[edge];
    edge = bucket;
    if (in_bucket[bucket] >= wanted) break;
  }
  count = std::remove_if(ids, ids + count, [&](std::int32_t id) { return bucket_of(id) != edge; }) - ids;
  // Halve the part that the cut lies in, until little is left to sort: ids[0 … begin) are kept, ids[end …) are not.
  std::int64_t begin = 0, end = count;
  while (end - begin > kSortLimit) {
    const std::int64_t middle = begin + (end - begin) / 2;
    std::nth_element(ids + begin, ids + middle, ids + end, before);
    const double upper = sum_of(weights, ids + begin, middle - begin);
    if (upper >= wanted) {
      end = middle;
    } else {
      wanted -= upper;
      begin = middle;
    }
  }
  std::sort(ids + begin, ids + end, before);
  double reached = 0.0;
  while (begin < end && (begin == 0 || reached < wanted)) reached += weights[ids[begin++]];
  return ids[begin - 1];
}

// The mean of x - max over the first `count` ids.
double mean_below_max(const float* logits, const double* weights, double max, const std::int32_t* ids,
                      std::int64_t count) {
  double total = 0.0, sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double weight = weights[ids[i]];
    if (weight > 0) {
      total += weight;
      sum += weight * (logits[ids[i]] - max);
    }
  }
  return sum / total;
}

std::int32_t draw_from(const double* weights, const std::int32_t* ids, std::int64_t count, double u) {
  const double target = u * sum_of(weights, ids, count);
  double reached = 0.0;
  std::int32_t last = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    reached += weights[ids[i]];
    if (weights[ids[i]] > 0) last = ids[i];
    if (reached > target) return ids[i];
  }
  return last;
}

double block_sum(const double* weights, std::int64_t begin, std::int64_t end) {
  double sums[4] = {};
  for (std::int64_t i = begin; i < end; ++i) sums[i % 4] += weights[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The same over all ids, block by block.
std::int32_t draw_from_all(const double* weights, std::int64_t count, double total, double u) {
  const double target = u * total;
  double reached = 0.0;
  std::int32_t last = -1;
  for (std::int64_t begin = 0; begin < count; begin += kSumBlock) {
    const std::int64_t end = std::min(count, begin + kSumBlock);
    const double block = block_sum(weights, begin, end);
    if (block == 0.0) continue;
    if (reached + block <= target && end < count) {
      reached += block;
      continue;
    }
    double inside = reached;
    for (std::int64_t i = begin; i < end; ++i) {
      inside += weights[i];
      if (weights[i] > 0) last = static_cast<std::int32_t>(i);
      if (inside > target) return static_cast<std::int32_t>(i);
    }
    reached = inside;
  }
  if (last >= 0) return last;
  for (std::int64_t i = count; i-- > 0;) {  // rounding left the target just beyond the end
    if (weights[i] > 0) return static_cast<std::int32_t>(i);
  }
  return -1;
}

std::int32_t sample(const ChoiceRequest& request, std::size_t r, const float* logits, float max,
                    const ElementwiseKernels& kernels, const Workspace& work) {
  const std::int64_t n = request.vocab_size;
  const double total = kernels.exp_weights(logits, n, max, request.temperature[r], work.weights);
  const double u = philox_uniform(request.seed[r], request.branch[r], request.position[r]);
  const double min_p = request.min_p[r], top_p = request.top_p[r];
  const double typical_p = value_or(request.typical_p, r, 1.0f);
  const std::int64_t top_k = request.top_k[r];
  const bool limit = top_k > 0 && top_k < n;
  if (min_p <= 0 && !limit && top_p >= 1 && typical_p >= 1) return draw_from_all(work.weights, n, total, u);
  const float least = limit ? kth_largest(logits, n, top_k, work.values) : -kInfinity;
  std::int64_t count = 0;
  for (std::int32_t i = 0; i < n; ++i) {
    work.ids[count] = i;
    count += logits[i] >= least && work.weights[i] >= min_p ? 1 : 0;
  }
  const double temperature = request.temperature[r];
  const auto cut = [&](double share, const auto& before) {  // in id order, as before
    std::copy_n(work.ids, count, work.spare);
    const std::int32_t edge = edge_of(work.weights, share, temperature, before, work.spare, count);
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t id = work.ids[i];
      work.ids[kept] = id;
      kept += before(edge, id) ? 0 : 1;
    }
    count = kept;
  };
  if (top_p < 1) cut(top_p, MoreProbable{logits, max});
  if (typical_p < 1) {
    cut(typical_p, MoreTypical{logits, max, mean_below_max(logits, work.weights, max, work.ids, count)});
  }
  return draw_from(work.weights, work.ids, count, u);
}

// Log-probabilities, rank and the most probable tokens, from the model's own logits.
void report(const ChoiceRequest& request, std::int64_t r, const float* row, std::int32_t token,
            const ElementwiseKernels& kernels, const Workspace& work, const ChoiceResult& result) {
  const std::int64_t n = request.vocab_size;
  float max = 0;
  kernels.row_max(row, n, &max);
  const double log_total = std::log(kernels.exp_weights(row, n, max, 1.0, nullptr));
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(row[id]) - max - log_total);
  };
  std::int32_t rank = 1;
  for (std::int64_t i = 0; i < n; ++i) rank += row[i] > row[token] || (row[i] == row[token] && i < token) ? 1 : 0;
  result.logprobs[r] = logprob(token);
  result.ranks[r] = rank;

  const std::int64_t k = std::min<std::int64_t>(n, request.num_logprobs[static_cast<std::size_t>(r)]);
  if (k == 0) return;
  const MoreProbable better{row};
  for (std::int64_t i = 0; i < k; ++i) work.ids[i] = static_cast<std::int32_t>(i);
  std::make_heap(work.ids, work.ids + k, better);  // the least probable on top
  for (std::int64_t i = k; i < n; ++i) {
    if (!(row[i] > row[work.ids[0]])) continue;  // a tie loses to the lower id
    std::pop_heap(work.ids, work.ids + k, better);
    work.ids[k - 1] = static_cast<std::int32_t>(i);
    std::push_heap(work.ids, work.ids + k, better);
  }
  std::sort_heap(work.ids, work.ids + k, better);
  for (std::int64_t i = 0; i < k; ++i) {
    result.top_ids[r * result.width + i] = work.ids[i];
    result.top_logprobs[r * result.width + i] = logprob(work.ids[i]);
  }
}

void check_entries(const ChoiceRequest& request, const char* choices_field, std::span<const std::int32_t> choices,
                   const char* tokens_field, std::span<const std::int32_t> tokens) {
  const std::int64_t num = request.num_choices(), vocab_size = request.vocab_size;
  check_all(choices_field, choices, choices.size(), [&](std::int32_t x) { return x >= 0 && x < num; }, range(num));
  for (std::size_t i = 1; i < choices.size(); ++i) {
    if (choices[i] < choices[i - 1]) fail(choices_field, i, choices[i], "must be sorted by choice");
  }
  check_all(
      tokens_field, tokens, choices.size(), [&](std::int32_t x) { return x >= 0 && x < vocab_size; },
      range(vocab_size));
}

}  // namespace

void check_choices(const ChoiceRequest& request) {
  const std::size_t n = request.rows.size();
  check_all(
      "rows", request.rows, n, [&](std::int32_t x) { return x >= 0 && x < request.num_rows; }, range(request.num_rows));
  check_all(
      "temperature", request.temperature, n, [](float x) { return std::isfinite(x) && x >= 0; },
      "must be finite and not negative");
  check_all("top_k", request.top_k, n, [](std::int32_t x) { return x >= 0; }, "must not be negative (0 keeps all)");
  check_all("top_p", request.top_p, n, [](float x) { return x > 0 && x <= 1; }, "must be in (0, 1]");
  check_all("min_p", request.min_p, n, [](float x) { return x >= 0 && x <= 1; }, "must be in [0, 1]");
  const auto any = [](auto) { return true; };
  check_all("seed", request.seed, n, any, "");
  check_all("branch", request.branch, n, any, "");
  check_all("position", request.position, n, any, "");
  check_all(
      "num_logprobs", request.num_logprobs, n, [](std::int32_t x) { return x >= -1; }, "must be -1 (none) or more");
  const auto optional = [&](const char* field, std::span<const float> values, auto&& valid, const std::string& hint) {
    if (!values.empty()) check_all(field, values, n, valid, hint);
  };
  optional("typical_p", request.typical_p, [](float x) { return x > 0 && x <= 1; }, "must be in (0, 1]");
  optional(
      "repetition_penalty", request.repetition_penalty, [](float x) { return std::isfinite(x) && x > 0; },
      "must be finite and above 0");
  const auto finite = [](float x) { return std::isfinite(x); };
  optional("frequency_penalty", request.frequency_penalty, finite, "must be finite");
  optional("presence_penalty", request.presence_penalty, finite, "must be finite");
  if (!request.report_rows.empty()) {
    check_all(
        "report_rows", request.report_rows, n, [&](std::int32_t x) { return x >= 0 && x < request.num_rows; },
        range(request.num_rows));
  }
  const std::size_t edits = request.edit_choices.size();
  check_entries(request, "edit_choices", request.edit_choices, "edit_tokens", request.edit_tokens);
  check_all("edit_values", request.edit_values, edits, any, "");
  check_entries(request, "count_choices", request.count_choices, "count_tokens", request.count_tokens);
  check_all(
      "counts", request.counts, request.count_choices.size(), [](std::int32_t x) { return x >= 0; },
      "must not be negative");
  check_entries(request, "allowed_choices", request.allowed_choices, "allowed_tokens", request.allowed_tokens);
}

void choose_one(const ChoiceRequest& request, std::int64_t index, const ElementwiseKernels& kernels, float* scratch,
                const ChoiceResult& result) {
  const auto r = static_cast<std::size_t>(index);
  const std::int64_t n = request.vocab_size;
  const Workspace work = carve(scratch, n);
  result.token_ids[r] = -1;
  if (result.logprobs != nullptr) {
    result.logprobs[r] = std::numeric_limits<float>::quiet_NaN();
    result.ranks[r] = 0;
    std::fill_n(result.top_ids + index * result.width, result.width, -1);
    std::fill_n(result.top_logprobs + index * result.width, result.width, std::numeric_limits<float>::quiet_NaN());
  }

  const float* row = request.logits + request.rows[r] * request.stride;
  const float* logits = adjust(request, index, row, kernels, work.adjusted);
  float max = 0;
  if (logits == nullptr || !kernels.row_max(logits, n, &max) || !std::isfinite(max)) return;
  const std::int32_t token = request.temperature[r] == 0
                                 ? static_cast<std::int32_t>(std::find(logits, logits + n, max) - logits)
                                 : sample(request, r, logits, max, kernels, work);
  result.token_ids[r] = token;
  if (token < 0 || request.num_logprobs[r] < 0) return;
  const float* reported = request.report_rows.empty() ? row : request.logits + request.report_rows[r] * request.stride;
  report(request, index, reported, token, kernels, work, result);
}

}  // namespace octavo
