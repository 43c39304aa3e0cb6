// Which pages of a K/V cache are free, and how many hold each of the others: two sequences may share a page. Host side and single
// threaded: the scheduler owns it and reserves ahead of the rounds in flight, so no kernel ever asks for memory.
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

  // One more holder of each page. Throws, and changes nothing, if one of them is free.
  void hold(std::span<const int32_t> pages);

  // One holder fewer of each page; a page without holders is free. Throws, and changes nothing, if one of them is free already.
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
