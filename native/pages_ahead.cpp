#include "pages_ahead.hpp"

#include <algorithm>

#include "memory.hpp"

namespace octavo {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;  // a fraction of a millisecond
constexpr auto kQuiet = std::chrono::milliseconds(3);   // since the last step
constexpr auto kPatience = std::chrono::milliseconds(20);

}  // namespace

PagesAhead::PagesAhead(std::uint8_t* data, std::size_t bytes, std::size_t least, std::size_t most)
    : data_(data), bytes_(bytes), least_(least), most_(most), wanted_(std::min(bytes, least)), thread_([this] {
        work();
      }) {}

PagesAhead::~PagesAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void PagesAhead::step_ends(std::size_t used) {
  last_end_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  busy_.store(false, std::memory_order_relaxed);
  const std::size_t wanted = std::min(bytes_, used + std::clamp(used, least_, most_));
  if (wanted < wanted_.load(std::memory_order_relaxed) + kPiece) return;
  {
    const std::lock_guard lock(mutex_);
    wanted_.store(wanted, std::memory_order_relaxed);
  }
  changed_.notify_one();
}

bool PagesAhead::quiet() const {
  const Clock::time_point last{Clock::duration(last_end_.load(std::memory_order_relaxed))};
  return !busy_.load(std::memory_order_relaxed) && Clock::now() - last >= kQuiet;
}

void PagesAhead::work() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const std::size_t wanted = wanted_.load(std::memory_order_relaxed);
    if (present_ >= wanted) {
      changed_.wait(lock);
    } else if (!quiet()) {
      changed_.wait_for(lock, busy_.load(std::memory_order_relaxed) ? kPatience : kQuiet);
    } else {
      const std::size_t bytes = std::min(kPiece, wanted - present_);
      lock.unlock();
      const bool possible = make_present(data_ + present_, bytes);
      lock.lock();
      present_ = possible ? present_ + bytes : bytes_;
    }
  }
}

}  // namespace octavo
