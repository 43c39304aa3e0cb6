// Returns the branch that was drafted for the outcome, if there is one, latches the draft's copy of the state and flips the
// parity. There is one block, with a warp for each slot: all slots read the parity, so it is flipped after a barrier. Floor: a
// launch.
#include "../common/distribution.h"
#include "kernels.h"
#include "launch.h"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

__global__ void __launch_bounds__(kThreads) cache_lookup_kernel(CacheLookupParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t half = *p.parity & 1, lane = static_cast<int32_t>(threadIdx.x % kWarp);
  for (int64_t s = threadIdx.x / kWarp; s < p.slots; s += kWarps) {
    const int32_t accepted = p.outcome[(s * 2 + half) * 2], token = p.outcome[(s * 2 + half) * 2 + 1];
    const int32_t n = p.length[s];
    const bool fits = n < p.draft_context, proposes = fits && p.done[s] == 0, looks_up = accepted >= 0 && proposes;
    int32_t branch = p.budget;
    bool spoilt = false;
    for (int32_t first = 0; first < p.budget && looks_up; first += kWarp) {
      const int32_t b = first + lane, k = b < p.budget ? p.guess_k[s * p.budget + b] : kNoGuess;
      const unsigned fitting = __ballot_sync(kFullMask, k == accepted && p.guess[s * p.budget + b] == token);
      if (fitting != 0 && branch == p.budget) branch = first + __ffs(static_cast<int>(fitting)) - 1;
      spoilt = __ballot_sync(kFullMask, k == kBadGuess) != 0 || spoilt;
    }
    const bool hit = branch < p.budget;
    // The sequence has n + 1 tokens, and a round commits up to spec_len + 1 more. The draft's last row is at n + spec_len - 1.
    const int64_t room = min(static_cast<int64_t>(p.max_length[s]) - 2, static_cast<int64_t>(p.draft_context)) - n;
    const int32_t levels = !proposes || room < 0 ? 0 : static_cast<int32_t>(room < p.depth ? room : p.depth);
    int32_t proposed = p.nodes_within != nullptr ? p.nodes_within[levels] : levels;
    const int32_t* drafted = p.branch_tokens + (s * p.budget + branch) * p.lookahead;
    for (int32_t first = 0; first < p.lookahead; first += kWarp) {
      const int32_t i = first + lane, drawn = hit && i < p.lookahead ? drafted[i] : 0;
      if (i < p.lookahead) p.spec_tokens[s * p.lookahead + i] = drawn;
      const unsigned missing = __ballot_sync(kFullMask, drawn == kNoToken && i < proposed);
      if (missing == 0) continue;
      proposed = first + __ffs(static_cast<int>(missing)) - 1;  // the tokens before a bad row
      spoilt = true;
    }
    if (lane == 0) {
      p.draft_length[s] = fits ? n : 0;
      p.draft_last_token[s] = p.last_token[s];
      p.spec_len[s] = proposed;
      p.hit[s] = hit ? 1 : 0;
      p.missed[s] = !hit && proposed > 0 ? 1 : 0;
      p.q_address[s] = branch;
      p.bad[s] = spoilt ? 1 : 0;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) *p.parity = half ^ 1;
}

}  // namespace

cudaError_t cache_lookup(const CacheLookupParams& params, cudaStream_t stream) {
  return launch<cache_lookup_kernel>(dim3(1), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
