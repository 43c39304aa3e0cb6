// The emulator's side towards torch: a CPU allocator that puts every tensor beside memory that nobody may touch, and torch.ops
// that choose how kernels run. csrc/cuda_ops is compiled into the same library and registers the ops under the CUDA key. Tests
// redispatch to it with CPU tensors.
//
// Each tensor has pages of its own. An unreadable page begins at its end, or ends at its beginning, so that an access past that
// side faults inside the kernel. Until somebody writes to it, every element is NaN, and no plausible id or length. The rest of
// the tensor's pages holds the same words, and they must be unchanged when the tensor is freed.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "emulator.h"

// Functions of the CUDA runtime that csrc/cuda_ops calls directly.
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
extern "C" cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*,
                                                cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

namespace ssd::emulator {
namespace {

constexpr uint32_t kPoison = 0xffc1ffc1;  // NaN as a float32 and as two bfloat16; -4063295 as an int32

std::atomic<bool> guard_start = false;
std::atomic<int64_t> damaged = 0;

// [front guard][.. the tensor ..][back guard]; the tensor touches one of the guards.
struct Pages {
  unsigned char *base, *data;
  size_t mapped, bytes;

  uint32_t* begin() const { return reinterpret_cast<uint32_t*>(base + page_size()); }
  uint32_t* end() const { return reinterpret_cast<uint32_t*>(base + mapped - page_size()); }

  static size_t page_size() {
    static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return size;
  }
};

bool poisoned(const unsigned char* from, const unsigned char* to) {
  for (; from != to; ++from)
    if (*from != static_cast<unsigned char>(kPoison >> (reinterpret_cast<uintptr_t>(from) % 4 * 8))) return false;
  return true;
}

// The key is the address of a tensor's first byte, which torch passes when it frees. Never destroyed: some tensors outlive
// globals.
std::mutex mutex;
auto& allocated = *new std::unordered_map<void*, Pages>;

void release(void* data) {
  Pages freed;
  {
    const std::lock_guard lock(mutex);
    freed = allocated.extract(data).mapped();
  }
  const auto* begin = reinterpret_cast<unsigned char*>(freed.begin());
  const auto* end = reinterpret_cast<unsigned char*>(freed.end());
  if (!poisoned(begin, freed.data) || !poisoned(freed.data + freed.bytes, end)) ++damaged;
  munmap(freed.base, freed.mapped);
}

class GuardingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, cpu};
    const size_t page = Pages::page_size();
    Pages pages{nullptr, nullptr, (bytes + page - 1) / page * page + 2 * page, bytes};
    void* base = mmap(nullptr, pages.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(base != MAP_FAILED, "no memory for a guarded tensor of ", bytes, " bytes");
    pages.base = static_cast<unsigned char*>(base);
    TORCH_CHECK(mprotect(pages.begin(), pages.mapped - 2 * page, PROT_READ | PROT_WRITE) == 0, "mprotect failed");
    std::fill(pages.begin(), pages.end(), kPoison);
    // Torch needs 16 bytes of alignment. So up to 15 bytes at the end are checked when the tensor is freed, and not guarded.
    pages.data = guard_start ? reinterpret_cast<unsigned char*>(pages.begin())
                             : reinterpret_cast<unsigned char*>(pages.end()) - (bytes + 15) / 16 * 16;
    const std::lock_guard lock(mutex);
    allocated.emplace(pages.data, pages);
    return {pages.data, pages.data, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

Order order_of(std::string_view name) {
  if (name == "forward") return Order::kForward;
  if (name == "reversed") return Order::kReversed;
  TORCH_CHECK(name == "shuffled", "order must be forward, reversed or shuffled, not ", name);
  return Order::kShuffled;
}

void choose(std::string_view order, int64_t seed, bool start) {
  configure(order_of(order), static_cast<uint64_t>(seed));
  guard_start = start;
}

int64_t damaged_tensors() { return damaged.exchange(0); }

std::tuple<std::vector<std::string>, std::vector<int64_t>, std::vector<int64_t>> launched_blocks() {
  std::vector<std::string> names;
  std::vector<int64_t> threads, shared_bytes;
  for (const auto& [name, block] : launched()) {
    names.push_back(name);
    threads.push_back(block.threads);
    shared_bytes.push_back(static_cast<int64_t>(block.shared_bytes));
  }
  return {names, threads, shared_bytes};
}

const bool installed = [] {
  c10::SetCPUAllocator(new GuardingAllocator, 100);
  return true;
}();

}  // namespace

TORCH_LIBRARY(ssd_emulator, m) {
  m.def("configure(str order, int seed, bool guard_start) -> ()", choose);
  m.def("launched() -> (str[] names, int[] threads, int[] shared_bytes)", launched_blocks);  // emulator.h
  m.def("damaged_tensors() -> int", damaged_tensors);  // tensors freed since the last call that had a write beside them
}

}  // namespace ssd::emulator
