// Page-aligned memory straight from the operating system: anonymous, in huge pages where it has them and zeroed on
// first touch, or the pages of a file.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace octavo {

class MappedMemory {
 public:
  MappedMemory() = default;
  explicit MappedMemory(std::size_t bytes);  // throws std::bad_alloc
  // The first `bytes` of a file, which must have them as long as this lives; the descriptor may be closed. Writes to a
  // writable mapping reach the file. Throws std::bad_alloc, or std::system_error when the file cannot be mapped.
  static MappedMemory of_file(int descriptor, std::size_t bytes, bool writable);
  ~MappedMemory();
  MappedMemory(MappedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  MappedMemory& operator=(MappedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }

  void protect();  // from here on, a write is a fault

  std::uint8_t* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t bytes_ = 0;   // as asked for
  std::size_t mapped_ = 0;  // as mapped
};

// Tells the system that these bytes, a file's that is mapped somewhere, will not be read again soon: they leave this
// process's memory. Bytes that lie in no file stay as they are.
void release_pages(const void* begin, std::size_t bytes);

// Has the system give these bytes, of a mapping's, their pages now, and leaves what they hold. False if it cannot be
// asked to.
bool make_present(std::uint8_t* begin, std::size_t bytes);

}  // namespace octavo
