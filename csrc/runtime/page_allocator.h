// Which pages of a K/V cache are free. Host side and single threaded: the scheduler owns it and reserves ahead of the rounds in
// flight, so no kernel ever asks for memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ssd {

class PageAllocator {
 public:
  // Hands out pages 1 .. num_pages - 1. Page 0 is the null page (common/paging.h): written to, never owned.
  explicit PageAllocator(int32_t num_pages);

  // `count` pages, last freed first, in a fresh allocator from page 1 up. Throws, and takes none, where there are too few.
  std::vector<int32_t> allocate(int32_t count);

  // Gives pages back. Throws, and frees none, if one of them was not handed out or occurs twice.
  void free(std::span<const int32_t> pages);

  int32_t available() const { return static_cast<int32_t>(free_.size()); }
  int32_t capacity() const { return static_cast<int32_t>(taken_.size()) - 1; }

 private:
  std::vector<int32_t> free_;   // a stack
  std::vector<uint8_t> taken_;  // [num_pages]
};

}  // namespace ssd
