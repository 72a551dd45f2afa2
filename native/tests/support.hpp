// What the native tests share: checks that count failures, and buffers in which a sanitiser sees every step beyond the
// end.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace octavo::tests {

inline int failures = 0;

inline bool check(bool condition, const std::string& what) {
  if (!condition && ++failures <= 20) std::printf("failed: %s\n", what.c_str());
  return condition;
}

// Throws std::invalid_argument whose message has `part` in it.
template <class F>
void check_refused(const std::string& what, const std::string& part, F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).find(part) != std::string::npos, what + ": the refusal says " + error.what());
    return;
  }
  check(false, what + " was not refused");
}

inline int report() {
  std::printf("%s\n", failures == 0 ? "ok" : "FAILED");
  return failures == 0 ? 0 : 1;
}

using Random = std::mt19937;

inline std::int64_t below(Random& random, std::int64_t n) {
  return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
}

// 64-byte aligned memory of exactly `size` elements.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size, T value = T{})
      : size_(size),
        data_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), std::align_val_t{64}))) {
    for (std::int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  Buffer(Buffer&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  const T& operator[](std::int64_t i) const { return data_[i]; }

 private:
  std::int64_t size_;
  T* data_;
};

inline Buffer<float> normal_floats(std::int64_t size, Random& random, float deviation = 1.0f) {
  Buffer<float> out(size);
  std::normal_distribution<float> normal(0.0f, deviation);
  for (std::int64_t i = 0; i < size; ++i) out[i] = normal(random);
  return out;
}

inline Buffer<std::uint8_t> random_bytes(std::int64_t size, Random& random) {
  Buffer<std::uint8_t> out(size);
  for (std::int64_t i = 0; i < size; ++i) out[i] = static_cast<std::uint8_t>(random());
  return out;
}

// The same bits, except that any NaN is like any other.
template <class T>
bool same(const Buffer<T>& a, const Buffer<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) == 0) continue;
    if (!(a[i] != a[i] && b[i] != b[i])) return false;
  }
  return true;
}

}  // namespace octavo::tests
