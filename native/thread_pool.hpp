// One pool of threads for everything. A job is a row of phases, a phase a number of units that any thread may take.
//
// Nobody waits for *threads*: a phase is over when its units are done, whoever did them, and who finishes the last one
// starts the next phase at once. So a thread that the system has put aside (a server and a tokeniser share the same
// cores) holds the others up only if it holds a unit; a barrier would wait for it at every phase. Threads that find
// nothing to take spin briefly and then sleep in the kernel.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

class ThreadPool {
 public:
  class Job {
   public:
    // Called by one thread when all earlier phases are over. Returns the number of units to be shared out; 0 if there
    // is nothing (left) to do. What it does itself is seen by all units.
    virtual std::int64_t start(std::size_t phase, int thread_id) = 0;
    virtual void run(std::size_t phase, std::int64_t unit, int thread_id) = 0;

   protected:
    ~Job() = default;
  };

  // Starts num_threads - 1 threads; the caller of run() is thread 0. Throws std::system_error.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Runs a job and returns when its last phase is over. The first exception that it threw is thrown here; no phase
  // is started after it. One thread at a time may call this.
  void run(Job& job, std::size_t num_phases);

  // Calls f(i, thread_id) for i = 0 … count-1, each once, in any order, on all threads.
  template <class F>
  void for_each(std::int64_t count, F&& f) {
    struct Loop final : Job {
      std::int64_t count;
      F& f;
      Loop(std::int64_t n, F& function) : count(n), f(function) {}
      std::int64_t start(std::size_t, int) override { return count; }
      void run(std::size_t, std::int64_t unit, int thread_id) override { f(unit, thread_id); }
    } loop(count, f);
    run(loop, 1);
  }

 private:
  // What there is to take: the phase's number since the pool began, and how many of its units are left.
  struct Ticket {
    std::uint32_t sequence, left;
  };
  static_assert(std::atomic<Ticket>::is_always_lock_free);
  static constexpr std::int64_t kSpinNs = 50'000;

  Ticket take_all(Ticket ticket, int thread_id);
  void begin_phase(std::size_t phase, std::uint32_t sequence, int thread_id);
  void keep_error() noexcept;
  void work(int thread_id);
  void stop();

  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};

  // The phase that is running. Who holds one of its units may read these: they change only when all units are done.
  Job* job_ = nullptr;
  std::size_t num_phases_ = 0;
  std::size_t phase_ = 0;
  std::uint32_t units_ = 0;
  std::atomic<std::uint32_t> over_{0};  // the sequence at which the job is over

  alignas(64) std::atomic<Ticket> ticket_{Ticket{0, 0}};
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};
  alignas(64) std::atomic<std::uint32_t> signal_{0};  // counts phases like the ticket does, to sleep on
};

}  // namespace octavo
