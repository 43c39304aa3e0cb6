// The free pages of a K/V cache. It lives on the host and is single-threaded: the scheduler owns it and reserves pages before
// it starts a round, so no kernel ever allocates.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ssd {

class PageAllocator {
 public:
  // Has the pages 1 .. num_pages - 1. Page 0 is the null page (common/paging.h), which is never allocated.
  explicit PageAllocator(int32_t num_pages);

  // Returns `count` pages, the last freed first; a fresh allocator starts at page 1. Throws, and takes none, if there are too
  // few.
  std::vector<int32_t> allocate(int32_t count);

  // Frees pages. Throws, and frees none, if one of them is not allocated or occurs twice.
  void free(std::span<const int32_t> pages);

  int32_t available() const { return static_cast<int32_t>(free_.size()); }
  int32_t capacity() const { return static_cast<int32_t>(taken_.size()) - 1; }

 private:
  std::vector<int32_t> free_;   // a stack
  std::vector<uint8_t> taken_;  // [num_pages]
};

}  // namespace ssd
