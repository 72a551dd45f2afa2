#include "thread_pool.hpp"

#include <chrono>
#include <utility>

namespace octavo {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t value, std::int64_t nanoseconds) {
  for (int i = 0; i < 64; ++i) {
    if (word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(nanoseconds);
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != value) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

ThreadPool::ThreadPool(int num_threads) {
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  try {
    for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (auto& thread : threads_) thread.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run_job(Job job, void* context) {
  job_ = job;
  context_ = context;
  running_.store(static_cast<std::uint32_t>(threads_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  call(0);
  for (std::uint32_t left; (left = running_.load(std::memory_order_acquire)) != 0;) {
    wait_while(running_, left, kBarrierSpinNs);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::call(int thread_id) noexcept {
  try {
    job_(context_, thread_id);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::work(int thread_id) {
  for (std::uint32_t seen = 0;;) {
    wait_while(epoch_, seen, kIdleSpinNs);
    ++seen;
    if (stop_) return;
    call(thread_id);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace octavo
