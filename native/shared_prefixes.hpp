// Which of a step's block tables begin with the same physical blocks, and for how long: a tree of runs of whole
// partitions, found by sorting the tables. Two tables share a partition only if they share all of it and everything
// before it, block by block.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace octavo {

class SharedPrefixes {
 public:
  static constexpr std::int32_t kMaxDepth = 3;  // runs that may follow one another in one table

  // Tables first … first+count-1, in sorted order, have partitions begin … end-1 in common. `depth` runs before it end
  // at `begin` in all of these tables.
  struct Run {
    std::int32_t first, count;
    std::int32_t begin, end;
    std::int32_t depth;
  };

  explicit SharedPrefixes(std::int64_t max_tables);

  void clear() { tables_.clear(); }
  // A table whose first `num_partitions` partitions may be shared. `tag` is the caller's name for it.
  void add(const std::int32_t* blocks, std::int32_t num_partitions, std::int32_t tag) {
    tables_.push_back({blocks, num_partitions, tag, 0});
  }
  void sort();

  std::int32_t size() const { return static_cast<std::int32_t>(tables_.size()); }
  std::int32_t tag(std::int32_t index) const { return tables_[static_cast<std::size_t>(index)].tag; }

  // Offers runs to accept(run), from the root down. The tables of a run that is refused may be offered its partitions
  // again, as the beginning of longer runs of fewer tables.
  template <class Accept>
  void visit(Accept&& accept) const {
    visit(0, size(), 0, 0, accept);
  }

 private:
  struct Table {
    const std::int32_t* blocks;
    std::int32_t num_partitions;
    std::int32_t tag;
    std::int32_t common;  // partitions in common with the table before it
  };

  std::int32_t common(std::int32_t index) const { return tables_[static_cast<std::size_t>(index)].common; }

  template <class Accept>
  void visit(std::int32_t first, std::int32_t end, std::int32_t shared, std::int32_t depth, Accept& accept) const {
    if (end - first < 2 || depth == kMaxDepth) return;
    std::int32_t least = common(first + 1);
    for (std::int32_t i = first + 2; i < end; ++i) least = std::min(least, common(i));
    if (least > shared && accept(Run{first, end - first, shared, least, depth})) {
      shared = least;
      ++depth;
    }
    for (std::int32_t i = first; i < end;) {
      std::int32_t next = i + 1;
      while (next < end && common(next) > least) ++next;
      visit(i, next, shared, depth, accept);
      i = next;
    }
  }

  std::vector<Table> tables_;
};

}  // namespace octavo
