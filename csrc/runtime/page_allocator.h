// The free pages of a K/V cache, and for every other page the number of sequences that hold it: two may share a page. It lives
// on the host and is single-threaded: the scheduler owns it and reserves pages before it starts a round, so no kernel ever
// allocates.
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

  // Adds a holder to each page. Throws, and changes nothing, if one of them is free.
  void hold(std::span<const int32_t> pages);

  // Takes a holder from each page; a page without holders is free. Throws, and changes nothing, if one of them is free already.
  void free(std::span<const int32_t> pages);

  // Holders of a page, 0 of a free one. Throws for a page that is not of this allocator.
  int32_t holders(int32_t page) const;

  int32_t available() const { return static_cast<int32_t>(free_.size()); }
  int32_t capacity() const { return static_cast<int32_t>(holders_.size()) - 1; }

 private:
  std::vector<int32_t> free_;     // a stack
  std::vector<int32_t> holders_;  // [num_pages]
};

}  // namespace ssd
