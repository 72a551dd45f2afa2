// The thread pool: phases in order, units once, exceptions to the caller, nobody lost asleep.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
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

// Phases of random sizes, some empty; every unit sees all units of the phase before, and runs once.
struct Phases final : ThreadPool::Job {
  std::vector<std::vector<std::atomic<int>>> done;
  std::atomic<int> wrong{0};
  std::size_t started = 0;  // by one thread at a time, so not atomic
  int pause_every;
  static inline const std::vector<std::uint8_t> memory = std::vector<std::uint8_t>(1000);
  static inline const std::vector<Stretch> stretches{{memory.data(), 700}, {nullptr, 0}, {memory.data() + 700, 300}};

  Phases(std::size_t count, int pause) : pause_every(pause) {
    std::mt19937 random(static_cast<unsigned>(count));
    for (std::size_t i = 0; i < count; ++i) done.emplace_back(random() % 5 == 0 ? 0 : random() % 40);
  }
  std::int64_t start(std::size_t phase, int) override {
    if (phase != started++) wrong.fetch_add(1);
    check_done(phase);
    return static_cast<std::int64_t>(done[phase].size());
  }
  void run(std::size_t phase, std::int64_t unit, int) override {
    check_done(phase);
    done[phase][static_cast<std::size_t>(unit)].fetch_add(1, std::memory_order_relaxed);
    if (pause_every != 0 && unit % pause_every == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  Ahead ahead(std::size_t phase, int) override {
    if (phase + 1 != started) wrong.fetch_add(1);
    return {std::span(stretches).subspan(phase % 3), 900};
  }
  void check_done(std::size_t phase) {
    if (phase == 0) return;
    for (const auto& count : done[phase - 1]) wrong.fetch_add(count.load(std::memory_order_relaxed) == 1 ? 0 : 1);
  }
};

void phases_follow_one_another(ThreadPool& pool) {
  for (const int pause : {0, 0, 0, 7}) {
    Phases job(pause == 0 ? 300 : 40, pause);
    pool.run(job, job.done.size());
    job.check_done(job.done.size());
    check(job.wrong == 0, "a phase starts when all units of the one before are done", pool.size());
    check(job.started == job.done.size(), "all phases are started", pool.size());
  }
}

void many_small_jobs(ThreadPool& pool) {
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(i % 9));
    pool.for_each(i % 9, [&](std::int64_t unit, int id) {
      done[static_cast<std::size_t>(unit)].fetch_add(1);
      check(id >= 0 && id < pool.size(), "thread ids", pool.size());
    });
    for (const auto& count : done) check(count == 1, "each unit is done once", pool.size());
    if (i % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to fall asleep
  }
}

void several_threads_take_part(ThreadPool& pool) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(pool.size()));
  pool.for_each(50 * pool.size(), [&](std::int64_t, int id) {
    calls[static_cast<std::size_t>(id)].fetch_add(1);
    std::this_thread::sleep_for(std::chrono::microseconds(300));
  });
  for (const auto& count : calls) check(count > 0, "each thread takes part in a long phase", pool.size());
}

// Units of a long loop are counted in portions; none is lost where they do not divide evenly.
void long_loops(ThreadPool& pool) {
  for (const std::int64_t count : {65535, 65536, 200001}) {
    std::vector<std::atomic<std::uint8_t>> done(static_cast<std::size_t>(count));
    pool.for_each(count, [&](std::int64_t unit, int) {
      done[static_cast<std::size_t>(unit)].fetch_add(1, std::memory_order_relaxed);
    });
    std::int64_t wrong = 0;
    for (const auto& times : done) wrong += times != 1;
    check(wrong == 0, "each unit of a long loop is done once", pool.size());
  }
}

// A thread goes through its own range in order, and where one is held up, the others do all that it has left.
void ranges_are_streams(ThreadPool& pool) {
  const std::int64_t each = 32, count = each * pool.size();
  std::vector<std::int64_t> last(static_cast<std::size_t>(pool.size()), -1);
  std::atomic<std::int64_t> finished{0};
  std::atomic<int> backward{0};
  std::atomic<bool> held_alone{pool.size() == 1};
  pool.for_each(count, [&](std::int64_t unit, int id) {
    std::int64_t& before = last[static_cast<std::size_t>(id)];
    if (unit / each == id && before / each == id && before >= 0) backward.fetch_add(unit < before);
    before = unit;
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (unit == 0 && !held_alone && std::chrono::steady_clock::now() < patience) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      held_alone = finished == count - 1;
    }
    finished.fetch_add(1);
  });
  check(backward == 0, "a thread's own units come in order", pool.size());
  check(held_alone, "what a thread that is held up has left is done by others", pool.size());
}

// dealt() is a permutation that gives every range the same share of each stretch of the list.
void dealing(const ThreadPool& pool) {
  for (std::int64_t units = 1; units < 70; ++units) {
    std::vector<int> seen(static_cast<std::size_t>(units));
    std::int64_t unit = 0;
    for (int thread = 0; thread < pool.size(); ++thread) {
      for (std::int64_t at = thread; at < units; at += pool.size(), ++unit) {
        check(pool.dealt(unit, units) == at, "dealt like cards", pool.size());
        ++seen[static_cast<std::size_t>(at)];
      }
    }
    for (const int times : seen) check(times == 1, "each place is dealt once", pool.size());
  }
}

struct Failing final : ThreadPool::Job {
  std::size_t fails_in;
  std::int64_t fails_at;  // -1: in start
  std::size_t last = 0;
  Failing(std::size_t phase, std::int64_t unit) : fails_in(phase), fails_at(unit) {}
  std::int64_t start(std::size_t phase, int) override {
    last = phase;
    if (phase == fails_in && fails_at < 0) throw std::runtime_error("start " + std::to_string(phase));
    return 20;
  }
  void run(std::size_t phase, std::int64_t unit, int) override {
    if (phase == fails_in && unit == fails_at) throw std::runtime_error("unit " + std::to_string(unit));
  }
};

void exceptions_arrive(ThreadPool& pool) {
  for (const std::int64_t unit : {-1, 0, 10, 19}) {
    Failing job(3, unit);
    std::string message;
    try {
      pool.run(job, 6);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    check(message == (unit < 0 ? "start 3" : "unit " + std::to_string(unit)), "an exception reaches the caller",
          pool.size());
    check(job.last == 3, "no phase is started after a failure", pool.size());
  }
  many_small_jobs(pool);
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    check(pool.size() == threads, "size", threads);
    phases_follow_one_another(pool);
    many_small_jobs(pool);
    several_threads_take_part(pool);
    long_loops(pool);
    ranges_are_streams(pool);
    dealing(pool);
    exceptions_arrive(pool);
  }
  if (failures == 0) std::printf("ok\n");
  return failures == 0 ? 0 : 1;
}
