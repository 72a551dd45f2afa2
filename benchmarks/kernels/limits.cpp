// Prints what this machine can do at most, as one line of JSON: ./limits THREADS
#include "limits.hpp"

#include <cstdio>

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || threads > 256) {
    std::fprintf(stderr, "usage: limits THREADS, 1 to 256 of them\n");
    return 2;
  }
  const limits::Limits found = limits::measure(threads);
  std::printf(
      "{\"threads\": %d, \"read_gb_s\": %.2f, \"float_gflops\": %.1f, \"int8_gops\": %.1f, \"avx2_float_gflops\": "
      "%.1f, "
      "\"avx2_int8_gops\": %.1f, \"avx2_int4_gops\": %.1f}\n",
      threads, found.read_gb_s, found.float_gflops, found.int8_gops, found.avx2_float_gflops, found.avx2_int8_gops,
      found.avx2_int4_gops);
}
