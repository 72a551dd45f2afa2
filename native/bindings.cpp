// The Python module octavo._native: a thin skin over Executor. Every call that computes releases the GIL; errors arrive
// as ValueError (std::invalid_argument), MemoryError (std::bad_alloc) or RuntimeError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "executor.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace octavo {
namespace {

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> span(const Array<T>& array) {
  return {array.data(), array.size()};
}

// A new NumPy array of that shape, uninitialised.
template <class T>
nb::ndarray<nb::numpy, T> new_array(std::initializer_list<std::size_t> shape) {
  std::size_t size = 1;
  for (const std::size_t extent : shape) size *= extent;
  auto* data = new T[size == 0 ? 1 : size];
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, shape, owner);
}

// An executor that one thread at a time may use, until it is closed.
class PyExecutor {
 public:
  PyExecutor(const std::string& isa, int num_threads, KvType kv_type, std::int64_t max_tokens,
             std::int64_t max_logits_rows, std::int64_t max_model_len, std::int64_t num_layers,
             std::int64_t num_kv_heads, std::int64_t head_dim)
      : executor_(std::make_unique<Executor>(
            select_isa_family(isa), ExecutorOptions{num_threads, kv_type, max_tokens, max_logits_rows, max_model_len,
                                                    num_layers, num_kv_heads, head_dim})) {}

  class Use {
   public:
    explicit Use(PyExecutor& owner) : owner_(owner) {
      if (owner_.busy_.exchange(true)) throw std::runtime_error("the executable is in use by another thread");
      if (!owner_.executor_) {
        owner_.busy_ = false;
        throw std::runtime_error("the executable has been closed");
      }
    }
    ~Use() { owner_.busy_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    Executor* operator->() const { return owner_.executor_.get(); }

   private:
    PyExecutor& owner_;
  };

  void close() {
    if (busy_.exchange(true)) throw std::runtime_error("the executable is in use by another thread");
    {
      const nb::gil_scoped_release release;
      if (executor_) arena_ = executor_->release_arena();
      executor_.reset();
    }
    busy_ = false;
  }

 private:
  std::unique_ptr<Executor> executor_;
  MappedMemory arena_;  // of a closed executor: arrays of logits may still look at it
  std::atomic<bool> busy_{false};
};

// Memory that packed matrices lie in, of which executors and whoever writes it to a file may each hold a part.
using Memory = std::shared_ptr<MappedMemory>;

struct PyMemory {
  Memory memory;
};

WeightFormat target_format(SourceType source, bool dequantize) {
  return dequantize ? WeightFormat::F32 : packed_format(source);
}

// All bytes as an array over them, which keeps them alive. Only what was made writable may be written to.
nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> memory_bytes(const PyMemory& self) {
  const nb::capsule owner(new Memory(self.memory), [](void* p) noexcept { delete static_cast<Memory*>(p); });
  return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(self.memory->data(), {self.memory->bytes()}, owner);
}

int add_matrix(PyExecutor& self, const PyMemory& memory, std::size_t offset, SourceType source, bool dequantize,
               std::int64_t n, std::int64_t k) {
  return PyExecutor::Use(self)->add_matrix(memory.memory, offset, target_format(source, dequantize), n, k);
}

void pack_matrix(PyExecutor& self, int handle, SourceType source, Table<std::uint8_t> data) {
  const PyExecutor::Use use(self);
  const PackedMatrix& w = use->matrix(handle);
  if (static_cast<std::int64_t>(data.shape(0)) != w.n || data.shape(1) != source_row_bytes(source, w.k)) {
    throw std::invalid_argument("data of (" + std::to_string(data.shape(0)) + ", " + std::to_string(data.shape(1)) +
                                ") bytes is not a matrix of (" + std::to_string(w.n) + ", " + std::to_string(w.k) +
                                ") weights");
  }
  const nb::gil_scoped_release release;
  use->pack_matrix(handle, source, data.data());
}

nb::ndarray<nb::numpy, std::uint8_t> pack_alone(SourceType source, bool dequantize, Table<std::uint8_t> data,
                                                std::int64_t k) {
  if (data.shape(1) != source_row_bytes(source, k)) throw std::invalid_argument("data is not a matrix of that width");
  const auto n = static_cast<std::int64_t>(data.shape(0));
  const WeightFormat format = target_format(source, dequantize);
  auto out = new_array<std::uint8_t>({packed_bytes(format, n, k)});
  pack(source, format, data.data(), n, k, 0, (n + kPanelColumns - 1) / kPanelColumns, out.data());
  return out;
}

// The weights of a matrix of k inputs as they are once they have been packed.
nb::ndarray<nb::numpy, float> packed_values(SourceType source, Table<std::uint8_t> data, std::int64_t k) {
  if (data.shape(1) != source_row_bytes(source, k)) {
    throw std::invalid_argument("data of (" + std::to_string(data.shape(0)) + ", " + std::to_string(data.shape(1)) +
                                ") bytes has no rows of " + std::to_string(k) + " weights of " + name(source));
  }
  const auto n = static_cast<std::int64_t>(data.shape(0));
  PackedMatrix w{packed_format(source), n, k, nullptr};
  auto out = new_array<float>({static_cast<std::size_t>(n), static_cast<std::size_t>(k)});
  const nb::gil_scoped_release release;
  std::vector<std::uint8_t> packed(packed_bytes(w.format, n, k));
  w.data = packed.data();
  pack(source, w.format, data.data(), n, k, 0, num_panels(w), packed.data());
  for (std::int64_t row = 0; row < n; ++row) dequantize_row(w, row, out.data() + row * k);
  return out;
}

int add_vector(PyExecutor& self, Array<float> values) {
  const PyExecutor::Use use(self);
  return use->add_vector(span(values));
}

int add_rope_table(PyExecutor& self, Array<double> inv_freq, double attention_factor, RopeStyle style) {
  const PyExecutor::Use use(self);
  const nb::gil_scoped_release release;
  return use->add_rope_table(span(inv_freq), attention_factor, style);
}

void emit_linear(PyExecutor& self, std::optional<Slice> x, std::optional<QuantisedSlice> quantised,
                 const std::vector<std::pair<int, int>>& parts, std::optional<Slice> residual, const Slice& out,
                 std::int64_t window) {
  LinearOp op{x, quantised, {}, residual, out, window};
  for (const auto& [matrix, bias] : parts) op.parts.push_back({matrix, bias});
  PyExecutor::Use(self)->emit(std::move(op));
}

// The arrays of a step, which may be changed in place between runs.
class PyStep {
 public:
  PyStep(Array<std::int32_t> token_ids, Array<std::int32_t> positions, Array<std::int32_t> query_start_loc,
         Array<std::int32_t> seq_lens, Table<std::int32_t> block_tables, Array<std::int64_t> slot_mapping,
         Array<std::int32_t> logits_rows)
      : step{span(token_ids),
             span(positions),
             span(query_start_loc),
             span(seq_lens),
             block_tables.data(),
             static_cast<std::int64_t>(block_tables.shape(0)),
             static_cast<std::int64_t>(block_tables.shape(1)),
             span(slot_mapping),
             span(logits_rows)},
        arrays_(token_ids, positions, query_start_loc, seq_lens, block_tables, slot_mapping, logits_rows) {}

  const Step step;

 private:
  std::tuple<Array<std::int32_t>, Array<std::int32_t>, Array<std::int32_t>, Array<std::int32_t>, Table<std::int32_t>,
             Array<std::int64_t>, Array<std::int32_t>>
      arrays_;  // which the step looks at
};

void run(PyExecutor& self, const PyStep& step) {
  const PyExecutor::Use use(self);
  const nb::gil_scoped_release release;
  use->run(step.step);
}

using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

// The logits rows of the step that was run last.
Logits logits(nb::handle_t<PyExecutor> handle, const PyStep& step) {
  const PyExecutor::Use use(nb::cast<PyExecutor&>(handle));
  const Slice& slice = use->logits();
  return Logits(const_cast<float*>(use->logits_data()),
                {step.step.logits_rows.size(), static_cast<std::size_t>(slice.width)}, handle, {slice.stride, 1});
}

// The arrays of some choices, which may be changed in place between them.
class PyChoices {
 public:
  PyChoices(Array<std::int32_t> rows, Array<float> temperature, Array<std::int32_t> top_k, Array<float> top_p,
            Array<float> min_p, Array<std::uint64_t> seed, Array<std::uint32_t> branch, Array<std::uint32_t> position,
            Array<std::int32_t> num_logprobs, Array<float> typical_p, Array<float> repetition_penalty,
            Array<float> frequency_penalty, Array<float> presence_penalty, Array<std::int32_t> report_rows,
            Array<std::int32_t> edit_choices, Array<std::int32_t> edit_tokens, Array<float> edit_values,
            Array<std::int32_t> count_choices, Array<std::int32_t> count_tokens, Array<std::int32_t> counts,
            Array<std::int32_t> allowed_choices, Array<std::int32_t> allowed_tokens)
      : request{nullptr,
                0,
                0,
                0,
                span(rows),
                span(temperature),
                span(top_k),
                span(top_p),
                span(min_p),
                span(seed),
                span(branch),
                span(position),
                span(num_logprobs),
                span(typical_p),
                span(repetition_penalty),
                span(frequency_penalty),
                span(presence_penalty),
                span(report_rows),
                span(edit_choices),
                span(edit_tokens),
                span(edit_values),
                span(count_choices),
                span(count_tokens),
                span(counts),
                span(allowed_choices),
                span(allowed_tokens)},
        ids_{rows,          top_k,        num_logprobs, report_rows,     edit_choices,  edit_tokens,
             count_choices, count_tokens, counts,       allowed_choices, allowed_tokens},
        numbers_{temperature,      top_p,      min_p, typical_p, repetition_penalty, frequency_penalty,
                 presence_penalty, edit_values},
        keys_(seed, branch, position) {}

  const ChoiceRequest request;  // but for the logits

 private:
  // Which the request looks at.
  std::array<Array<std::int32_t>, 11> ids_;
  std::array<Array<float>, 8> numbers_;
  std::tuple<Array<std::uint64_t>, Array<std::uint32_t>, Array<std::uint32_t>> keys_;
};

// Token ids; and log-probabilities, ranks and the most probable tokens if anybody asks for them.
nb::tuple choose(PyExecutor& self, nb::ndarray<const float, nb::ndim<2>, nb::device::cpu> logits,
                 const PyChoices& choices) {
  const PyExecutor::Use use(self);
  ChoiceRequest request = choices.request;
  request.logits = logits.data();
  request.num_rows = static_cast<std::int64_t>(logits.shape(0));
  request.vocab_size = static_cast<std::int64_t>(logits.shape(1));
  request.stride = logits.stride(0);
  if (logits.stride(1) != 1 && request.vocab_size > 1)
    throw std::invalid_argument("logits must be contiguous along the vocabulary");
  const std::size_t n = request.rows.size();
  std::int32_t width = -1;
  for (const std::int32_t k : request.num_logprobs) width = std::max(width, k);
  if (width > request.vocab_size)
    throw std::invalid_argument("num_logprobs=" + std::to_string(width) + " is more than the vocabulary has");
  auto token_ids = new_array<std::int32_t>({n});
  const auto choose_into = [&](const ChoiceResult& result) {
    const nb::gil_scoped_release release;
    use->choose(request, result);
  };
  if (width < 0) {
    choose_into({token_ids.data(), nullptr, nullptr, nullptr, nullptr, 0});
    return nb::make_tuple(token_ids);
  }
  auto logprobs = new_array<float>({n});
  auto ranks = new_array<std::int32_t>({n});
  auto top_ids = new_array<std::int32_t>({n, static_cast<std::size_t>(width)});
  auto top_logprobs = new_array<float>({n, static_cast<std::size_t>(width)});
  choose_into({token_ids.data(), logprobs.data(), ranks.data(), top_ids.data(), top_logprobs.data(), width});
  return nb::make_tuple(token_ids, logprobs, ranks, top_ids, top_logprobs);
}

void copy_blocks(PyExecutor& self, Table<std::int32_t> pairs) {
  if (pairs.shape(1) != 2) {
    throw std::invalid_argument("pairs must be (n, 2) source and destination blocks, not " +
                                std::to_string(pairs.shape(1)) + " wide");
  }
  const PyExecutor::Use use(self);
  const std::int32_t* p = pairs.data();
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (p[i] >= 0 && p[i] < use->num_blocks()) continue;
    throw std::invalid_argument("pairs[" + std::to_string(i / 2) + ", " + std::to_string(i % 2) +
                                "] = " + std::to_string(p[i]) + " is invalid: must be in [0, " +
                                std::to_string(use->num_blocks()) + ")");
  }
  const nb::gil_scoped_release release;
  for (std::size_t i = 0; i < pairs.size(); i += 2) use->copy_block(p[i], p[i + 1]);
}

nb::ndarray<nb::numpy, std::uint8_t> read_block(PyExecutor& self, std::int64_t index) {
  const PyExecutor::Use use(self);
  const std::span<const std::uint8_t> bytes = use->block(index);
  auto out = new_array<std::uint8_t>({bytes.size()});
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

void write_block(PyExecutor& self, std::int64_t index, Array<std::uint8_t> data) {
  const PyExecutor::Use use(self);
  const std::span<std::uint8_t> bytes = use->block(index);
  if (data.size() != bytes.size()) {
    throw std::invalid_argument("data must be " + std::to_string(bytes.size()) + " bytes, not " +
                                std::to_string(data.size()));
  }
  std::memcpy(bytes.data(), data.data(), bytes.size());
}

nb::dict profile(PyExecutor& self) {
  nb::dict seconds;
  const PyExecutor::Use use(self);
  const std::vector<double> values = use->profile();
  for (std::size_t i = 0; i < values.size(); ++i) seconds[kInstructionNames[i]] = values[i];
  seconds["choose"] = use->choose_seconds();
  return seconds;
}

// One emit method per instruction: its fields in order.
template <class Op, class... Fields>
auto emit() {
  return [](PyExecutor& self, Fields... fields) { PyExecutor::Use(self)->emit(Op{fields...}); };
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("BLOCK_SIZE") = kBlockSize;
  m.def("isa_families", [] {
    std::vector<std::string> names;
    for (const IsaFamily& family : available_isa_families()) names.push_back(family.name);
    return names;
  });
  m.def("select_isa_family", [](const std::string& name) { return select_isa_family(name).name; }, "name"_a);

  nb::enum_<SourceType>(m, "SourceType")
      .value("F32", SourceType::F32)
      .value("F16", SourceType::F16)
      .value("BF16", SourceType::BF16)
      .value("Q8_0", SourceType::Q8_0)
      .value("Q4_0", SourceType::Q4_0)
      .value("Q4_1", SourceType::Q4_1)
      .value("Q5_0", SourceType::Q5_0)
      .value("Q5_1", SourceType::Q5_1)
      .value("Q2_K", SourceType::Q2_K)
      .value("Q3_K", SourceType::Q3_K)
      .value("Q4_K", SourceType::Q4_K)
      .value("Q5_K", SourceType::Q5_K)
      .value("Q6_K", SourceType::Q6_K)
      .value("IQ4_NL", SourceType::IQ4_NL)
      .value("IQ4_XS", SourceType::IQ4_XS)
      .value("I8_CHANNEL", SourceType::I8_CHANNEL);
  nb::enum_<KvType>(m, "KvType").value("FP32", KvType::F32).value("FP16", KvType::F16).value("INT8", KvType::INT8);
  nb::enum_<RopeStyle>(m, "RopeStyle")
      .value("INTERLEAVED", RopeStyle::INTERLEAVED)
      .value("HALF_SPLIT", RopeStyle::HALF_SPLIT);
  m.def("is_quantised", [](SourceType source) { return quantised(packed_format(source)); }, "source"_a);
  m.def(
      "describe_packing",
      [](SourceType source) {
        const WeightFormat format = packed_format(source);
        return nb::make_tuple(name(format), bits_per_weight(format));
      },
      "source"_a);
  m.def("packed_values", packed_values, "source"_a, "data"_a.noconvert(), "k"_a);

  m.def(
      "packed_format",
      [](SourceType source, bool dequantize) { return static_cast<int>(target_format(source, dequantize)); },
      "source"_a, "dequantize"_a);
  m.def(
      "packed_bytes",
      [](SourceType source, bool dequantize, std::int64_t n, std::int64_t k) {
        return packed_bytes(target_format(source, dequantize), n, k);
      },
      "source"_a, "dequantize"_a, "n"_a, "k"_a);
  m.def("pack", pack_alone, "source"_a, "dequantize"_a, "data"_a.noconvert(), "k"_a);
  m.def(
      "release_pages", [](Table<std::uint8_t> data) { release_pages(data.data(), data.nbytes()); },
      "data"_a.noconvert());

  nb::class_<PyMemory>(m, "Memory")
      .def(
          "__init__",
          [](PyMemory* self, std::size_t bytes) { new (self) PyMemory{std::make_shared<MappedMemory>(bytes)}; },
          "num_bytes"_a)
      .def_static(
          "of_file",
          [](int descriptor, std::size_t bytes, bool writable) {
            return PyMemory{std::make_shared<MappedMemory>(MappedMemory::of_file(descriptor, bytes, writable))};
          },
          "descriptor"_a, "num_bytes"_a, "writable"_a)
      .def("protect", [](PyMemory& self) { self.memory->protect(); })
      .def("bytes", memory_bytes);

  nb::class_<Slice>(m, "Slice")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, bool>(), "offset"_a, "stride"_a, "width"_a, "logits"_a);
  nb::class_<QuantisedSlice>(m, "QuantisedSlice")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool>(), "q"_a, "scale"_a,
           "sum"_a, "part_sum"_a, "width"_a, "logits"_a);

  using Ids = Array<std::int32_t>;
  using Numbers = Array<float>;
  nb::class_<PyStep>(m, "Step").def(
      nb::init<Ids, Ids, Ids, Ids, Table<std::int32_t>, Array<std::int64_t>, Ids>(), "token_ids"_a.noconvert(),
      "positions"_a.noconvert(), "query_start_loc"_a.noconvert(), "seq_lens"_a.noconvert(),
      "block_tables"_a.noconvert(), "slot_mapping"_a.noconvert(), "logits_rows"_a.noconvert());
  nb::class_<PyChoices>(m, "Choices")
      .def(nb::init<Ids, Numbers, Ids, Numbers, Numbers, Array<std::uint64_t>, Array<std::uint32_t>,
                    Array<std::uint32_t>, Ids, Numbers, Numbers, Numbers, Numbers, Ids, Ids, Ids, Numbers, Ids, Ids,
                    Ids, Ids, Ids>(),
           "rows"_a.noconvert(), "temperature"_a.noconvert(), "top_k"_a.noconvert(), "top_p"_a.noconvert(),
           "min_p"_a.noconvert(), "seed"_a.noconvert(), "branch"_a.noconvert(), "position"_a.noconvert(),
           "num_logprobs"_a.noconvert(), "typical_p"_a.noconvert(), "repetition_penalty"_a.noconvert(),
           "frequency_penalty"_a.noconvert(), "presence_penalty"_a.noconvert(), "report_rows"_a.noconvert(),
           "edit_choices"_a.noconvert(), "edit_tokens"_a.noconvert(), "edit_values"_a.noconvert(),
           "count_choices"_a.noconvert(), "count_tokens"_a.noconvert(), "counts"_a.noconvert(),
           "allowed_choices"_a.noconvert(), "allowed_tokens"_a.noconvert());

  using OptionalSlice = std::optional<Slice>;
  using OptionalQuantised = std::optional<QuantisedSlice>;
  nb::class_<PyExecutor>(m, "Executor")
      .def(nb::init<const std::string&, int, KvType, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t, std::int64_t>(),
           nb::kw_only(), "isa"_a, "num_threads"_a, "kv_type"_a, "max_tokens"_a, "max_logits_rows"_a, "max_model_len"_a,
           "num_layers"_a, "num_kv_heads"_a, "head_dim"_a)
      .def("add_matrix", add_matrix, "memory"_a, "offset"_a, "source"_a, "dequantize"_a, "n"_a, "k"_a)
      .def("pack_matrix", pack_matrix, "handle"_a, "source"_a, "data"_a.noconvert())
      .def("add_vector", add_vector, "values"_a)
      .def("add_rope_table", add_rope_table, "inv_freq"_a, "attention_factor"_a, "style"_a)
      .def("emit_embedding", emit<EmbeddingOp, int, Slice>(), "matrix"_a, "out"_a)
      .def("emit_rms_norm", emit<RmsNormOp, Slice, int, float, OptionalSlice, OptionalQuantised>(), "x"_a, "weight"_a,
           "eps"_a, "out"_a.none(), "quantised"_a.none())
      .def("emit_quantize", emit<QuantizeOp, Slice, QuantisedSlice>(), "x"_a, "out"_a)
      .def("emit_linear", emit_linear, "x"_a.none(), "quantised"_a.none(), "parts"_a, "residual"_a.none(), "out"_a,
           "window"_a)
      .def("emit_rope", emit<RopeOp, Slice, int, std::int64_t, Slice>(), "x"_a, "table"_a, "head_dim"_a, "out"_a)
      .def("emit_write_kv", emit<WriteKvOp, Slice, Slice, int, std::int64_t>(), "k"_a, "v"_a, "table"_a, "layer"_a)
      .def("emit_attention", emit<AttentionOp, Slice, int, std::int64_t, std::int64_t, float, Slice>(), "q"_a,
           "table"_a, "layer"_a, "num_heads"_a, "scale"_a, "out"_a)
      .def("emit_silu_mul", emit<SiluMulOp, Slice, Slice, OptionalSlice, OptionalQuantised>(), "gate"_a, "up"_a,
           "out"_a.none(), "quantised"_a.none())
      .def("emit_add", emit<AddOp, Slice, Slice, Slice>(), "x"_a, "y"_a, "out"_a)
      .def("emit_select_rows", emit<SelectRowsOp, Slice, Slice>(), "x"_a, "out"_a)
      .def(
          "finish",
          [](PyExecutor& self, std::int64_t arena_bytes, const Slice& logits, std::int64_t vocab_size) {
            PyExecutor::Use(self)->finish(arena_bytes, logits, vocab_size);
          },
          "arena_bytes"_a, "logits"_a, "vocab_size"_a)
      .def(
          "allocate_kv",
          [](PyExecutor& self, std::int64_t num_blocks, bool fill_nan) {
            const PyExecutor::Use use(self);
            const nb::gil_scoped_release release;
            use->allocate_kv(num_blocks, fill_nan);
          },
          "num_blocks"_a, "fill_nan"_a)
      .def("run", run, "step"_a)
      .def("logits", logits, "step"_a)
      .def("choose", choose, "logits"_a.noconvert(), "choices"_a)
      .def("copy_blocks", copy_blocks, "pairs"_a.noconvert())
      .def("read_block", read_block, "block"_a)
      .def("write_block", write_block, "block"_a, "data"_a.noconvert())
      .def(
          "set_profiling", [](PyExecutor& self, bool enabled) { PyExecutor::Use(self)->set_profiling(enabled); },
          "enabled"_a)
      .def(
          "set_prefix_sharing",
          [](PyExecutor& self, bool enabled) { PyExecutor::Use(self)->set_prefix_sharing(enabled); }, "enabled"_a)
      .def("profile", profile)
      .def("close", &PyExecutor::close)
      .def_prop_ro("isa", [](PyExecutor& self) { return PyExecutor::Use(self)->isa(); })
      .def_prop_ro("block_bytes", [](PyExecutor& self) { return PyExecutor::Use(self)->block_bytes(); })
      .def_prop_ro("num_blocks", [](PyExecutor& self) { return PyExecutor::Use(self)->num_blocks(); })
      .def_prop_ro("weight_bytes", [](PyExecutor& self) { return PyExecutor::Use(self)->weight_bytes(); });
}

}  // namespace octavo
