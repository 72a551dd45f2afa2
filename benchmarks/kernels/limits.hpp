// What this machine can do at most, measured: reading memory, and the arithmetic that kernels are made of, on every
// vector width that it has. Each figure is the best of several short runs of a team of threads.
#pragma once
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

namespace limits {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Limits {
  double read_gb_s = 0;
  double float_gflops = 0;  // fp32 multiply-adds, the widest vectors
  double int8_gops = 0;     // products of bytes, summed in 32 bits: VNNI where there is it
  double avx2_float_gflops = 0, avx2_int8_gops = 0, avx2_int4_gops = 0;
};

inline constexpr int kLoops = 200000;

// `streams` stretches side by side, a line of each in turn, asked for `ahead` bytes before.
__attribute__((target("avx2"))) inline void read_all(const std::uint8_t* p, std::size_t bytes, std::size_t streams,
                                                     std::size_t ahead) {
  __m256i sum[4] = {};
  const std::size_t stretch = bytes / streams / 128 * 128;
  for (std::size_t i = 0; i < stretch; i += 128) {
    for (std::size_t s = 0; s < streams; ++s) {
      const std::uint8_t* from = p + s * stretch + i;
      for (std::size_t j = 0; j < 4; ++j) {
        sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(from + 32 * j)));
      }
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead + 64), _MM_HINT_T0);
    }
  }
  for (auto& s : sum) asm volatile("" : "+x"(s));
}

__attribute__((target("avx2,fma"))) inline void multiply_floats() {
  __m256 acc[10] = {}, x = _mm256_set1_ps(0.5f);
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 10
    for (auto& a : acc) asm volatile("vfmadd231ps %1, %1, %0" : "+x"(a) : "x"(x));
  }
}

// The least a u4 * s8 product needs of AVX2: maddubs and a 16-bit add for 32 products.
__attribute__((target("avx2"))) inline void multiply_nibbles() {
  __m256i acc[10] = {}, x = _mm256_set1_epi8(3);
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 10
    for (auto& a : acc) {
      __m256i product;
      asm volatile("vpmaddubsw %1, %1, %0" : "=x"(product) : "x"(x));
      asm volatile("vpaddw %1, %0, %0" : "+x"(a) : "x"(product));
    }
  }
}

// And a s8 * s8 product: sign, maddubs, madd, add.
__attribute__((target("avx2"))) inline void multiply_bytes() {
  __m256i acc[10] = {}, x = _mm256_set1_epi8(3);
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 10
    for (auto& a : acc) {
      __m256i product;
      asm volatile("vpsignb %1, %1, %0\n\tvpmaddubsw %0, %1, %0\n\tvpmaddwd %1, %0, %0" : "=&x"(product) : "x"(x));
      asm volatile("vpaddd %1, %0, %0" : "+x"(a) : "x"(product));
    }
  }
}

__attribute__((target("avx512f"))) inline void multiply_floats_512() {
  __m512 acc[10] = {}, x = _mm512_set1_ps(0.5f);
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 10
    for (auto& a : acc) asm volatile("vfmadd231ps %1, %1, %0" : "+v"(a) : "v"(x));
  }
}

__attribute__((target("avx512f,avx512vnni"))) inline void multiply_bytes_512() {
  __m512i acc[10] = {}, x = _mm512_set1_epi32(0x03030303);
  for (int i = 0; i < kLoops; ++i) {
#pragma GCC unroll 10
    for (auto& a : acc) asm volatile("vpdpbusd %1, %1, %0" : "+v"(a) : "v"(x));
  }
}

// Every thread runs `work` at once; the least time of several.
inline double least_seconds(int threads, const std::function<void(int)>& work, int runs = 15) {
  double best = 1e9;
  for (int run = 0; run < runs; ++run) {
    std::atomic<int> waiting{threads};
    std::atomic<std::int64_t> done{0};
    std::vector<double> begin(static_cast<std::size_t>(threads)), end(static_cast<std::size_t>(threads));
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        for (--waiting; waiting > 0;) std::this_thread::yield();
        begin[static_cast<std::size_t>(t)] = seconds();
        work(t);
        end[static_cast<std::size_t>(t)] = seconds();
      });
    }
    for (auto& thread : team) thread.join();
    best = std::min(best, *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end()));
  }
  return best;
}

inline Limits measure(int threads) {
  constexpr std::size_t kBytes = 512 << 20, kHugePage = 2 << 20;
  Limits found;
  void* memory = std::aligned_alloc(kHugePage, kBytes + kHugePage);
  if (!memory) throw std::bad_alloc();
  madvise(memory, kBytes + kHugePage, MADV_HUGEPAGE);
  std::memset(memory, 1, kBytes + kHugePage);
  const auto* data = static_cast<const std::uint8_t*>(memory);
  const std::size_t share = kBytes / static_cast<std::size_t>(threads) / 128 * 128;
  double read = 1e9;  // in the best of several patterns: which one that is differs from machine to machine
  for (const std::size_t streams : {1, 2, 4, 8}) {
    for (const std::size_t ahead : {1024, 2048, 4096}) {
      const auto work = [&](int t) { read_all(data + static_cast<std::size_t>(t) * share, share, streams, ahead); };
      read = std::min(read, least_seconds(threads, work, 4));
    }
  }
  std::free(memory);
  found.read_gb_s = static_cast<double>(share) * threads / read / 1e9;
  const double instructions = 10.0 * kLoops * threads / 1e9;
  found.avx2_float_gflops = instructions * 16 / least_seconds(threads, [](int) { multiply_floats(); });
  found.avx2_int8_gops = instructions * 64 / least_seconds(threads, [](int) { multiply_bytes(); });
  found.avx2_int4_gops = instructions * 64 / least_seconds(threads, [](int) { multiply_nibbles(); });
  found.float_gflops = found.avx2_float_gflops;
  found.int8_gops = std::max(found.avx2_int8_gops, found.avx2_int4_gops);
  if (__builtin_cpu_supports("avx512f")) {
    found.float_gflops = instructions * 32 / least_seconds(threads, [](int) { multiply_floats_512(); });
    if (__builtin_cpu_supports("avx512vnni"))
      found.int8_gops = instructions * 128 / least_seconds(threads, [](int) { multiply_bytes_512(); });
  }
  return found;
}

}  // namespace limits
