#include "thread_pool.hpp"

#include <chrono>
#include <limits>
#include <stdexcept>
#include <utility>

namespace octavo {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins for at most `nanoseconds` while `word` holds `value`, then sleeps until it changes.
void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t value, std::int64_t nanoseconds) {
  const auto changed = [&] { return word.load(std::memory_order_acquire) != value; };
  for (int i = 0; i < 64; ++i, relax()) {
    if (changed()) return;
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(nanoseconds);
  do {
    for (int i = 0; i < 32; ++i, relax()) {
      if (changed()) return;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  word.wait(value, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  try {
    for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_release);
  signal_.fetch_add(1, std::memory_order_release);
  signal_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(Job& job, std::size_t num_phases) {
  job_ = &job;
  num_phases_ = num_phases;
  failed_.store(false, std::memory_order_relaxed);
  begin_phase(0, ticket_.load(std::memory_order_relaxed).sequence, 0);
  for (;;) {
    const Ticket ticket = take_all(ticket_.load(std::memory_order_acquire), 0);
    if (over_.load(std::memory_order_relaxed) == ticket.sequence) break;
    wait_while(signal_, ticket.sequence, kSpinNs);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Starts the first phase from `phase` on that has units to share out, or ends the job. Only one thread is here at a
// time.
void ThreadPool::begin_phase(std::size_t phase, std::uint32_t sequence, int thread_id) {
  std::int64_t units = 0;
  for (; phase < num_phases_ && !failed_.load(std::memory_order_relaxed); ++phase) {
    try {
      units = job_->start(phase, thread_id);
      if (units > std::numeric_limits<std::uint32_t>::max()) throw std::length_error("a phase has too many units");
    } catch (...) {
      keep_error();
      units = 0;
    }
    if (units > 0) break;
  }
  phase_ = phase;
  units_ = static_cast<std::uint32_t>(units > 0 ? units : 0);
  unfinished_.store(units_, std::memory_order_relaxed);
  if (units_ == 0) over_.store(sequence + 1, std::memory_order_relaxed);
  ticket_.store(Ticket{sequence + 1, units_}, std::memory_order_release);
  // From here on another thread may be ahead of this one, or even in the next job: hence an increment, which commutes.
  signal_.fetch_add(1, std::memory_order_release);
  signal_.notify_all();
}

// Takes units, of whatever phase is running, until none is left; returns the ticket that said so.
ThreadPool::Ticket ThreadPool::take_all(Ticket ticket, int thread_id) {
  while (ticket.left != 0) {
    const Ticket taken{ticket.sequence, ticket.left - 1};
    if (!ticket_.compare_exchange_weak(ticket, taken, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    if (!failed_.load(std::memory_order_relaxed)) {
      try {
        job_->run(phase_, units_ - ticket.left, thread_id);
      } catch (...) {
        keep_error();
      }
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) begin_phase(phase_ + 1, ticket.sequence, thread_id);
    ticket = ticket_.load(std::memory_order_acquire);
  }
  return ticket;
}

void ThreadPool::keep_error() noexcept {
  const std::lock_guard lock(error_mutex_);
  if (!error_) error_ = std::current_exception();
  failed_.store(true, std::memory_order_relaxed);
}

void ThreadPool::work(int thread_id) {
  while (!stop_.load(std::memory_order_acquire)) {
    const Ticket ticket = take_all(ticket_.load(std::memory_order_acquire), thread_id);
    if (!stop_.load(std::memory_order_acquire)) wait_while(signal_, ticket.sequence, kSpinNs);
  }
}

}  // namespace octavo
