#include "thread_pool.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <utility>

namespace octavo {
namespace {

constexpr std::int64_t kSpinNs = 50'000;
constexpr std::int64_t kLine = 64;
constexpr std::int64_t kLinesAtOnce = 8;  // that a waiting thread asks for between two looks at the ticket

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void ThreadPool::Fetcher::aim(const Ahead& ahead) {
  if (ahead.stretches.empty() || ahead.stretches.data() == begin_) return;
  begin_ = at_ = ahead.stretches.data();
  end_ = begin_ + ahead.stretches.size();
  offset_ = 0;
  bytes_ = ahead.bytes;
}

bool ThreadPool::Fetcher::fetch_some() {
  for (std::int64_t i = 0; i < kLinesAtOnce; ++i) {
    while (at_ != end_ && offset_ >= at_->bytes) {
      ++at_;
      offset_ = 0;
    }
    if (at_ == end_ || bytes_ <= 0) return false;
    __builtin_prefetch(at_->data + offset_, 0, 2);  // into the second level: the first is small
    offset_ += kLine;
    bytes_ -= kLine;
  }
  return true;
}

ThreadPool::ThreadPool(int num_threads)
    : size_(num_threads), ranges_(std::make_unique<ThreadRange[]>(static_cast<std::size_t>(num_threads))) {
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
  stop_.store(true);
  wake_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(Job& job, std::size_t num_phases) {
  job_ = &job;
  num_phases_ = num_phases;
  failed_.store(false, std::memory_order_relaxed);
  const std::uint32_t sequence = ticket_.load(std::memory_order_relaxed).sequence;
  // A range that was empty in every phase for long is not to be mistaken for one of a later phase.
  for (int i = 0; i < size(); ++i) {
    ranges_[static_cast<std::size_t>(i)].left.store({sequence, 0, 0}, std::memory_order_relaxed);
  }
  begin_phase(0, sequence, 0);
  Fetcher fetcher;
  for (;;) {
    const Ticket ticket = take_all(ticket_.load(std::memory_order_acquire), 0, fetcher);
    if (over_.load(std::memory_order_relaxed) == ticket.sequence) break;
    wait_beyond(ticket.sequence, fetcher);
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
  const Portions portions(static_cast<std::uint32_t>(units > 0 ? units : 0));
  unfinished_.store(portions.count, std::memory_order_relaxed);
  if (portions.count == 0) over_.store(sequence + 1, std::memory_order_relaxed);
  ticket_.store(Ticket{sequence + 1, portions.units});
  if (asleep_.load() && asleep_.exchange(false)) wake_all();  // who has been woken may take long to come
}

void ThreadPool::wake_all() {
  signal_.fetch_add(1);
  signal_.notify_all();
}

ThreadPool::Portions::Portions(std::uint32_t num_units) : units(num_units), units_each(1), count(num_units) {
  constexpr std::uint32_t kMost = std::numeric_limits<std::uint16_t>::max();
  if (units <= kMost) return;
  units_each = (units - 1) / kMost + 1;
  count = (units - 1) / units_each + 1;
}

// What `word`, found as a thread's range, says for the ticket's phase.
ThreadPool::Range ThreadPool::now_left(Range word, int thread_id, Ticket ticket, const Portions& portions) const {
  const auto ahead = static_cast<std::int32_t>(word.sequence - ticket.sequence);
  if (ahead == 0) return word;
  if (ahead > 0) return {ticket.sequence, 0, 0};  // the ticket's phase is over
  const auto threads = static_cast<std::uint32_t>(size()), thread = static_cast<std::uint32_t>(thread_id);
  const std::uint32_t least = portions.count / threads, more = portions.count % threads;
  const std::uint32_t begin = thread * least + std::min(thread, more);
  const std::uint32_t end = begin + least + (thread < more ? 1 : 0);
  return {ticket.sequence, static_cast<std::uint16_t>(begin), static_cast<std::uint16_t>(end)};
}

// Takes the first portion of the thread's own range.
bool ThreadPool::take_first(int thread_id, Ticket ticket, const Portions& portions, std::uint32_t& portion) {
  std::atomic<Range>& own = ranges_[static_cast<std::size_t>(thread_id)].left;
  Range word = own.load(std::memory_order_relaxed);
  for (;;) {
    Range left = now_left(word, thread_id, ticket, portions);
    if (left.begin == left.end) return false;
    portion = left.begin++;
    if (own.compare_exchange_weak(word, left, std::memory_order_relaxed)) return true;
  }
}

// Moves the last half of another thread's range to this one's, which is empty.
bool ThreadPool::take_half(int from, int thread_id, Ticket ticket, const Portions& portions) {
  std::atomic<Range>& other = ranges_[static_cast<std::size_t>(from)].left;
  Range word = other.load(std::memory_order_relaxed);
  for (;;) {
    const Range left = now_left(word, from, ticket, portions);
    if (left.begin == left.end) return false;
    const auto middle = static_cast<std::uint16_t>(left.begin + (left.end - left.begin) / 2);
    if (!other.compare_exchange_weak(word, {ticket.sequence, left.begin, middle}, std::memory_order_relaxed)) continue;
    ranges_[static_cast<std::size_t>(thread_id)].left.store({ticket.sequence, middle, left.end},
                                                            std::memory_order_relaxed);
    return true;
  }
}

// Runs what is left of the thread's own range or, if that is nothing, half of the first other one that has something
// left; returns how many portions that were.
std::uint32_t ThreadPool::run_range(Ticket ticket, int thread_id) {
  const Portions portions(ticket.units);
  std::uint32_t done = 0, portion = 0;
  for (int i = 0; i < size() && done == 0; ++i) {
    if (i > 0 && !take_half((thread_id + i) % size(), thread_id, ticket, portions)) continue;
    for (; take_first(thread_id, ticket, portions, portion); ++done) {
      const std::uint32_t begin = portion * portions.units_each;
      const std::uint32_t end = begin + std::min(portions.units_each, portions.units - begin);
      for (std::uint32_t unit = begin; unit < end && !failed_.load(std::memory_order_relaxed); ++unit) {
        try {
          job_->run(phase_, unit, thread_id);
        } catch (...) {
          keep_error();
        }
      }
    }
  }
  return done;
}

// Runs units, of whatever phase is running, until nobody has any left; returns the ticket of the phase then.
ThreadPool::Ticket ThreadPool::take_all(Ticket ticket, int thread_id, Fetcher& fetcher) {
  while (const std::uint32_t done = run_range(ticket, thread_id)) {
    fetcher.aim(job_->ahead(phase_, thread_id));
    if (unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done) {
      begin_phase(phase_ + 1, ticket.sequence, thread_id);
    }
    ticket = ticket_.load(std::memory_order_acquire);
  }
  return ticket;
}

// Fetches what is ahead and spins for a while, then sleeps, until the ticket's sequence is another.
void ThreadPool::wait_beyond(std::uint32_t sequence, Fetcher& fetcher) {
  const auto changed = [&] {
    return ticket_.load(std::memory_order_acquire).sequence != sequence || stop_.load(std::memory_order_relaxed);
  };
  do {
    if (changed()) return;
  } while (fetcher.fetch_some());
  for (int i = 0; i < 64; ++i, relax()) {
    if (changed()) return;
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kSpinNs);
  do {
    for (int i = 0; i < 32; ++i, relax()) {
      if (changed()) return;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  // Either the new ticket is seen here, or who writes it sees that somebody is asleep.
  for (;;) {
    const std::uint32_t signal = signal_.load();
    asleep_.store(true);
    if (ticket_.load().sequence != sequence || stop_.load()) return;
    signal_.wait(signal);
  }
}

void ThreadPool::keep_error() noexcept {
  const std::lock_guard lock(error_mutex_);
  if (!error_) error_ = std::current_exception();
  failed_.store(true, std::memory_order_relaxed);
}

void ThreadPool::work(int thread_id) {
  Fetcher fetcher;
  while (!stop_.load(std::memory_order_acquire)) {
    const Ticket ticket = take_all(ticket_.load(std::memory_order_acquire), thread_id, fetcher);
    wait_beyond(ticket.sequence, fetcher);
  }
}

}  // namespace octavo
