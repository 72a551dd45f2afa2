// One pool of threads for everything. A job is a row of phases, a phase a number of units that any thread may take.
//
// Each thread begins with the units of its own range, in order, so that what it reads is one stream and what it needs
// next is known; who has none left takes half of what is left of another's range. Nobody waits for *threads*: a phase
// is over when its units are done, whoever did them, and who finishes the last one starts the next phase at once. So a
// thread that the system has put aside (a server and a tokeniser share the same cores) holds the others up only if it
// holds a unit; a barrier would wait for it at every phase. Threads that find nothing to take fetch what they will read
// next into their caches, spin briefly and then sleep in the kernel.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace octavo {

// A stretch of memory that a thread is going to read.
struct Stretch {
  const std::uint8_t* data;
  std::int64_t bytes;
};

// The first `bytes` of stretches that follow one another. The array lives as long as the pool that it is given to; what
// it points to is never read, only fetched into caches.
struct Ahead {
  std::span<const Stretch> stretches;
  std::int64_t bytes = 0;
};

class ThreadPool {
 public:
  class Job {
   public:
    // Called by one thread when all earlier phases are over. Returns the number of units to be shared out; 0 if there
    // is nothing (left) to do. What it does itself is seen by all units.
    virtual std::int64_t start(std::size_t phase, int thread_id) = 0;
    virtual void run(std::size_t phase, std::int64_t unit, int thread_id) = 0;
    // What a thread that finds no more units in this phase will probably read in later ones; nothing if unknown.
    virtual Ahead ahead(std::size_t, int) { return {}; }

   protected:
    ~Job() = default;
  };

  // Starts num_threads - 1 threads; the caller of run() is thread 0. Throws std::system_error.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs a job and returns when its last phase is over. The first exception that it threw is thrown here; no phase
  // is started after it. One thread at a time may call this.
  void run(Job& job, std::size_t num_phases);

  // Where unit `unit` of `units` is in a list from which units are dealt out like cards: so each thread's own range, in
  // its order, is as costly as the others' if the list is sorted by cost.
  std::int64_t dealt(std::int64_t unit, std::int64_t units) const {
    const std::int64_t least = units / size(), more = units % size();
    const std::int64_t longer = more * (least + 1);  // units in ranges that have one more
    if (unit < longer) return unit % (least + 1) * size() + unit / (least + 1);
    return (unit - longer) % least * size() + more + (unit - longer) / least;
  }

  // Calls f(i, thread_id) for i = 0 … count-1, each once, in any order, on all threads; one alone on the caller's.
  template <class F>
  void for_each(std::int64_t count, F&& f) {
    if (count == 1) {
      f(std::int64_t{0}, 0);
      return;
    }
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
  // The phase that is running: its number since the pool began, and how many units it has.
  struct Ticket {
    std::uint32_t sequence, units;
  };
  // A phase's units in portions, few enough to be counted in 16 bits.
  struct Portions {
    std::uint32_t units, units_each, count;
    explicit Portions(std::uint32_t num_units);
  };
  // What is left of a thread's range of portions in phase `sequence`. One of an earlier phase stands for all that the
  // thread has in this one: so nobody writes to every thread's cache line to start a phase, and no phase can end before
  // each range that is not empty has been touched.
  struct Range {
    std::uint32_t sequence;
    std::uint16_t begin, end;
  };
  struct alignas(64) ThreadRange {
    std::atomic<Range> left{Range{0, 0, 0}};
  };
  static_assert(std::atomic<Ticket>::is_always_lock_free && std::atomic<Range>::is_always_lock_free);

  // How far a waiting thread has come with fetching what is ahead of it.
  class Fetcher {
   public:
    void aim(const Ahead& ahead);
    bool fetch_some();  // false if there is nothing left to fetch

   private:
    const Stretch* begin_ = nullptr;
    const Stretch* at_ = nullptr;
    const Stretch* end_ = nullptr;
    std::int64_t offset_ = 0, bytes_ = 0;
  };

  Range now_left(Range word, int thread_id, Ticket ticket, const Portions& portions) const;
  bool take_first(int thread_id, Ticket ticket, const Portions& portions, std::uint32_t& portion);
  bool take_half(int from, int thread_id, Ticket ticket, const Portions& portions);
  std::uint32_t run_range(Ticket ticket, int thread_id);
  Ticket take_all(Ticket ticket, int thread_id, Fetcher& fetcher);
  void begin_phase(std::size_t phase, std::uint32_t sequence, int thread_id);
  void wait_beyond(std::uint32_t sequence, Fetcher& fetcher);
  void wake_all();
  void keep_error() noexcept;
  void work(int thread_id);
  void stop();

  const int size_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;

  // What waiting threads look at, and what they need to begin, in one cache line. But for the ticket these change only
  // when all units are done: who holds a portion of the phase may read them.
  alignas(64) std::atomic<Ticket> ticket_{Ticket{0, 0}};
  Job* job_ = nullptr;
  std::size_t num_phases_ = 0;
  std::size_t phase_ = 0;
  std::atomic<std::uint32_t> over_{0};  // the sequence at which the job is over
  std::atomic<bool> failed_{false};

  alignas(64) std::unique_ptr<ThreadRange[]> ranges_;     // of each thread
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};  // portions
  alignas(64) std::atomic<bool> asleep_{false};           // a thread may be, that nobody has woken
  std::atomic<std::uint32_t> signal_{0};                  // changes when sleepers are to look at the ticket again
};

}  // namespace octavo
