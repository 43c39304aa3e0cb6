// parallel_for over independent items, for ops that run hundreds of times a second.
//
// Each calling thread has a team of its own, of torch.get_num_threads() threads: the target's thread and the draft's share
// none. Threads claim items as they go. So a helper that the system has suspended costs nothing: the others do its share, and
// the caller waits only for items that were begun. OpenMP's barrier waits for every thread instead, and on a busy machine that
// made a decode up to fifty times slower. A helper spins briefly for the next op, then sleeps.
//
// The function must not call parallel_for itself. It computes each item independently and in a fixed order, so that a result
// does not depend on the thread that computes it.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ssd {

// A reference to a callable, which must outlive every call.
class RangeFunction {
 public:
  template <typename F>
  RangeFunction(const F& f)  // NOLINT: implicit on purpose
      : object_(&f),
        call_([](const void* object, int64_t begin, int64_t end) { (*static_cast<const F*>(object))(begin, end); }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

// Calls f(begin, end) for disjoint ranges that cover [0, items). Each but the last has at least `grain` items. The first
// exception is rethrown after all ranges are done.
//
// next: memory that the caller will probably read after this call, or null. Idle helpers prefetch it, so that the memory bus is
// busy while the caller is between two ops. The memory need not be mapped.
void parallel_for(int64_t items, int64_t grain, RangeFunction f, const void* next = nullptr);

}  // namespace ssd
