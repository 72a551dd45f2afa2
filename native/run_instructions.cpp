// How each kind of instruction is cut into units, and what a unit does. Units cut rows and output columns, never sums,
// so that no result depends on the cut.
#include <algorithm>
#include <cstring>

#include "executor.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kSerialFloats = 8192;       // instructions up to this size are done by one thread at the barrier
constexpr std::int64_t kSerialKvFloats = 2048;     // of K and V: stores to lines that are in no near cache
constexpr std::int64_t kLeastFloats = 4096;        // of a unit of a row-wise instruction
constexpr std::int64_t kUnitFloats = 16384;        // the same, if there is enough for all threads
constexpr std::int64_t kUnitsPerThread = 8;        // of a large instruction
constexpr std::int64_t kFewRows = 8;               // up to here reading weights is what takes the time, and units are
constexpr std::int64_t kStreamBytes = 32 << 10;    // as long as this, or longer
constexpr std::int64_t kAheadOfPhase = 384 << 10;  // of weights, that a waiting thread asks for: much of its own cache
constexpr std::int64_t kAheadOfStep = 8 << 20;     // between two steps: of the shared cache
constexpr std::int64_t kStripPanels = 6;           // kernels take two or three panels together
constexpr std::int64_t kActivationBytes = 256 << 10;  // rows that stay in a core's own cache while panels pass

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The first of `count` panels in part `part` of `parts` that are as equal as can be.
std::int64_t part_begin(std::int64_t count, std::int64_t part, std::int64_t parts) { return count * part / parts; }

template <class F>
void for_unit_rows(std::int64_t total, std::int64_t per_unit, std::int64_t unit, F&& f) {
  const std::int64_t end = std::min(total, (unit + 1) * per_unit);
  for (std::int64_t r = unit * per_unit; r < end; ++r) f(r);
}

}  // namespace

Executor::Cut Executor::cut_rows(std::int64_t rows, std::int64_t floats_per_row) const {
  const std::int64_t floats = rows * floats_per_row, threads = pool_->size();
  Cut cut;
  cut.rows = rows;
  cut.serial = floats <= kSerialFloats;
  cut.rows_per_unit = std::max<std::int64_t>(1, rows);
  if (!cut.serial) {  // as many units for each thread
    const std::int64_t each = std::clamp<std::int64_t>(floats / (kUnitFloats * threads), 1, kUnitsPerThread);
    const std::int64_t least = ceil_div(kLeastFloats, floats_per_row);
    cut.rows_per_unit = std::max(least, ceil_div(rows, each * threads));
  }
  cut.units = ceil_div(rows, cut.rows_per_unit);
  cut.serial = cut.units <= 1;
  return cut;
}

Executor::Cut Executor::cut(const EmbeddingOp& op) const { return cut_rows(rows_of(false), op.out.width); }
Executor::Cut Executor::cut(const RmsNormOp& op) const { return cut_rows(rows_of(op.x.logits), op.x.width); }
Executor::Cut Executor::cut(const QuantizeOp& op) const { return cut_rows(rows_of(op.x.logits), op.x.width); }
Executor::Cut Executor::cut(const RopeOp& op) const { return cut_rows(rows_of(op.x.logits), op.x.width); }
Executor::Cut Executor::cut(const SiluMulOp& op) const { return cut_rows(rows_of(op.gate.logits), op.gate.width); }
Executor::Cut Executor::cut(const AddOp& op) const { return cut_rows(rows_of(op.x.logits), op.x.width); }
Executor::Cut Executor::cut(const SelectRowsOp& op) const { return cut_rows(rows_of(true), op.x.width); }

Executor::Cut Executor::cut(const WriteKvOp& op) const {
  const std::int64_t rows = rows_of(false);
  const bool small = rows * 2 * op.k.width <= kSerialKvFloats;
  const bool alone = rows == step_->num_sequences();  // each row in a block of its own
  Cut cut;
  cut.rows_per_unit = kBlockSize;  // neighbouring tokens share cache lines of K
  if (small || alone) cut.rows_per_unit = small ? rows : std::min(kBlockSize, ceil_div(rows, pool_->size()));
  cut.units = ceil_div(rows, cut.rows_per_unit);
  cut.serial = cut.units <= 1;
  return cut;
}

Executor::Cut Executor::cut(const AttentionOp& op) const {
  Cut cut;
  cut.units = plan(op).wave_end(0);
  cut.serial = cut.units == 0;
  return cut;
}

Executor::Cut Executor::cut(const LinearOp& op, std::int64_t rows) const {
  std::int64_t panels = 0, bytes = 0, k = 0;
  for (const LinearPart& part : op.parts) {
    const PackedMatrix& w = matrices_[static_cast<std::size_t>(part.matrix)].packed;
    panels += num_panels(w);
    bytes += num_panels(w) * panel_bytes(w.format, w.k);
    k = w.k;
  }
  const std::int64_t row_bytes = op.x.has_value() ? 4 * k : k + k / 4;
  Cut cut;
  cut.rows = rows;
  cut.serial = rows == 0;
  if (rows <= kFewRows) {
    cut.rows_per_unit = std::max<std::int64_t>(1, rows);
    cut.panels_per_unit = 0;
    const std::int64_t pieces = bytes / pool_->size() / kStreamBytes;
    cut.units = rows == 0 ? 0 : std::clamp<std::int64_t>(pieces, 1, kUnitsPerThread) * pool_->size();
    return cut;
  }
  cut.rows_per_unit = std::max<std::int64_t>(48, kActivationBytes / row_bytes / 48 * 48);
  if (rows <= cut.rows_per_unit * 3 / 2) cut.rows_per_unit = rows;
  cut.panels_per_unit =
      std::max(kStripPanels, panels / (kUnitsPerThread * pool_->size()) / kStripPanels * kStripPanels);
  cut.units = ceil_div(panels, cut.panels_per_unit) * ceil_div(rows, cut.rows_per_unit);
  return cut;
}

std::int64_t Executor::panels_of(const LinearOp& op) const {
  std::int64_t panels = 0;
  for (const LinearPart& part : op.parts) {
    panels += num_panels(matrices_[static_cast<std::size_t>(part.matrix)].packed);
  }
  return panels;
}

void Executor::quantise(const float* x, std::int64_t ldx, std::int64_t row, std::int64_t rows,
                        const QuantisedSlice& out) {
  const std::int64_t groups = out.width / kGroup;
  isa_.linear->quantize_rows(x, ldx, rows, out.width,
                             {reinterpret_cast<std::int8_t*>(arena_.data() + out.q) + row * out.width,
                              reinterpret_cast<float*>(arena_.data() + out.scale) + row * groups,
                              reinterpret_cast<float*>(arena_.data() + out.sum) + row * groups,
                              reinterpret_cast<std::int16_t*>(arena_.data() + out.part_sum) + row * groups * 2});
}

void Executor::run_unit(const EmbeddingOp& op, const Cut& cut, std::int64_t unit, float*) {
  const PackedMatrix& table = matrices_[static_cast<std::size_t>(op.matrix)].packed;
  for_unit_rows(rows_of(false), cut.rows_per_unit, unit, [&](std::int64_t r) {
    dequantize_row(table, step_->token_ids[static_cast<std::size_t>(r)], row(op.out, r));
  });
}

void Executor::run_unit(const RmsNormOp& op, const Cut& cut, std::int64_t unit, float* scratch) {
  const float* weight = vectors_[static_cast<std::size_t>(op.vector)].data();
  for_unit_rows(rows_of(op.x.logits), cut.rows_per_unit, unit, [&](std::int64_t r) {
    float* out = op.out.has_value() ? row(*op.out, r) : scratch;
    isa_.elementwise->rms_norm(row(op.x, r), weight, op.eps, op.x.width, out);
    if (op.quantised.has_value()) quantise(out, op.x.width, r, 1, *op.quantised);
  });
}

void Executor::run_unit(const QuantizeOp& op, const Cut& cut, std::int64_t unit, float*) {
  const std::int64_t begin = unit * cut.rows_per_unit;
  const std::int64_t rows = std::min(cut.rows_per_unit, rows_of(op.x.logits) - begin);
  quantise(row(op.x, begin), op.x.stride, begin, rows, op.out);
}

void Executor::run_unit(const LinearOp& op, const Cut& cut, std::int64_t unit, float*) {
  const std::int64_t row_blocks = ceil_div(cut.rows, cut.rows_per_unit);
  const std::int64_t out_row = unit % row_blocks * cut.rows_per_unit, first_row = cut.first_row + out_row;
  const std::int64_t m = std::min(cut.rows_per_unit, cut.rows - out_row);
  std::int64_t begin = unit / row_blocks * cut.panels_per_unit;  // panels, counted through all parts
  std::int64_t end = begin + cut.panels_per_unit;
  if (cut.panels_per_unit == 0) {
    const std::int64_t panels = panels_of(op);
    begin = part_begin(panels, unit, cut.units);
    end = part_begin(panels, unit + 1, cut.units);
  }
  std::int64_t column = 0;
  for (const LinearPart& part : op.parts) {
    const PackedMatrix& w = matrices_[static_cast<std::size_t>(part.matrix)].packed;
    const std::int64_t panels = num_panels(w);
    if (begin < panels && end > 0) {
      Activations a{};
      if (quantised(w.format)) {
        const QuantisedSlice& q = *op.quantised;
        const std::int64_t groups = q.width / kGroup;
        a.q = reinterpret_cast<const std::int8_t*>(arena_.data() + q.q) + first_row * q.width;
        a.scale = reinterpret_cast<const float*>(arena_.data() + q.scale) + first_row * groups;
        a.sum = reinterpret_cast<const float*>(arena_.data() + q.sum) + first_row * groups;
        a.part_sum = reinterpret_cast<const std::int16_t*>(arena_.data() + q.part_sum) + first_row * groups * 2;
      } else {
        a.f = row(*op.x, first_row);
        a.ldf = op.x->stride;
      }
      LinearOutput out{};
      out.out = row(op.out, out_row) + column;
      out.ldo = op.out.stride;
      out.bias = part.bias < 0 ? nullptr : vectors_[static_cast<std::size_t>(part.bias)].data();
      if (op.residual.has_value()) {
        out.residual = row(*op.residual, first_row) + column;
        out.ldr = op.residual->stride;
      }
      isa_.linear->linear(w, a, m, std::max<std::int64_t>(0, begin), std::min(panels, end), out);
    }
    begin -= panels;
    end -= panels;
    column += w.n;
  }
}

// Where each thread's shares of the weights are, linear layer after linear layer, when rows are few.
void Executor::find_shares() {
  const std::int64_t threads = pool_->size();
  shares_.assign(static_cast<std::size_t>(threads), {});
  first_share_.assign(instructions_.size() + 1, 0);
  for (std::size_t i = 0; i < instructions_.size(); ++i) {
    const auto* op = std::get_if<LinearOp>(&instructions_[i]);
    first_share_[i + 1] = first_share_[i] + (op == nullptr ? 0 : op->parts.size());
    if (op == nullptr) continue;
    const std::int64_t panels = panels_of(*op);
    for (std::int64_t t = 0; t < threads; ++t) {
      std::int64_t begin = part_begin(panels, t, threads), end = part_begin(panels, t + 1, threads);
      for (const LinearPart& part : op->parts) {
        const PackedMatrix& w = matrices_[static_cast<std::size_t>(part.matrix)].packed;
        const std::int64_t first = std::clamp<std::int64_t>(begin, 0, num_panels(w));
        const std::int64_t last = std::clamp<std::int64_t>(end, 0, num_panels(w));
        const std::int64_t bytes = panel_bytes(w.format, w.k);
        shares_[static_cast<std::size_t>(t)].push_back({w.data + first * bytes, (last - first) * bytes});
        begin -= num_panels(w);
        end -= num_panels(w);
      }
    }
  }
}

Ahead Executor::ahead(std::size_t phase, int thread_id) const {
  if (step_->num_tokens() > kFewRows) return {};
  const std::span<const Stretch> shares(shares_[static_cast<std::size_t>(thread_id)]);
  const std::size_t first = first_share_[phases_[phase].instruction + 1];
  if (first == shares.size()) return {shares, kAheadOfStep};
  return {shares.subspan(first), kAheadOfPhase};
}

void Executor::run_unit(const RopeOp& op, const Cut& cut, std::int64_t unit, float*) {
  const RopeTable& table = *rope_table(op.table);
  for_unit_rows(rows_of(op.x.logits), cut.rows_per_unit, unit, [&](std::int64_t r) {
    const std::int64_t token = op.x.logits ? step_->logits_rows[static_cast<std::size_t>(r)] : r;
    isa_.elementwise->rope(row(op.x, r), table, step_->positions[static_cast<std::size_t>(token)],
                           op.x.width / op.head_dim, op.head_dim, row(op.out, r));
  });
}

void Executor::run_unit(const WriteKvOp& op, const Cut& cut, std::int64_t unit, float*) {
  const RopeTable* table = rope_table(op.table);
  for_unit_rows(rows_of(false), cut.rows_per_unit, unit, [&](std::int64_t r) {
    const std::int64_t slot = step_->slot_mapping[static_cast<std::size_t>(r)];
    std::uint8_t* part = kv_.data() + slot / kBlockSize * block_bytes() + op.layer * layer_bytes();
    isa_.attention->write_kv(row(op.k, r), row(op.v, r), options_.num_kv_heads, options_.head_dim, options_.kv_type,
                             table, step_->positions[static_cast<std::size_t>(r)], part, slot % kBlockSize);
  });
}

void Executor::run_unit(const AttentionOp& op, const Cut& cut, std::int64_t unit, float* scratch) {
  AttentionCall call{};
  call.q = row(op.q, 0);
  call.ldq = op.q.stride;
  call.out = row(op.out, 0);
  call.ldo = op.out.stride;
  call.kv = kv_.data() + op.layer * layer_bytes();
  call.block_bytes = block_bytes();
  call.num_heads = op.num_heads;
  call.num_kv_heads = options_.num_kv_heads;
  call.head_dim = options_.head_dim;
  call.scale = op.scale;
  call.kv_type = options_.kv_type;
  call.rope = rope_table(op.table);
  const std::int64_t item = cut.first_unit + pool_->dealt(unit - cut.first_unit, cut.units);  // costly ones come first
  plan(op).run(item, *isa_.attention, call, scratch);
}

void Executor::run_unit(const SiluMulOp& op, const Cut& cut, std::int64_t unit, float* scratch) {
  for_unit_rows(cut.rows, cut.rows_per_unit, unit, [&](std::int64_t in_row) {
    const std::int64_t r = cut.first_row + in_row;
    float* out = op.out.has_value() ? row(*op.out, r) : scratch;
    isa_.elementwise->silu_mul(row(op.gate, in_row), row(op.up, in_row), op.gate.width, out);
    if (op.quantised.has_value()) quantise(out, op.gate.width, r, 1, *op.quantised);
  });
}

void Executor::run_unit(const AddOp& op, const Cut& cut, std::int64_t unit, float*) {
  for_unit_rows(rows_of(op.x.logits), cut.rows_per_unit, unit,
                [&](std::int64_t r) { isa_.elementwise->add(row(op.x, r), row(op.y, r), op.x.width, row(op.out, r)); });
}

void Executor::run_unit(const SelectRowsOp& op, const Cut& cut, std::int64_t unit, float*) {
  for_unit_rows(rows_of(true), cut.rows_per_unit, unit, [&](std::int64_t r) {
    std::memcpy(row(op.out, r), row(op.x, step_->logits_rows[static_cast<std::size_t>(r)]),
                static_cast<std::size_t>(op.x.width) * sizeof(float));
  });
}

}  // namespace octavo
