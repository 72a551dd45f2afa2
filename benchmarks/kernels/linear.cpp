// Times the linear kernels on the shapes of SmolLM2-135M (inputs rounded up to whole blocks of the format: 576 to 768
// in the K formats): 30 layers of distinct weights, so every layer comes from memory as it does in a model, and the
// head. Each operation quantises its rows (integer formats) and multiplies, cut over the threads by panels. Times are
// the 10th percentile per shape, summed over a step; limits are measured first. With one thread they are of processor
// time, which other work on the machine disturbs less.
//
//   cd native && mkdir -p /tmp/bench_linear && cd /tmp/bench_linear && N=$OLDPWD
//   F="-O3 -std=c++20 -ffp-contract=off -mprfchw -pthread -I$N"
//   V="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
//   for f in $N/kernels/avx2/{linear*,quantize}.cpp; do g++ $F -mavx2 -mfma -mf16c -c $f -o 2_$(basename $f).o; done
//   for f in $N/kernels/avx512/{linear*,quantize}.cpp; do g++ $F -mfma -mf16c $V -c $f -o 512_$(basename $f).o; done
//   g++ $F -DOCTAVO_HAVE_AVX512 $N/../benchmarks/kernels/linear.cpp *.o -o bench_linear
//   ./bench_linear [--isa avx2|avx512] [--threads 2] [--format int4k] [--rows 1,8,64] [--seconds 0.5] [--padding 0]
#include <immintrin.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.hpp"
#include "limits.hpp"

using namespace octavo;

namespace {

clockid_t clock_id = CLOCK_MONOTONIC;

double now_s() {
  timespec t;
  clock_gettime(clock_id, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Spins, as the calls are short, but gives the core away if that takes long: other work may hold the other thread's
// core.
template <class Condition>
void wait_until(Condition condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins < 5000)
      _mm_pause();
    else
      std::this_thread::yield();
  }
}

// A team that runs one function on every thread and waits.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int t = 1; t < size; ++t) threads_.emplace_back([this, t] { serve(t); });
  }
  ~Team() {
    stop_ = true;
    ++generation_;
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return size_; }
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    running_ = size_ - 1;
    ++generation_;
    work(0);
    wait_until([this] { return running_ == 0; });
  }

 private:
  void serve(int t) {
    for (int seen = 0;;) {
      wait_until([this, seen] { return generation_ != seen; });
      ++seen;
      if (stop_) return;
      (*work_)(t);
      --running_;
    }
  }

  int size_;
  std::atomic<int> generation_{0}, running_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::thread> threads_;
};

template <class T>
T* allocate(std::size_t count) {
  constexpr std::size_t kHugePage = 2 << 20;
  const std::size_t bytes = (count * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
  void* p = std::aligned_alloc(kHugePage, bytes);
  if (!p) throw std::bad_alloc();
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return static_cast<T*>(p);
}

struct Shape {
  const char* name;
  std::int64_t n, k;
};
constexpr Shape kLayer[] = {{"qkv", 960, 576}, {"o", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}};
constexpr Shape kHead{"head", 49152, 576};
constexpr int kLayers = 30;
constexpr std::int64_t kMostRows = 512, kMostInputs = 1536;

struct FormatName {
  const char* name;
  WeightFormat format;
};
constexpr FormatName kFormats[] = {{"f32", WeightFormat::F32},
                                   {"f16", WeightFormat::F16},
                                   {"bf16", WeightFormat::BF16},
                                   {"int8", WeightFormat::INT8_G32},
                                   {"int5", WeightFormat::INT5_G32},
                                   {"int4", WeightFormat::INT4_G32},
                                   {"int5k", WeightFormat::INT5_K},
                                   {"int4k", WeightFormat::INT4_K},
                                   {"int6k", WeightFormat::INT6_K},
                                   {"int3k", WeightFormat::INT3_K},
                                   {"int2k", WeightFormat::INT2_K},
                                   {"table4", WeightFormat::TABLE4_G32},
                                   {"table4k", WeightFormat::TABLE4_K},
                                   {"offset4", WeightFormat::OFFSET4_G32},
                                   {"offset5", WeightFormat::OFFSET5_G32},
                                   {"int8c", WeightFormat::INT8_CHANNEL}};

// Plausible bytes: floats around 1, quants of any value, scales around 2^-7.
void fill(const PackedMatrix& w, std::uint8_t* data) {
  const std::int64_t bytes = num_panels(w) * panel_bytes(w.format, w.k);
  std::uint64_t state = 88172645463325252ull + static_cast<std::uint64_t>(w.n * w.k);
  for (std::int64_t i = 0; i < bytes; i += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const std::uint64_t mask = w.format == WeightFormat::F32    ? 0xbf7fffffbf7fffffull
                               : w.format == WeightFormat::F16  ? 0xbbffbbffbbffbbffull
                               : w.format == WeightFormat::BF16 ? 0xbf7fbf7fbf7fbf7full
                                                                : ~0ull;
    const std::uint64_t value = state & mask;
    std::memcpy(data + i, &value, 8);
  }
  if (!quantised(w.format)) return;
  if (channel_scales(w.format)) {
    for (std::int64_t p = 0; p < bytes; p += panel_bytes(w.format, w.k)) {
      for (int c = 0; c < kPanelColumns; ++c) std::memcpy(data + p + 4 * c, "\0\0\0\x3c", 4);  // 2^-7
    }
    return;
  }
  const GroupLayout layout = group_layout(w.format);
  const std::int64_t block = layout.block_bytes(), halves = layout.header_bytes == 32 ? 16 : 32;
  for (std::int64_t g = 0; g < bytes; g += block) {
    for (std::int64_t i = 0; i < halves; ++i) {
      const auto half = static_cast<std::uint16_t>(0x2000 + (g + i) % 512);
      std::memcpy(data + g + 2 * i, &half, 2);
    }
  }
}

struct Rows {
  float* x = allocate<float>(kMostRows * kMostInputs);
  std::int8_t* q = allocate<std::int8_t>(kMostRows * kMostInputs);
  float* scale = allocate<float>(kMostRows * kMostInputs / kGroup);
  float* sum = allocate<float>(kMostRows * kMostInputs / kGroup);
  std::int16_t* part_sum = allocate<std::int16_t>(kMostRows * kMostInputs / kPart);
  float* out = allocate<float>(kMostRows * (kHead.n + 16));
};

void multiply(Team& team, const LinearKernels& kernels, const PackedMatrix& w, std::int64_t m, Rows& rows,
              std::int64_t padding) {
  const std::int64_t groups = w.k / kGroup, size = team.size();
  const std::int64_t chunks = m == 1 ? size : std::min<std::int64_t>(4 * size, num_panels(w));
  std::atomic<std::int64_t> next{0};
  if (quantised(w.format)) {
    const auto quantise = [&](int t) {
      const std::int64_t begin = m * t / size, end = m * (t + 1) / size;
      kernels.quantize_rows(rows.x + begin * w.k, w.k, end - begin, w.k,
                            {rows.q + begin * w.k, rows.scale + begin * groups, rows.sum + begin * groups,
                             rows.part_sum + begin * groups * 2});
    };
    if (m == 1) {
      kernels.quantize_rows(rows.x, w.k, 1, w.k, {rows.q, rows.scale, rows.sum, rows.part_sum});
    } else {
      team.run(quantise);
    }
  }
  team.run([&](int) {
    for (std::int64_t c; (c = next++) < chunks;) {
      const std::int64_t begin = num_panels(w) * c / chunks, end = num_panels(w) * (c + 1) / chunks;
      kernels.linear(w, {rows.x, w.k, rows.q, rows.scale, rows.sum, rows.part_sum}, m, begin, end,
                     {rows.out, w.n + padding, nullptr, nullptr, 0});
    }
  });
}

double percentile10(std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 10];
}

void time_format(Team& team, const LinearKernels& kernels, const FormatName& format,
                 const std::vector<std::int64_t>& row_counts, double seconds, std::int64_t padding) {
  std::vector<PackedMatrix> matrices;
  double layer_bytes = 0, layer_weights = 0;
  const auto inputs = [&](const Shape& shape) {
    const std::int64_t unit = k_unit(format.format);
    return (shape.k + unit - 1) / unit * unit;
  };
  const auto add = [&](const Shape& shape) {
    PackedMatrix w{format.format, shape.n, inputs(shape), nullptr};
    const std::int64_t bytes = num_panels(w) * panel_bytes(w.format, w.k);
    auto* data = allocate<std::uint8_t>(static_cast<std::size_t>(bytes));
    fill(w, data);
    w.data = data;
    matrices.push_back(w);
    return static_cast<double>(bytes);
  };
  for (int l = 0; l < kLayers; ++l) {
    for (const Shape& shape : kLayer)
      layer_bytes += add(shape), layer_weights += static_cast<double>(shape.n * inputs(shape));
  }
  const double head_bytes = add(kHead), head_weights = static_cast<double>(kHead.n * inputs(kHead));
  Rows rows;
  for (std::int64_t i = 0; i < kMostRows * kMostInputs; ++i)
    rows.x[i] = static_cast<float>((i * 2654435761u >> 8) % 2001) / 1000 - 1;

  std::printf("\n%-7s %4s | %10s %7s %7s | %-31s | %9s %7s %7s\n", format.name, "m", "30 layers", "GB/s", "GOPS",
              "GOPS of qkv, o, gate_up, down", "head ms", "GB/s", "GOPS");
  for (const std::int64_t m : row_counts) {
    std::vector<double> times[5];
    const double start = now_s();
    for (int pass = 0; pass < 2 || now_s() - start < seconds; ++pass) {
      for (std::size_t i = 0; i < matrices.size(); ++i) {
        const double begin = now_s();
        multiply(team, kernels, matrices[i], m, rows, padding);
        times[i + 1 == matrices.size() ? 4 : i % 4].push_back(now_s() - begin);
      }
    }
    double layers = 0, shape_gops[4];
    for (int s = 0; s < 4; ++s) {
      const double t = percentile10(times[s]);
      layers += kLayers * t;
      shape_gops[s] = 2 * static_cast<double>(kLayer[s].n * inputs(kLayer[s]) * m) / t / 1e9;
    }
    const double head = percentile10(times[4]), rows_m = static_cast<double>(m);
    std::printf("%-7s %4d | %7.3f ms %7.1f %7.0f | %7.0f %7.0f %7.0f %7.0f | %9.3f %7.1f %7.0f\n", format.name,
                static_cast<int>(m), layers * 1e3, layer_bytes / layers / 1e9,
                2 * layer_weights * rows_m / layers / 1e9, shape_gops[0], shape_gops[1], shape_gops[2], shape_gops[3],
                head * 1e3, head_bytes / head / 1e9, 2 * head_weights * rows_m / head / 1e9);
    std::fflush(stdout);
  }
  for (const PackedMatrix& w : matrices) std::free(const_cast<std::uint8_t*>(w.data));
  std::free(rows.x), std::free(rows.q), std::free(rows.scale), std::free(rows.sum), std::free(rows.part_sum),
      std::free(rows.out);
}

void print_limits(int threads) {
  const limits::Limits found = limits::measure(threads);
  std::printf(
      "%d threads; limits: %.1f GB/s read, %.0f GFLOPS float, %.0f GOPS int8; AVX2: %.0f, %.0f, and %.0f int4\n",
      threads, found.read_gb_s, found.float_gflops, found.int8_gops, found.avx2_float_gflops, found.avx2_int8_gops,
      found.avx2_int4_gops);
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 2;
  double seconds = 0.5;
  std::int64_t padding = 0;
  std::string only, isa = "avx2";
  std::vector<std::int64_t> row_counts{1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--threads")
      threads = std::atoi(value.c_str());
    else if (flag == "--seconds")
      seconds = std::atof(value.c_str());
    else if (flag == "--padding")
      padding = std::atoi(value.c_str());  // floats between rows of the output
    else if (flag == "--format")
      only = value;
    else if (flag == "--isa")
      isa = value;
    else if (flag == "--rows") {
      row_counts.clear();
      for (std::size_t at = 0; at < value.size(); at = std::min(value.find(',', at), value.size() - 1) + 1) {
        row_counts.push_back(std::atoi(value.c_str() + at));
      }
    } else {
      std::fprintf(stderr, "unknown option %s\n", flag.c_str());
      return 2;
    }
  }
  const LinearKernels* kernels = isa == "avx2" ? &avx2_linear_kernels() : nullptr;
#ifdef OCTAVO_HAVE_AVX512
  if (isa == "avx512") kernels = &avx512_linear_kernels();
#endif
  if (!kernels) {
    std::fprintf(stderr, "no kernels for --isa %s in this build\n", isa.c_str());
    return 2;
  }
  if (threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
  Team team(threads);
  std::printf("%s, ", isa.c_str());
  print_limits(team.size());
  for (const FormatName& format : kFormats) {
    if (only.empty() || only == format.name) time_format(team, *kernels, format, row_counts, seconds, padding);
  }
}
