// An arena of large pages, which tensors share. huge_pages.h says why.
#include "huge_pages.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssd {

#if defined(__linux__)

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kArena = size_t{64} << 20;  // one for several weights: a weight is often smaller than a page
constexpr size_t kAlign = 4096;              // bytes; keeps the prefetcher of one weight out of the next

class Arena {
 public:
  explicit Arena(size_t bytes) : bytes_(bytes) {
    void* mapped = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "no memory for ", bytes >> 20, " MiB of weights");
    mapped_ = static_cast<char*>(mapped);
    first_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(mapped) + kPage - 1) / kPage * kPage);
    madvise(first_, bytes, MADV_HUGEPAGE);  // this may fail: the memory is then slower, and nothing else changes
  }
  ~Arena() { munmap(mapped_, bytes_ + kPage); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  char* take(size_t bytes) {
    if (used_ + bytes > bytes_) return nullptr;
    char* place = first_ + used_;
    used_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return place;
  }

 private:
  char* mapped_ = nullptr;
  char* first_ = nullptr;
  size_t bytes_, used_ = 0;
};

}  // namespace

at::Tensor huge_pages(at::IntArrayRef shape, const at::TensorOptions& options) {
  static std::mutex mutex;
  static std::weak_ptr<Arena> current;  // weak: only its tensors keep an arena alive
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Arena> arena = current.lock();
  char* place = arena != nullptr ? arena->take(bytes) : nullptr;
  if (place == nullptr) {
    arena = std::make_shared<Arena>(std::max(kArena, (bytes + kPage - 1) / kPage * kPage));
    current = arena;
    place = arena->take(bytes);
  }
  return at::from_blob(place, shape, [arena](void*) {}, options);  // a fresh mapping is zero
}

#else

at::Tensor huge_pages(at::IntArrayRef shape, const at::TensorOptions& options) { return at::zeros(shape, options); }

#endif

}  // namespace ssd
