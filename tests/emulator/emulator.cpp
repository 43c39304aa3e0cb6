// The emulator's scheduler of fibers, and its warp-wide functions. emulator.h says what the emulator is for.
#include "emulator.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace ssd::emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned char kPoison = 0xff;  // NaN as a float of any size; -1 as an int

struct Copy {
  void* shared;
  const void* global;  // null for a copy of zeros
};

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<unsigned char[]> stack;
  bool suspended = false;  // in a kernel, and goes on at `resume`; otherwise it begins at `start`
  bool finished = false;
  const char* waits_at = nullptr;
  uint3 index;
  std::vector<Copy> open;                // copies of the group that is not closed yet
  std::deque<std::vector<Copy>> groups;  // closed groups, oldest first
};

struct Warp {
  Lane lanes[32];
  const char* function = nullptr;  // that the arrived lanes have called
  int arrived = 0;
};

// The running launch. There is only one at a time.
struct Launch {
  const std::function<void()>* kernel = nullptr;
  unsigned char* shared = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
  std::vector<Warp> warps;
  unsigned threads = 0;
  unsigned at_barrier = 0;
  Fiber* running = nullptr;
  std::string error;
  jmp_buf scheduler;
  sigjmp_buf fault;
};

Launch launch;
std::map<std::string, Block> largest_blocks;
std::mutex one_at_a_time;
Order order = Order::kForward;
std::mt19937_64 shuffler;

std::string name(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// Fibers -------------------------------------------------------------------------------------------------------------------------

void yield() {
  Fiber& self = *launch.running;
  self.suspended = true;
  if (_setjmp(self.resume) == 0) _longjmp(launch.scheduler, 1);
}

void fiber_main() {
  Fiber& self = *launch.running;
  try {
    (*launch.kernel)();
    const bool pending = std::any_of(self.groups.begin(), self.groups.end(), [](const auto& group) { return !group.empty(); });
    if (pending || !self.open.empty()) fail("ends with a cp.async that it never waited for");
  } catch (const std::exception& error) {
    if (launch.error.empty()) launch.error = "thread " + name(self.index) + " " + error.what();
  }
  self.finished = true;
  self.suspended = false;
  _longjmp(launch.scheduler, 1);
}

void resume(Fiber& fiber) {
  launch.running = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(launch.scheduler) == 0) {
    if (fiber.suspended) _longjmp(fiber.resume, 1);
    setcontext(&fiber.start);
  }
  launch.running = nullptr;
}

void prepare(Fiber& fiber, unsigned thread) {
  if (fiber.stack == nullptr) fiber.stack.reset(new unsigned char[kStackBytes]);
  getcontext(&fiber.start);
  fiber.start.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStackBytes};
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  fiber.suspended = fiber.finished = false;
  fiber.waits_at = nullptr;
  fiber.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
  fiber.open.clear();
  fiber.groups.clear();
}

template <typename T>
void arrange(std::vector<T>& items) {
  if (order == Order::kReversed) std::reverse(items.begin(), items.end());
  if (order == Order::kShuffled) std::shuffle(items.begin(), items.end(), shuffler);
}

// Lets each lane that can run, run once. Returns false if none can.
bool run_warp(std::vector<Fiber*>& lanes) {
  if (order == Order::kShuffled) arrange(lanes);
  bool moved = false;
  for (Fiber* fiber : lanes) {
    if (fiber->finished || fiber->waits_at != nullptr) continue;
    resume(*fiber);
    moved = true;
    if (!launch.error.empty()) fail("block " + name(blockIdx) + ": " + launch.error);
  }
  return moved;
}

// A warp runs alone for as long as it can, so that warps are as far apart as barriers allow. In shuffled order it runs for a
// few turns.
void run_block() {
  launch.at_barrier = 0;
  std::vector<std::vector<Fiber*>> warps(launch.warps.size());
  for (unsigned t = 0; t < launch.threads; ++t) {
    prepare(*launch.fibers[t], t);
    warps[t / 32].push_back(launch.fibers[t].get());
  }
  for (Warp& warp : launch.warps) warp.arrived = 0;
  if (order == Order::kReversed)
    for (auto& lanes : warps) arrange(lanes);
  if (order != Order::kShuffled) arrange(warps);
  bool moved = true;
  while (moved) {
    moved = false;
    if (order == Order::kShuffled) arrange(warps);
    for (auto& lanes : warps) {
      uint64_t turns = order == Order::kShuffled ? 1 + shuffler() % 8 : ~uint64_t{0};
      while (turns-- > 0 && run_warp(lanes)) moved = true;
    }
  }
  const auto finished = [](const std::unique_ptr<Fiber>& fiber) { return fiber->finished; };
  const auto end = launch.fibers.begin() + launch.threads, stuck = std::find_if_not(launch.fibers.begin(), end, finished);
  if (stuck != end)
    fail("block " + name(blockIdx) + ": thread " + name((*stuck)->index) + " waits for ever at " + (*stuck)->waits_at + ", " +
         std::to_string(std::count_if(launch.fibers.begin(), end, finished)) + " of " + std::to_string(launch.threads) +
         " threads have ended");
}

// Handles an access outside the memory of the launch.
void on_fault(int, siginfo_t* info, void*) {
  if (launch.running == nullptr) _exit(139);
  launch.error = "block " + name(blockIdx) + ": thread " + name(launch.running->index) +
                 " touches memory that is not its own, at " + std::to_string(reinterpret_cast<uintptr_t>(info->si_addr));
  launch.running = nullptr;
  siglongjmp(launch.fault, 1);
}

class FaultHandler {
 public:
  FaultHandler() {
    const stack_t mine{.ss_sp = stack_, .ss_flags = 0, .ss_size = sizeof(stack_)};
    sigaltstack(&mine, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv_before_);
    sigaction(SIGBUS, &action, &bus_before_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &segv_before_, nullptr);
    sigaction(SIGBUS, &bus_before_, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  unsigned char stack_[64 * 1024];
  stack_t stack_before_;
  struct sigaction segv_before_, bus_before_;
};

// Shared memory of a block. An unreadable page begins at its end.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), bytes_((bytes + 15) / 16 * 16) {
    mapped_ = (bytes_ + page_ - 1) / page_ * page_ + 2 * page_;
    base_ = static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) fail("no memory for a block's shared memory");
    if (mapped_ > 2 * page_) mprotect(base_ + page_, mapped_ - 2 * page_, PROT_READ | PROT_WRITE);
  }
  ~SharedMemory() { munmap(base_, mapped_); }
  unsigned char* data() const { return base_ + mapped_ - page_ - bytes_; }
  void poison() const { std::memset(data(), kPoison, bytes_); }

 private:
  size_t page_, bytes_, mapped_;
  unsigned char* base_;
};

void run_blocks(const std::vector<unsigned>& blocks, const SharedMemory& shared) {
  if (sigsetjmp(launch.fault, 1) != 0) fail(launch.error);
  for (const unsigned b : blocks) {
    blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
    shared.poison();
    run_block();
  }
}

void land(std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.global == nullptr) {
      std::memset(copy.shared, 0, 16);
    } else {
      std::memcpy(copy.shared, copy.global, 16);
    }
  }
  copies.clear();
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

unsigned linear_thread() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }

}  // namespace

void configure(Order new_order, uint64_t seed) {
  order = new_order;
  shuffler.seed(seed);
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard lock(one_at_a_time);
  launch.kernel = &kernel;
  gridDim = grid;
  blockDim = block;
  launch.threads = block.x * block.y * block.z;
  launch.error.clear();
  if (launch.threads == 0 || launch.threads > 1024 || launch.threads % 32 != 0)
    fail("a block has 32 to 1024 threads, in whole warps");
  if (shared_bytes > 99 * 1024)
    fail("a block has at most 99 KiB of shared memory, not " + std::to_string(shared_bytes) + " bytes");
  Block& largest = largest_blocks[kernel.target_type().name()];
  largest = {std::max(largest.threads, launch.threads), std::max(largest.shared_bytes, shared_bytes)};
  while (launch.fibers.size() < launch.threads) launch.fibers.push_back(std::make_unique<Fiber>());
  launch.warps.resize(launch.threads / 32);

  std::vector<unsigned> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  arrange(blocks);
  const SharedMemory shared(shared_bytes);
  launch.shared = shared.data();
  const FaultHandler handler;
  run_blocks(blocks, shared);
}

const std::map<std::string, Block>& launched() { return largest_blocks; }

// Functions that device code calls ---------------------------------------------------------------------------------------------------

void* shared_bytes() { return launch.shared; }
int lane_index() { return static_cast<int>(linear_thread() % 32); }

void barrier() {
  launch.running->waits_at = "__syncthreads";
  if (++launch.at_barrier == launch.threads) {
    launch.at_barrier = 0;
    for (unsigned t = 0; t < launch.threads; ++t) launch.fibers[t]->waits_at = nullptr;
  }
  yield();
}

void meet(const char* function, unsigned mask, const void* in, size_t in_bytes, void* out, size_t out_bytes,
          Exchange exchange) {
  if (mask != ~0u) fail(std::string("calls ") + function + " with a mask that leaves lanes out");
  const unsigned thread = linear_thread();
  Warp& warp = launch.warps[thread / 32];
  Lane& lane = warp.lanes[thread % 32];
  if (warp.arrived > 0 && std::strcmp(warp.function, function) != 0)
    fail(std::string("is at ") + function + " while other lanes of its warp are at " + warp.function);
  if (in_bytes > 0) std::memcpy(lane.in, in, in_bytes);
  warp.function = function;
  launch.running->waits_at = function;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    exchange(warp.lanes);
    for (unsigned t = thread / 32 * 32; t < thread / 32 * 32 + 32; ++t) launch.fibers[t]->waits_at = nullptr;
  }
  yield();
  if (out_bytes > 0) std::memcpy(out, lane.out, out_bytes);
}

unsigned ballot(const char* function, unsigned mask, bool predicate) {
  unsigned votes;
  meet(function, mask, &predicate, sizeof(predicate), &votes, sizeof(votes), [](Lane(&lanes)[32]) {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= input<bool>(lanes[i]) ? 1u << i : 0u;
    for (Lane& lane : lanes) give(lane, all);
  });
  return votes;
}

void cp_async(void* shared, const void* global, bool valid) {
  if (!aligned(shared) || (valid && !aligned(global))) fail("starts a cp.async between addresses that are not multiples of 16");
  std::memset(shared, kPoison, 16);
  launch.running->open.push_back({shared, valid ? global : nullptr});
}

void cp_async_commit() {
  launch.running->groups.push_back(std::move(launch.running->open));
  launch.running->open.clear();
}

void cp_async_wait_for(int pending) {
  auto& groups = launch.running->groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    land(groups.front());
    groups.pop_front();
  }
}

void load_matrices(const char* function, uint32_t (&matrix)[4], const void* row, bool transposed) {
  if (!aligned(row)) fail(std::string("gives ") + function + " a row whose address is not a multiple of 16");
  const auto load = [](Lane(&lanes)[32], bool transpose) {
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t pairs[4][2];
      for (int m = 0; m < 4; ++m)
        for (int i = 0; i < 2; ++i) {
          const int r = transpose ? 2 * (lane % 4) + i : lane / 4, c = transpose ? lane / 4 : 2 * (lane % 4) + i;
          pairs[m][i] = input<const uint16_t*>(lanes[8 * m + r])[c];
        }
      give(lanes[lane], pairs);
    }
  };
  static constexpr auto plain = load;
  const Exchange exchange = transposed ? Exchange([](Lane(&lanes)[32]) { plain(lanes, true); })
                                       : Exchange([](Lane(&lanes)[32]) { plain(lanes, false); });
  meet(function, ~0u, &row, sizeof(row), matrix, sizeof(matrix), exchange);
}

void multiply(Lane (&lanes)[32]) {
  // One of the two bfloat16 elements in a word.
  const auto element = [](uint32_t word, int half) {
    return std::bit_cast<float>(half == 0 ? word << 16 : word & 0xffff0000u);
  };
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto in = input<MmaOperands>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half) a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = element(in.a[i], half);
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half) b[2 * t + half + i * 8][g] = element(in.b[i], half);
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = in.d[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const float result[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
    give(lanes[lane], result);
  }
}

}  // namespace ssd::emulator
