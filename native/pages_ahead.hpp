// Memory that is going to be used is made present beforehand, while nothing else runs: the system clears a page when it
// is first touched, which costs a prompt's keys and values up to a tenth of its time, on virtual machines most.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace octavo {

// Keeps as many bytes beyond the furthest use of a mapping present as have been used, within limits, by a thread of its
// own that leaves the processor to steps: it works only when none has run for a while, and looks up after each piece.
class PagesAhead {
 public:
  // The mapping, which is used from its beginning on, outlives this. Throws std::system_error.
  PagesAhead(std::uint8_t* data, std::size_t bytes, std::size_t least, std::size_t most);
  ~PagesAhead();
  PagesAhead(const PagesAhead&) = delete;
  PagesAhead& operator=(const PagesAhead&) = delete;

  // Around a step, from one thread at a time. `used`: bytes from the beginning to the end of what it wrote.
  void step_begins() { busy_.store(true, std::memory_order_relaxed); }
  void step_ends(std::size_t used);

 private:
  using Clock = std::chrono::steady_clock;
  void work();
  bool quiet() const;

  std::uint8_t* data_;
  std::size_t bytes_, least_, most_;
  std::size_t present_ = 0;  // of the thread alone
  std::atomic<std::size_t> wanted_;
  std::atomic<bool> busy_{false};
  std::atomic<Clock::rep> last_end_{0};
  bool stop_ = false;  // under the mutex
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace octavo
