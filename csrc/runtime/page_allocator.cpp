// The page allocator: a stack of free pages, and a flag for each page, so that freeing a page twice is an error and never
// shares it.
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
  taken_.assign(num_pages, 0);
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
  for (const int32_t page : pages) taken_[page] = 1;
  return pages;
}

void PageAllocator::free(std::span<const int32_t> pages) {
  for (size_t i = 0; i < pages.size(); ++i) {
    const int32_t page = pages[i];
    const bool ours = page > kNullPage && page <= capacity();
    if (ours && taken_[page]) {
      taken_[page] = 0;
      continue;
    }
    for (size_t j = 0; j < i; ++j) taken_[pages[j]] = 1;  // nothing was freed
    const std::string name = "Page " + std::to_string(page);
    if (!ours) {
      throw std::invalid_argument(name + " is not a page of this allocator (1 to " + std::to_string(capacity()) + ").");
    }
    throw std::invalid_argument(name + " is already free.");
  }
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
}

}  // namespace ssd
