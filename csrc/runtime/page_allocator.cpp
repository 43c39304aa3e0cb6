// The page allocator: a stack of free pages, and a count of holders for each page. Freeing a page too often is an error.
#include "runtime/page_allocator.h"

#include <numeric>
#include <stdexcept>
#include <string>

#include "common/paging.h"

namespace ssd {

PageAllocator::PageAllocator(int32_t num_pages) {
  if (num_pages < 1) {
    throw std::invalid_argument("num_pages is " + std::to_string(num_pages) + "; a cache has at least 1 page, the null page.");
  }
  holders_.assign(num_pages, 0);
  free_.resize(num_pages - 1);
  std::iota(free_.rbegin(), free_.rend(), kNullPage + 1);
}

std::vector<int32_t> PageAllocator::allocate(int32_t count) {
  if (count < 0) throw std::invalid_argument("count is " + std::to_string(count) + "; it cannot be negative.");
  if (count > available()) {
    throw std::runtime_error("No pages left: " + std::to_string(count) + " asked for, " + std::to_string(available()) + " of " +
                             std::to_string(capacity()) + " free.");
  }
  std::vector<int32_t> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  for (const int32_t page : pages) holders_[page] = 1;
  return pages;
}

void PageAllocator::hold(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    if (holders(page) == 0)
      throw std::invalid_argument("Page " + std::to_string(page) + " is free; only a held page can be shared.");
  }
  for (const int32_t page : pages) ++holders_[page];
}

void PageAllocator::free(std::span<const int32_t> pages) {
  std::vector<int32_t> freed;
  for (size_t i = 0; i < pages.size(); ++i) {
    try {
      if (holders(pages[i]) == 0) throw std::invalid_argument("Page " + std::to_string(pages[i]) + " is already free.");
    } catch (...) {
      for (size_t j = 0; j < i; ++j) ++holders_[pages[j]];  // nothing was freed
      throw;
    }
    if (--holders_[pages[i]] == 0) freed.push_back(pages[i]);
  }
  free_.insert(free_.end(), freed.rbegin(), freed.rend());
}

int32_t PageAllocator::holders(int32_t page) const {
  if (page <= kNullPage || page > capacity()) {
    throw std::invalid_argument("Page " + std::to_string(page) + " is not a page of this allocator (1 to " +
                                std::to_string(capacity()) + ").");
  }
  return holders_[page];
}

}  // namespace ssd
