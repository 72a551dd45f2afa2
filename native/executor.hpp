// A compiled program: packed weights, instructions, KV storage and scratch memory; runs one step in one call.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_plan.hpp"
#include "choose.hpp"
#include "instructions.hpp"
#include "isa.hpp"
#include "memory.hpp"
#include "pack.hpp"
#include "pages_ahead.hpp"
#include "step.hpp"
#include "thread_pool.hpp"

namespace octavo {

struct ExecutorOptions {
  int num_threads;
  KvType kv_type;
  std::int64_t max_tokens, max_logits_rows, max_model_len;
  std::int64_t num_layers, num_kv_heads, head_dim;
};

class Executor {
 public:
  // Throws std::invalid_argument for a head_dim that the kernels do not have.
  Executor(IsaFamily isa, const ExecutorOptions& options);

  // Building. Handles are indices, in order of addition.
  //
  // A packed matrix at `offset`, a multiple of 64, of memory that may be shared: it holds the matrix already, or will
  // once it has been packed. Throws std::invalid_argument if the matrix does not lie within.
  int add_matrix(std::shared_ptr<const MappedMemory> memory, std::size_t offset, WeightFormat format, std::int64_t n,
                 std::int64_t k);
  const PackedMatrix& matrix(int handle) const;  // throws std::invalid_argument
  // Packs an added matrix on all threads. Throws std::invalid_argument as pack() does.
  void pack_matrix(int handle, SourceType source, const std::uint8_t* data);
  int add_vector(std::span<const float> values);
  int add_rope_table(std::span<const double> inv_freq, double attention_factor, RopeStyle style);
  void emit(Instruction instruction);
  // Ends building: the arena's size, where the logits are, and how many ids the embedding knows.
  void finish(std::int64_t arena_bytes, const Slice& logits, std::int64_t vocab_size);

  void allocate_kv(std::int64_t num_blocks, bool fill_nan);
  void copy_block(std::int64_t source, std::int64_t destination);
  std::span<std::uint8_t> block(std::int64_t index);  // throws std::invalid_argument when out of range

  // Logits: num_logits rows, `logits_stride` floats apart, valid until the next call. Throws std::invalid_argument for
  // a faulty step before anything is touched.
  const float* run(const Step& step);
  void choose(const ChoiceRequest& request, const ChoiceResult& result);

  // The memory that logits lie in, for who wants to look at them after the executor has gone.
  MappedMemory release_arena() { return std::move(arena_); }

  void set_profiling(bool enabled);
  // Off: attention walks every sequence's keys alone. The same bits, more slowly; for tests and benchmarks.
  void set_prefix_sharing(bool enabled) { prefix_sharing_ = enabled; }
  std::vector<double> profile() const { return seconds_; }  // by instruction kind
  double choose_seconds() const { return choose_seconds_; }

  const std::string& isa() const { return isa_.name; }
  std::int64_t block_bytes() const { return layer_bytes() * options_.num_layers; }
  std::int64_t num_blocks() const { return num_blocks_; }
  std::int64_t weight_bytes() const { return weight_bytes_; }
  const Slice& logits() const { return logits_; }
  const float* logits_data() const { return reinterpret_cast<const float*>(arena_.data() + logits_.offset); }

 private:
  struct Matrix {
    PackedMatrix packed;
    std::shared_ptr<const MappedMemory> memory;
  };
  struct Rope {
    std::vector<float> rows;
    RopeTable table;
  };

  std::int64_t layer_bytes() const {
    return kv_head_bytes(options_.kv_type, options_.head_dim) * options_.num_kv_heads;
  }
  std::int64_t rows_of(bool logits) const { return logits ? step_->num_logits() : step_->num_tokens(); }
  float* row(const Slice& slice, std::int64_t index) const {
    return reinterpret_cast<float*>(arena_.data() + slice.offset) + index * slice.stride;
  }
  float* scratch(int thread_id) const {
    return reinterpret_cast<float*>(scratch_.data()) + thread_id * scratch_floats_;
  }
  const RopeTable* rope_table(int handle) const {
    return handle < 0 ? nullptr : &ropes_[static_cast<std::size_t>(handle)]->table;
  }

  // How an instruction, or its part for a window of rows, is cut in this step: units are taken by threads from a
  // counter.
  struct Cut {
    std::int64_t first_row = 0;  // of the window: in row 0 of what holds no more than that
    std::int64_t rows = 0;       // of the window, or all
    std::int64_t first_unit = 0;
    std::int64_t units = 0;
    std::int64_t rows_per_unit = 1;
    std::int64_t panels_per_unit = 1;  // 0: all panels, in units as equal as can be
    bool serial = false;               // so little work that sharing it out would cost more
  };
  Cut cut_rows(std::int64_t rows, std::int64_t floats_per_row) const;
  Cut cut(const EmbeddingOp& op) const;
  Cut cut(const RmsNormOp& op) const;
  Cut cut(const QuantizeOp& op) const;
  Cut cut(const LinearOp& op) const { return cut(op, rows_of(op.out.logits)); }
  Cut cut(const LinearOp& op, std::int64_t rows) const;
  std::int64_t panels_of(const LinearOp& op) const;
  Cut cut(const RopeOp& op) const;
  Cut cut(const WriteKvOp& op) const;
  Cut cut(const AttentionOp& op) const;  // of the first wave
  Cut cut(const SiluMulOp& op) const;
  Cut cut(const AddOp& op) const;
  Cut cut(const SelectRowsOp& op) const;

  void run_unit(const EmbeddingOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const RmsNormOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const QuantizeOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const LinearOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const RopeOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const WriteKvOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const AttentionOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const SiluMulOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const AddOp& op, const Cut& cut, std::int64_t unit, float* scratch);
  void run_unit(const SelectRowsOp& op, const Cut& cut, std::int64_t unit, float* scratch);

  // An instruction is a phase, attention one per wave, a projection and a SiLU-mul that share windows of rows one per
  // window in turn: small ones are done right away by who starts them, others cut into units.
  struct StepJob final : ThreadPool::Job {
    Executor& executor;
    explicit StepJob(Executor& e) : executor(e) {}
    std::int64_t start(std::size_t phase, int thread_id) override { return executor.start_phase(phase, thread_id); }
    void run(std::size_t phase, std::int64_t unit, int thread_id) override {
      executor.run_unit_of(phase, unit, thread_id);
    }
    Ahead ahead(std::size_t phase, int thread_id) override { return executor.ahead(phase, thread_id); }
  };
  std::size_t add_phases(std::size_t instruction);  // returns the next one
  void add_windows(std::size_t instruction, const LinearOp& op, const SiluMulOp& reader);
  std::int64_t start_phase(std::size_t index, int thread_id);
  void run_unit_of(std::size_t phase, std::int64_t unit, int thread_id);
  void count_time(std::size_t phase);
  void find_shares();
  Ahead ahead(std::size_t phase, int thread_id) const;
  void quantise(const float* x, std::int64_t ldx, std::int64_t row, std::int64_t rows, const QuantisedSlice& out);
  std::int64_t group_of(const AttentionOp& op) const { return op.num_heads / options_.num_kv_heads; }
  AttentionPlan& plan(const AttentionOp& op) const;

  IsaFamily isa_;
  ExecutorOptions options_;
  std::vector<std::vector<Stretch>> shares_;  // of each thread, in order; threads look at them as long as there are any
  std::vector<std::size_t> first_share_;      // of each instruction
  std::unique_ptr<ThreadPool> pool_;
  std::vector<Matrix> matrices_;
  std::vector<std::vector<float>> vectors_;
  std::vector<std::unique_ptr<Rope>> ropes_;
  std::vector<Instruction> instructions_;
  std::int64_t weight_bytes_ = 0;

  MappedMemory arena_, scratch_, kv_;
  std::unique_ptr<PagesAhead> kv_ahead_;
  std::int64_t scratch_floats_ = 0;
  std::int64_t num_blocks_ = 0;
  std::int64_t vocab_size_ = 0;
  Slice logits_{};

  // The step that is running.
  const Step* step_ = nullptr;
  struct Phase {
    std::size_t instruction;
    Cut cut;
  };
  std::vector<Phase> phases_;
  struct Planned {
    std::int64_t group;  // query heads per KV head
    bool logits;         // of the logits rows only
    std::unique_ptr<AttentionPlan> plan;
  };
  const Planned* find_plan(std::int64_t group, bool logits) const;
  bool spare(const Planned& planned) const;
  std::vector<Planned> plans_;
  bool prefix_sharing_ = true;
  bool profiling_ = false;
  double choose_seconds_ = 0;
  double started_s_ = 0;  // when the phase that is running began
  std::vector<double> seconds_;
};

}  // namespace octavo
