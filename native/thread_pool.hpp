// One pool of threads for everything: SPMD sections, a barrier with a serial tail, and work shared out by atomic
// counters. Threads spin briefly for the next piece of work and then sleep in the kernel, because a server and a
// tokeniser share the same cores: nobody ever waits actively on a thread that has been preempted.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace octavo {

// Spins for at most `nanoseconds` while `word` holds `value`, then sleeps until it changes.
void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t value, std::int64_t nanoseconds);

class ThreadPool {
 public:
  // Starts num_threads - 1 threads; the caller of run() is thread 0. Throws std::system_error.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls f(thread_id) once on every thread and returns when all have returned. The first exception that any of them
  // threw is thrown here. f must not call barrier() after a throw of its own: it catches what may fail between barriers.
  template <class F>
  void run(F&& f) {
    using Callable = std::remove_reference_t<F>;
    run_job([](void* context, int thread_id) { (*static_cast<Callable*>(context))(thread_id); },
            const_cast<void*>(static_cast<const void*>(&f)));
  }

  // Inside run(), on every thread: waits for all of them. The last one to arrive runs `serial` before anybody goes on.
  template <class F>
  void barrier(F&& serial) {
    const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
      serial();
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      generation_.notify_all();
    } else {
      wait_while(generation_, generation, kBarrierSpinNs);
    }
  }

  // Calls f(i) for i = 0 … count-1, each once, in any order, on all threads.
  template <class F>
  void for_each(std::int64_t count, F&& f) {
    for_each_on_thread(count, [&](std::int64_t i, int) { f(i); });
  }

  // The same, calling f(i, thread_id).
  template <class F>
  void for_each_on_thread(std::int64_t count, F&& f) {
    std::atomic<std::int64_t> next{0};
    run([&](int thread_id) {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i, thread_id);
    });
  }

 private:
  using Job = void (*)(void* context, int thread_id);
  static constexpr std::int64_t kIdleSpinNs = 50'000;
  static constexpr std::int64_t kBarrierSpinNs = 30'000;

  void run_job(Job job, void* context);
  void call(int thread_id) noexcept;
  void work(int thread_id);

  std::vector<std::thread> threads_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  bool stop_ = false;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};    // counts jobs; workers wait for it to change
  alignas(64) std::atomic<std::uint32_t> running_{0};  // workers still in the current job
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
};

}  // namespace octavo
