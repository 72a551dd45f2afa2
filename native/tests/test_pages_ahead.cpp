// Pages are present as far ahead of their use as was asked for and not much further, hold what they held, and are not
// made present while a step runs. What is present is read from mincore.
#include <sys/mman.h>

#include <algorithm>
#include <thread>

#include "memory.hpp"
#include "pages_ahead.hpp"
#include "support.hpp"

using namespace octavo;
using namespace octavo::tests;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20, kPage = 4096;
constexpr std::size_t kHugePage = 2 * kMiB;  // what may be made present at a time

std::size_t present(const MappedMemory& memory) {
  std::vector<unsigned char> pages(memory.bytes() / kPage);
  if (mincore(memory.data(), memory.bytes(), pages.data()) != 0) return 0;
  return kPage * static_cast<std::size_t>(std::count_if(pages.begin(), pages.end(), [](int p) { return p & 1; }));
}

// Waits up to two seconds.
bool becomes_present(const MappedMemory& memory, std::size_t bytes) {
  for (int i = 0; i < 200 && present(memory) < bytes; ++i) std::this_thread::sleep_for(10ms);
  return present(memory) >= bytes;
}

void test_as_far_ahead_as_asked() {
  const MappedMemory memory(64 * kMiB);
  memory.data()[5] = 42;
  PagesAhead pages(memory.data(), memory.bytes(), 8 * kMiB, 16 * kMiB);
  check(becomes_present(memory, 8 * kMiB), "8 MiB before anything is used");
  check(memory.data()[5] == 42 && memory.data()[6 * kMiB] == 0, "contents");
  pages.step_begins();
  memory.data()[7 * kMiB] = 43;
  pages.step_ends(12 * kMiB);
  check(becomes_present(memory, 24 * kMiB), "as much again as a step used");
  pages.step_begins();
  pages.step_ends(20 * kMiB);
  check(becomes_present(memory, 36 * kMiB), "16 MiB beyond what another one used");
  pages.step_begins();
  pages.step_ends(3 * kMiB);  // further back: nothing new
  std::this_thread::sleep_for(50ms);
  check(present(memory) <= 36 * kMiB + kHugePage, "no more than 16 MiB beyond it");
  check(memory.data()[7 * kMiB] == 43, "contents that a step wrote");
  pages.step_begins();
  pages.step_ends(63 * kMiB);
  check(becomes_present(memory, 64 * kMiB), "up to the end, and not beyond");
}

// False if the second step began too late to be sure of anything: a busy machine.
bool test_nothing_while_a_step_runs() {
  const MappedMemory memory(64 * kMiB);
  PagesAhead pages(memory.data(), memory.bytes(), 4 * kMiB, 4 * kMiB);
  check(becomes_present(memory, 4 * kMiB), "4 MiB at first");
  pages.step_begins();
  const auto ended = std::chrono::steady_clock::now();
  pages.step_ends(32 * kMiB);
  pages.step_begins();
  if (std::chrono::steady_clock::now() - ended > 2ms) return false;
  std::this_thread::sleep_for(60ms);
  check(present(memory) <= 4 * kMiB + kHugePage, "present while a step ran");
  pages.step_ends(32 * kMiB);
  check(becomes_present(memory, 36 * kMiB), "once it has ended");
  return true;
}

void test_ends_at_once() {
  for (int i = 0; i < 20; ++i) {
    const MappedMemory memory(256 * kMiB);
    const PagesAhead pages(memory.data(), memory.bytes(), memory.bytes(), memory.bytes());
    std::this_thread::sleep_for(std::chrono::microseconds(100 * i));
  }
}

bool supported() {
  const MappedMemory memory(4 * kMiB);
  return make_present(memory.data(), kMiB);
}

}  // namespace

int main() {
  if (!supported()) {
    std::printf("this system cannot be asked for pages\n");
    return 0;
  }
  test_as_far_ahead_as_asked();
  int tries = 0;
  while (!test_nothing_while_a_step_runs() && check(++tries < 50, "two steps one after the other")) {
  }
  test_ends_at_once();
  return report();
}
