// The team of threads behind parallel_for: how items are claimed, and when helpers spin, prefetch and sleep. parallel.h says
// why.
#include "parallel.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace ssd {
namespace {

constexpr int64_t kFetchBytes = 512 << 10;              // that each helper prefetches: half of a usual L2 cache
constexpr int64_t kFetchStep = 1024;                    // bytes that a helper prefetches before it looks for a new job
constexpr auto kSpin = std::chrono::microseconds(100);  // longer than the time between two ops of a pass

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  explicit Team(int threads) : threads_(threads) {
    try {
      for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i - 1); });
    } catch (const std::system_error&) {
      // The system gives no more threads. The work is done by fewer.
    }
  }

  ~Team() {
    if (getpid() != process_) {  // a fork copies no helper: there is none to end or to join, and none that could be detached
      static_cast<void>(new std::vector<std::thread>(std::move(helpers_)));
      return;
    }
    stopping_.store(true);
    announce(0);
    for (std::thread& helper : helpers_) helper.join();
  }

  int size() const { return threads_; }

  void run(int64_t items, int64_t grain, const RangeFunction& f, const void* next) {
    job_.store(&f, std::memory_order_relaxed);
    items_.store(items, std::memory_order_relaxed);
    grain_.store(grain, std::memory_order_relaxed);
    if (next != nullptr) next_.store(static_cast<const char*>(next), std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    failure_ = nullptr;
    announce(items);
    work();
    for (int spins = 1; done_.load(std::memory_order_acquire) < items; ++spins) {
      spins % 1024 == 0 ? std::this_thread::yield() : pause();
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  // The ticket is one word: the number of the job (high half) and the number of its unclaimed items (low half). A claim
  // succeeds only if both are unchanged, that is, while this job has unclaimed items. The job then stays open until the claimed
  // items are done, so its fields do not change before that.
  static uint32_t job_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
  static int64_t left_in(uint64_t ticket) { return static_cast<int64_t>(ticket & 0xFFFFFFFFu); }

  void announce(int64_t items) {
    const uint64_t job = job_of(ticket_.load(std::memory_order_relaxed)) + 1u;
    ticket_.store(job << 32 | static_cast<uint64_t>(items));
    if (asleep_.load() > 0) ticket_.notify_all();
  }

  void work() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (left_in(ticket) > 0) {
      const int64_t left = left_in(ticket);
      // The first claims are large, so that there are few. The last are small, so that the caller does not wait long for one.
      const int64_t taken = std::min(left, std::max(grain_.load(std::memory_order_relaxed), left / (2 * threads_)));
      const int64_t begin = items_.load(std::memory_order_relaxed) - left;
      const RangeFunction* f = job_.load(std::memory_order_relaxed);
      if (!ticket_.compare_exchange_weak(ticket, ticket - static_cast<uint64_t>(taken), std::memory_order_acq_rel)) continue;
      try {
        (*f)(begin, begin + taken);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failure_mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
      done_.fetch_add(taken, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void help(int index) {
    uint64_t seen = 0;
    const char *base = nullptr, *fetched = nullptr;  // the memory announced last; the end of the prefetched part
    while (!stopping_.load()) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (job_of(ticket) == job_of(seen) && base != nullptr) {
        const char* end = base + (index + 1) * kFetchBytes;
        while (fetched < end && job_of(ticket = ticket_.load(std::memory_order_acquire)) == job_of(seen)) {
          for (int64_t line = 0; line < kFetchStep; line += 64) __builtin_prefetch(fetched + line);
          fetched += kFetchStep;
        }
      }
      const auto give_up = std::chrono::steady_clock::now() + kSpin;
      for (int spins = 1; job_of(ticket) == job_of(seen); ++spins) {
        pause();
        if (spins % 64 == 0 && std::chrono::steady_clock::now() > give_up) {
          asleep_.fetch_add(1);
          ticket_.wait(ticket);
          asleep_.fetch_sub(1);
        }
        ticket = ticket_.load(std::memory_order_acquire);
      }
      work();
      seen = ticket;
      if (const char* next = next_.load(std::memory_order_relaxed); next != base) {
        base = next;
        fetched = base + index * kFetchBytes;
      }
    }
  }

  const int threads_;  // helpers and the caller
  const pid_t process_ = getpid();
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<const RangeFunction*> job_{nullptr};
  std::atomic<int64_t> items_{0}, grain_{1};
  std::atomic<const char*> next_{nullptr};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stopping_{false};
  std::exception_ptr failure_;
  std::mutex failure_mutex_;
};

}  // namespace

void parallel_for(int64_t items, int64_t grain, RangeFunction f, const void* next) {
  if (items <= 0) return;
  const int threads = at::get_num_threads();
  const int64_t ranges = (items + grain - 1) / grain;
  if (threads <= 1 || ranges <= 1) return f(0, items);
  static thread_local std::unique_ptr<Team> team;
  if (team == nullptr || team->size() != threads) {
    team.reset();
    team = std::make_unique<Team>(threads);
  }
  team->run(items, grain, f, next);
}

}  // namespace ssd
