// Finds the longest earlier match of a sequence's own ending, the most recent of equally long ones, and proposes the tokens
// after it.
//
// A sequence has one block. Nearly all matches are short, so at first each thread takes every 1024th position, from the most
// recent on, and compares at most a glance of tokens there, which the block has just brought into L1. If no match fills a
// glance, the longest is known. Otherwise longer matches are possible. Then the block goes through the positions where a glance
// agrees, the most recent first. All its threads together measure one match at a time, and it stops when no earlier match can
// be longer. Text that repeats itself would take quadratic time without this second step. Floor: a launch, and one read of the
// sequence.
#include "kernels.h"
#include "launch.h"
#include "reduce.cuh"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int32_t kGlance = 16;  // tokens

struct Match {
  int32_t tokens;  // 0: none
  int32_t end;     // position of the match's last token
};

struct Larger {
  __device__ __forceinline__ int32_t operator()(int32_t a, int32_t b) const { return max(a, b); }
};
struct Smaller {
  __device__ __forceinline__ int32_t operator()(int32_t a, int32_t b) const { return min(a, b); }
};

struct Sequence {
  const int32_t* tokens;
  int32_t last;  // position

  // Does the token `back` positions before `end` exist, and does it equal the token `back` positions before the last?
  __device__ __forceinline__ bool agrees(int32_t end, int32_t back) const {
    return back <= end && tokens[end - back] == tokens[last - back];
  }
  __device__ __forceinline__ int32_t glance(int32_t end) const {
    int32_t count = 0;
    while (count < kGlance && agrees(end, count)) ++count;
    return count;
  }
};

// The length of a match whose glance agrees. All threads of the block call this.
__device__ int32_t measure(const Sequence& sequence, int32_t end, int32_t* scratch) {
  for (int32_t from = kGlance;; from += kThreads) {
    const int32_t back = from + static_cast<int32_t>(threadIdx.x);
    const int32_t differs = block_reduce<kWarps>(sequence.agrees(end, back) ? end + 1 : back, scratch, Smaller());
    if (differs <= end) return differs;
    if (from + kThreads > end) return end + 1;
  }
}

__device__ Match longest_match(const Sequence& sequence, int32_t* scratch) {
  const int32_t newest = sequence.last - 1 - static_cast<int32_t>(threadIdx.x);
  Match best{0, -1};
  for (int32_t end = newest; end >= 0 && best.tokens < kGlance; end -= kThreads) {
    const int32_t count = sequence.glance(end);
    if (count > best.tokens) best = {count, end};
  }
  const int32_t longest = block_reduce<kWarps>(best.tokens, scratch, Larger());
  const int32_t most_recent = block_reduce<kWarps>(best.tokens == longest ? best.end : -1, scratch, Larger());
  if (longest < kGlance) return {longest, most_recent};

  Match found{0, -1};
  int32_t mine = best.tokens == kGlance ? best.end : -1;  // this thread's next position where a glance agrees
  while (true) {
    const int32_t end = block_reduce<kWarps>(mine, scratch, Larger());
    if (end < found.tokens) return found;  // no position is left, or the match cannot be longer
    const int32_t count = measure(sequence, end, scratch);
    if (count > found.tokens) found = {count, end};
    if (mine != end) continue;
    do mine -= kThreads;
    while (mine >= 0 && sequence.glance(mine) < kGlance);
  }
}

__global__ void __launch_bounds__(kThreads) ngram_propose_kernel(NgramProposeParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t slot = blockIdx.x;
  if (p.missed[slot] == 0) return;
  const Sequence sequence{p.tokens + slot * p.capacity, max(min(p.length[slot], p.capacity - 1), -1)};
  const Match match = longest_match(sequence, shared_memory<int32_t>());
  const int32_t count = match.tokens == 0 ? 0 : min(p.lookahead, sequence.last - match.end);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.lookahead; i += kThreads)
    p.spec_tokens[slot * p.lookahead + i] = i < count ? sequence.tokens[match.end + 1 + i] : 0;
  if (threadIdx.x != 0) return;
  p.spec_len[slot] = min(p.spec_len[slot], count);
  p.q_address[slot] = -1;
}

}  // namespace

cudaError_t ngram_propose(const NgramProposeParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.slots));
  return launch<ngram_propose_kernel>(grid, dim3(kThreads), kWarps * sizeof(int32_t), stream, params);
}

}  // namespace ssd::cuda
