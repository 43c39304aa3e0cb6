// parallel_for over independent items, for ops that run hundreds of times a second.
//
// Each calling thread has a team of its own (the target's thread and the draft's do not share one), as large as
// torch.set_num_threads says in that thread. Items are claimed, not dealt out: a helper that the system has put aside costs
// nothing, its share is done by whoever is awake, and the caller waits only for items that were begun. OpenMP's barrier
// waits for every thread instead, and on a busy machine that made a decode up to fifty times slower. Helpers spin briefly for
// the next op, then sleep.
//
// A range's function must not call parallel_for itself. Who computes an item never changes its result: every op of ours computes an item by itself, in an order of its own.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ssd {

// A borrowed callable; the callee finishes before the caller's is gone.
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

// Calls f(begin, end) over disjoint ranges that cover [0, items), each of at least `grain` items but the last. The first
// exception is rethrown when all ranges are done.
//
// next: what the caller will most likely read after this (null: no idea). Helpers that have nothing to do fetch it into their
// caches, so that the memory bus is not idle while the caller is between two ops. It need not be mapped.
void parallel_for(int64_t items, int64_t grain, RangeFunction f, const void* next = nullptr);

}  // namespace ssd
