#include "executor.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace octavo {
namespace {

constexpr std::size_t kLeastKvAhead = std::size_t{32} << 20;  // bytes of the cache, present before they are used
constexpr std::size_t kMostKvAhead = std::size_t{256} << 20;
constexpr std::int64_t kPackPanels = 16;  // panels that a thread packs at a time
constexpr std::int64_t kWindowUnit = 16;  // windows are of as many rows as each other, rounded up to this

std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::size_t kind(const Instruction& instruction) { return instruction.index(); }

// Tells who makes the cache's pages present that a step runs, and how far it wrote.
class StepBeside {
 public:
  StepBeside(PagesAhead* pages, const Step& step, std::int64_t block_bytes)
      : pages_(pages), step_(step), block_bytes_(block_bytes) {
    if (pages_ != nullptr) pages_->step_begins();
  }
  ~StepBeside() {
    if (pages_ == nullptr) return;
    const std::int64_t slot = *std::max_element(step_.slot_mapping.begin(), step_.slot_mapping.end());
    pages_->step_ends(static_cast<std::size_t>((slot / kBlockSize + 1) * block_bytes_));
  }
  StepBeside(const StepBeside&) = delete;
  StepBeside& operator=(const StepBeside&) = delete;

 private:
  PagesAhead* pages_;
  const Step& step_;
  std::int64_t block_bytes_;
};

}  // namespace

Executor::Executor(IsaFamily isa, const ExecutorOptions& options)
    : isa_(std::move(isa)),
      options_(options),
      pool_(std::make_unique<ThreadPool>(options.num_threads)),
      seconds_(std::variant_size_v<Instruction>) {
  if (options.head_dim <= 0 || options.head_dim % 8 != 0 || options.head_dim > kMaxHeadDim) {
    throw std::invalid_argument("head_dim=" + std::to_string(options.head_dim) +
                                " is invalid: the native kernels need a multiple of 8 up to " +
                                std::to_string(kMaxHeadDim));
  }
}

int Executor::add_matrix(std::shared_ptr<const MappedMemory> memory, std::size_t offset, WeightFormat format,
                         std::int64_t n, std::int64_t k) {
  const std::size_t bytes = packed_bytes(format, n, k);
  if (offset % 64 != 0 || offset > memory->bytes() || bytes > memory->bytes() - offset) {
    throw std::invalid_argument("a packed matrix of " + std::to_string(bytes) + " bytes does not fit at offset " +
                                std::to_string(offset) + " of " + std::to_string(memory->bytes()) + " bytes");
  }
  const std::uint8_t* data = memory->data() + offset;
  matrices_.push_back({{format, n, k, data}, std::move(memory)});
  weight_bytes_ += static_cast<std::int64_t>(bytes);
  return static_cast<int>(matrices_.size()) - 1;
}

const PackedMatrix& Executor::matrix(int handle) const {
  if (handle < 0 || handle >= static_cast<int>(matrices_.size())) {
    throw std::invalid_argument("matrix " + std::to_string(handle) + " has not been added");
  }
  return matrices_[static_cast<std::size_t>(handle)].packed;
}

void Executor::pack_matrix(int handle, SourceType source, const std::uint8_t* data) {
  const PackedMatrix& w = matrix(handle);
  const MappedMemory& memory = *matrices_[static_cast<std::size_t>(handle)].memory;
  std::uint8_t* target = memory.data() + (w.data - memory.data());
  const std::int64_t panels = num_panels(w);
  pool_->for_each((panels + kPackPanels - 1) / kPackPanels, [&](std::int64_t i, int) {
    const std::int64_t end = std::min(panels, (i + 1) * kPackPanels);
    pack(source, w.format, data, w.n, w.k, i * kPackPanels, end, target);
  });
}

int Executor::add_vector(std::span<const float> values) {
  vectors_.emplace_back(values.begin(), values.end());
  weight_bytes_ += static_cast<std::int64_t>(values.size_bytes());
  return static_cast<int>(vectors_.size()) - 1;
}

int Executor::add_rope_table(std::span<const double> inv_freq, double attention_factor, RopeStyle style) {
  const auto half = static_cast<std::int64_t>(inv_freq.size());
  auto rope = std::make_unique<Rope>();
  rope->rows.resize(static_cast<std::size_t>(options_.max_model_len * 2 * half));
  pool_->for_each(options_.max_model_len, [&](std::int64_t position, int) {
    float* row = rope->rows.data() + position * 2 * half;
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * inv_freq[static_cast<std::size_t>(i)];
      row[i] = static_cast<float>(std::cos(angle) * attention_factor);
      row[half + i] = static_cast<float>(std::sin(angle) * attention_factor);
    }
  });
  rope->table = {rope->rows.data(), 2 * half, style};
  ropes_.push_back(std::move(rope));
  return static_cast<int>(ropes_.size()) - 1;
}

void Executor::emit(Instruction instruction) { instructions_.push_back(std::move(instruction)); }

void Executor::finish(std::int64_t arena_bytes, const Slice& logits, std::int64_t vocab_size) {
  logits_ = logits;
  vocab_size_ = vocab_size;
  arena_ = MappedMemory(static_cast<std::size_t>(arena_bytes));

  std::size_t max_phases = instructions_.size();
  std::int64_t floats = choice_scratch_floats(logits.width);
  for (const Instruction& instruction : instructions_) {
    if (const auto* norm = std::get_if<RmsNormOp>(&instruction)) floats = std::max(floats, norm->x.width);
    if (const auto* silu = std::get_if<SiluMulOp>(&instruction)) floats = std::max(floats, silu->gate.width);
    if (const auto* op = std::get_if<LinearOp>(&instruction); op != nullptr && op->window > 0) {
      const std::int64_t rows = op->out.logits ? options_.max_logits_rows : options_.max_tokens;
      max_phases += static_cast<std::size_t>(2 * (rows / op->window));
    }
    const auto* attention = std::get_if<AttentionOp>(&instruction);
    if (attention == nullptr) continue;
    max_phases += AttentionPlan::kMaxWaves - 1;
    const std::int64_t group = group_of(*attention);
    floats = std::max(floats, attention_scratch_floats(group, options_.head_dim));
    const bool logits = attention->out.logits;
    if (find_plan(group, logits) != nullptr) continue;
    const std::int64_t max_rows =
        logits ? std::min(options_.max_logits_rows, options_.max_tokens) : options_.max_tokens;
    plans_.push_back({group, logits,
                      std::make_unique<AttentionPlan>(options_.num_kv_heads, options_.head_dim, group, max_rows,
                                                      options_.max_model_len, pool_->size())});
  }
  phases_.reserve(max_phases);
  find_shares();
  scratch_floats_ = round_up(floats, 1024) + 16;
  scratch_ = MappedMemory(static_cast<std::size_t>(scratch_floats_ * pool_->size()) * sizeof(float));
}

void Executor::allocate_kv(std::int64_t num_blocks, bool fill_nan) {
  kv_ahead_.reset();
  kv_ = MappedMemory();
  num_blocks_ = 0;
  if (num_blocks > 0 && block_bytes() > std::int64_t{1} << 46) throw std::bad_alloc();
  if (num_blocks > (std::int64_t{1} << 46) / std::max<std::int64_t>(1, block_bytes())) throw std::bad_alloc();
  kv_ = MappedMemory(static_cast<std::size_t>(num_blocks * block_bytes()));
  num_blocks_ = num_blocks;
  if (!fill_nan) {
    if (num_blocks > 0) kv_ahead_ = std::make_unique<PagesAhead>(kv_.data(), kv_.bytes(), kLeastKvAhead, kMostKvAhead);
    return;
  }
  pool_->for_each(num_blocks, [&](std::int64_t i, int) {  // all ones are NaN, in halves, floats and scales alike
    std::memset(kv_.data() + i * block_bytes(), 0xff, static_cast<std::size_t>(block_bytes()));
  });
}

std::span<std::uint8_t> Executor::block(std::int64_t index) {
  if (index < 0 || index >= num_blocks_) {
    throw std::invalid_argument("block=" + std::to_string(index) + " is invalid: must be in [0, " +
                                std::to_string(num_blocks_) + ")");
  }
  return {kv_.data() + index * block_bytes(), static_cast<std::size_t>(block_bytes())};
}

void Executor::copy_block(std::int64_t source, std::int64_t destination) {
  const std::span<std::uint8_t> from = block(source), to = block(destination);
  if (source != destination) std::memcpy(to.data(), from.data(), from.size());
}

const Executor::Planned* Executor::find_plan(std::int64_t group, bool logits) const {
  for (const Planned& planned : plans_) {
    if (planned.group == group && planned.logits == logits) return &planned;
  }
  return nullptr;
}

// Where all rows are logits rows, the plan of all rows serves both.
bool Executor::spare(const Planned& planned) const {
  return planned.logits && step_->num_logits() == step_->num_tokens() && find_plan(planned.group, false) != nullptr;
}

AttentionPlan& Executor::plan(const AttentionOp& op) const {
  const Planned* planned = find_plan(group_of(op), op.out.logits);
  if (spare(*planned)) planned = find_plan(group_of(op), false);
  return *planned->plan;
}

const float* Executor::run(const Step& step) {
  check_step(step, {vocab_size_, options_.max_tokens, options_.max_logits_rows, options_.max_model_len, num_blocks_});
  if (step.num_tokens() == 0) return logits_data();
  step_ = &step;
  for (const Planned& planned : plans_) {
    if (!spare(planned)) planned.plan->prepare(step, planned.group, planned.logits, prefix_sharing_);
  }
  phases_.clear();
  for (std::size_t i = 0; i < instructions_.size();) i = add_phases(i);
  started_s_ = profiling_ ? now_s() : 0;
  const StepBeside beside(kv_ahead_.get(), step, block_bytes());
  StepJob job(*this);
  pool_->run(job, phases_.size());
  if (profiling_) count_time(phases_.size() - 1);
  return logits_data();
}

std::size_t Executor::add_phases(std::size_t instruction) {
  const auto* linear = std::get_if<LinearOp>(&instructions_[instruction]);
  if (linear != nullptr && linear->window > 0 && rows_of(linear->out.logits) > linear->window) {
    add_windows(instruction, *linear, std::get<SiluMulOp>(instructions_[instruction + 1]));
    return instruction + 2;
  }
  phases_.push_back({instruction, std::visit([&](const auto& op) { return cut(op); }, instructions_[instruction])});
  const auto* attention = std::get_if<AttentionOp>(&instructions_[instruction]);
  if (attention == nullptr) return instruction + 1;
  const AttentionPlan& waves = plan(*attention);
  for (std::int32_t wave = 1; wave < waves.num_waves(); ++wave) {
    Cut cut;
    cut.first_unit = waves.wave_begin(wave);
    cut.units = waves.wave_end(wave) - cut.first_unit;
    phases_.push_back({instruction, cut});
  }
  return instruction + 1;
}

void Executor::add_windows(std::size_t instruction, const LinearOp& op, const SiluMulOp& reader) {
  const std::int64_t rows = rows_of(op.out.logits);
  const std::int64_t windows = (rows + op.window - 1) / op.window;
  const std::int64_t each = std::min(op.window, round_up((rows + windows - 1) / windows, kWindowUnit));
  for (std::int64_t first = 0; first < rows; first += each) {
    Cut compute = cut(op, std::min(each, rows - first)), read = cut_rows(compute.rows, reader.gate.width);
    compute.first_row = read.first_row = first;
    phases_.push_back({instruction, compute});
    phases_.push_back({instruction + 1, read});
  }
}

std::int64_t Executor::start_phase(std::size_t index, int thread_id) {
  if (profiling_ && index > 0) count_time(index - 1);
  const Cut& cut = phases_[index].cut;
  if (!cut.serial) return cut.units;
  for (std::int64_t unit = 0; unit < cut.units; ++unit) run_unit_of(index, unit, thread_id);
  return 0;
}

void Executor::run_unit_of(std::size_t phase, std::int64_t unit, int thread_id) {
  const Phase& p = phases_[phase];
  std::visit([&](const auto& op) { run_unit(op, p.cut, p.cut.first_unit + unit, scratch(thread_id)); },
             instructions_[p.instruction]);
}

// Phases follow one another without a gap: the time since the last one ended belongs to the one that ends now.
void Executor::count_time(std::size_t phase) {
  const double now = now_s();
  seconds_[kind(instructions_[phases_[phase].instruction])] += now - started_s_;
  started_s_ = now;
}

void Executor::choose(const ChoiceRequest& request, const ChoiceResult& result) {
  check_choices(request);
  const double started_s = profiling_ ? now_s() : 0;
  const std::int64_t floats = round_up(choice_scratch_floats(request.vocab_size), 1024) + 16;
  if (floats > scratch_floats_) {  // logits of another vocabulary than the program's
    scratch_ = MappedMemory(static_cast<std::size_t>(floats * pool_->size()) * sizeof(float));
    scratch_floats_ = floats;
  }
  pool_->for_each(request.num_choices(), [&](std::int64_t r, int thread_id) {
    choose_one(request, r, *isa_.elementwise, scratch(thread_id), result);
  });
  if (profiling_) choose_seconds_ += now_s() - started_s;
}

void Executor::set_profiling(bool enabled) {
  profiling_ = enabled;
  std::fill(seconds_.begin(), seconds_.end(), 0.0);
  choose_seconds_ = 0;
}

}  // namespace octavo
