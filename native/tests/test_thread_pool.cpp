// The thread pool: every thread takes part once, barriers hold, exceptions arrive, nobody is lost asleep.
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "thread_pool.hpp"

using namespace octavo;

namespace {

int failures = 0;

void check(bool condition, const char* what, int threads) {
  if (!condition && ++failures <= 20) std::printf("failed with %d threads: %s\n", threads, what);
}

void everybody_runs_once(ThreadPool& pool) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(pool.size()));
  for (int i = 0; i < 200; ++i) {
    pool.run([&](int id) { calls[static_cast<std::size_t>(id)].fetch_add(1); });
    if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // long enough to fall asleep
  }
  for (const auto& count : calls) check(count == 200, "each thread runs each job once", pool.size());
}

void barriers_hold(ThreadPool& pool) {
  constexpr int kPhases = 500;
  std::vector<std::vector<int>> written(kPhases, std::vector<int>(static_cast<std::size_t>(pool.size())));
  std::atomic<int> wrong{0};
  int serial = 0;
  pool.run([&](int id) {
    for (int phase = 0; phase < kPhases; ++phase) {
      written[static_cast<std::size_t>(phase)][static_cast<std::size_t>(id)] = 1;
      pool.barrier([&] { serial += 1; });
      if (serial != phase + 1) wrong.fetch_add(1);
      for (const int w : written[static_cast<std::size_t>(phase)]) wrong.fetch_add(w == 1 ? 0 : 1);
      pool.barrier([] {});
    }
  });
  check(wrong == 0, "what was written before a barrier is seen after it", pool.size());
}

void exceptions_arrive(ThreadPool& pool) {
  for (int thrower = 0; thrower < pool.size(); ++thrower) {
    std::string message;
    try {
      pool.run([&](int id) {
        if (id == thrower) throw std::runtime_error("thread " + std::to_string(id));
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    check(message == "thread " + std::to_string(thrower), "an exception reaches the caller", pool.size());
  }
  everybody_runs_once(pool);
}

void everything_is_shared_out(ThreadPool& pool) {
  std::vector<std::atomic<int>> done(1000);
  pool.for_each(1000, [&](std::int64_t i) { done[static_cast<std::size_t>(i)].fetch_add(1); });
  for (const auto& count : done) check(count == 1, "each item is done once", pool.size());
  pool.for_each(0, [&](std::int64_t) { check(false, "no item, no call", pool.size()); });
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    check(pool.size() == threads, "size", threads);
    everybody_runs_once(pool);
    barriers_hold(pool);
    exceptions_arrive(pool);
    everything_is_shared_out(pool);
  }
  if (failures == 0) std::printf("ok\n");
  return failures == 0 ? 0 : 1;
}
