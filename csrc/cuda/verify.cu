// The exact walk down a chain or tree of proposals, and the commit of its outcome. csrc/cpu/verify.cpp is the simpler version.
//
// The length of the walk depends on a few probabilities, so every block of a slot computes it itself: each thread judges one
// node, then all follow the accepted children. Only the last token needs a whole row, of the node at which the walk ended.
// The blocks of the slot share this row by slices, in an exponential race over the residual, which needs no normaliser. A
// second race over p is for the case that rounding leaves no residual. The last block of the slot to arrive takes the earliest
// entry of all and writes the state, which all blocks could read until then. So a chain takes one launch and one read of two
// rows.
//
// Siblings need more: after a rejection, p and q are renormalised before the next sibling is tried. These sums depend neither
// on the walk nor on other nodes. So for a tree, a first kernel judges all nodes with several children at the same time, each
// with one block, and stores the scales. After the last rejection of a node no child is tried, so the residual is not
// renormalised. Therefore a tree with one child a node gives the bits of the chain. Least cost: one launch, two for a tree, and
// one read of two rows, which are in L2.
#include "../common/report.h"
#include "walk.cuh"

namespace ssd::cuda {
namespace {

// Judging siblings ------------------------------------------------------------------------------------------------------------

constexpr int kJudgeThreads = 512;
constexpr int kJudgeWarps = kJudgeThreads / kWarp;

struct JudgeMemory {
  Tree tree;
  Rejection rejections[kMaxNodes];
  float sums[kJudgeWarps];
};

// One more rejection, with the scales that make the remaining p and q sum to 1 again.
__device__ Rejection reject(const Judge& judge, int32_t vocabulary, int32_t token, const Rejection* before, int32_t count,
                            float* scratch) {
  constexpr int kBatch = 8;  // loads of p, and of q, in flight at a time
  float rest = 0.0f, q_rest = 0.0f;
  for (int32_t first = static_cast<int32_t>(threadIdx.x); first < vocabulary; first += kBatch * kJudgeThreads) {
    float p[kBatch], q[kBatch];
    int32_t column[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t id = first + i * kJudgeThreads;
      p[i] = id < vocabulary ? judge.p_logits[id] : -INFINITY;
      column[i] = id < vocabulary && judge.drawn() ? judge.draft_column(id) : -1;
      q[i] = column[i] < 0 ? -INFINITY : judge.q_logits[column[i]];
    }
    Weights sums{0.0f, 0.0f};  // of the batch, which means fewer roundings than one running sum
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t id = first + i * kJudgeThreads;
      if (id >= vocabulary) continue;
      const Weights left = judge.left({judge.p(id, p[i]), judge.drawn() ? judge.q(column[i], q[i]) : 0.0f}, id, before, count);
      sums.p += judge.rest(left, id, token);
      sums.q += id == token ? 0.0f : left.q;
    }
    rest += sums.p;
    q_rest += sums.q;
  }
  rest = block_sum<kJudgeWarps>(rest, scratch);
  q_rest = block_sum<kJudgeWarps>(q_rest, scratch);
  return {token, rest > 0.0f ? 1.0f / rest : 0.0f, q_rest > 0.0f ? 1.0f / q_rest : 1.0f};
}

// Stores the judgement of every node that draws and has several children. The children of a node are tried one after another.
// All threads compute the same decisions and share only the work of the sums.
__global__ void __launch_bounds__(kJudgeThreads) judge_kernel(VerifyParams p) {
  JudgeMemory& memory = *shared_memory<JudgeMemory>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t slot = blockIdx.x / static_cast<unsigned>(p.nodes);
  const auto node = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(p.nodes));
  const bool done = p.done[slot] != 0;
  load_tree(p, slot, memory.tree);
  if (done) return;
  const Tree& tree = memory.tree;
  int32_t child = node <= tree.present ? tree.next_child(node, node) : kNone;
  if (child == kNone || tree.next_child(node, child) == kNone) return;
  const Judge judge = judge_of(p, slot, node, tree);
  if (judge.greedy()) return;

  const VerifyWorkspace workspace = workspace_of(p);
  Rejection* left = workspace.rejections + (slot * p.nodes + node) * p.nodes;
  int32_t rejected = 0;
  for (; child != kNone; ++rejected) {
    const int32_t token = tree.token[child], next = tree.next_child(node, child);
    if (judge.accepts(judge.left(judge.weights(token), token, memory.rejections, rejected), rejected)) break;
    Rejection rejection{token, 0.0f, 1.0f};
    if (next != kNone) rejection = reject(judge, p.vocabulary, token, memory.rejections, rejected, memory.sums);
    if (threadIdx.x == 0) memory.rejections[rejected] = left[rejected] = rejection;
    __syncthreads();
    child = next;
  }
  if (threadIdx.x == 0) workspace.judgements[slot * p.nodes + node] = {child, rejected};
}

// The walk, the draw at its end, and the commit -------------------------------------------------------------------------------

struct Memory {
  Tree tree;
  Judgement judgements[kMaxNodes];
  Rejection rejections[kMaxNodes];
  int32_t path[kMaxNodes];
  Standing standings[kSliceWarps];
  int32_t ints[kSliceWarps];
  int32_t last;
};

// The judgement of a node; one thread calls this. It compares the children of a greedy node with the argmax, and tries an only
// child. Siblings have been judged by the first kernel.
__device__ Judgement judgement_of(const VerifyParams& p, int64_t slot, int32_t node, const Tree& tree) {
  int32_t child = tree.next_child(node, node);
  if (child == kNone) return {kNone, 0};
  const Judge judge = judge_of(p, slot, node, tree);
  if (judge.greedy()) {
    while (child != kNone && static_cast<float>(tree.token[child]) != judge.p_stats[kCutId])
      child = tree.next_child(node, child);
    return {child, 0};
  }
  if (tree.next_child(node, child) != kNone) return workspace_of(p).judgements[slot * p.nodes + node];
  return judge.accepts(judge.weights(tree.token[child]), 0) ? Judgement{child, 0} : Judgement{kNone, 1};
}

// Returns the node at which the walk ends. Writes the accepted nodes after the root to memory.path, and their number to
// `accepted`.
__device__ int32_t walk_down(const VerifyParams& p, int64_t slot, Memory& memory, int32_t& accepted) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  if (thread <= memory.tree.present) memory.judgements[thread] = judgement_of(p, slot, thread, memory.tree);
  __syncthreads();
  int32_t node = 0;
  for (accepted = 0; memory.judgements[node].accepted != kNone; ++accepted) {
    node = memory.judgements[node].accepted;
    if (thread == 0) memory.path[accepted] = node;
  }
  const int32_t rejected = memory.judgements[node].rejected;
  // A single rejection at the end of the walk: the node has one child, which its judgement tried.
  if (rejected == 1 && thread == 0) memory.rejections[0] = {memory.tree.token[memory.tree.next_child(node, node)], 0.0f, 1.0f};
  if (rejected > 1 && thread < rejected)
    memory.rejections[thread] = workspace_of(p).rejections[(slot * p.nodes + node) * p.nodes + thread];
  __syncthreads();
  return node;
}

// The earliest of the thread's columns in both races for the token, after `rejected` rejections.
__device__ Finish race(const Judge& judge, int32_t vocabulary, int32_t first, const Rejection* rejections, int32_t rejected) {
  Finish finish{kNowhere, kNowhere};
  if (first >= vocabulary) return finish;
  float logits[kColumns];
  load_columns(judge.p_logits, vocabulary, first, logits);
  Weights weights[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    weights[i] = {judge.p(first + i, logits[i]), 0.0f};
    if (rejected == 0 || !judge.drawn() || first + i >= vocabulary) continue;  // a leaf has no row of q
    const int32_t column = judge.draft_column(first + i);
    weights[i].q = column < 0 ? 0.0f : judge.q(column, judge.q_logits[column]);
  }
  const Philox4 words = draw_words(judge.seed, judge.position, Purpose::kResample, 0, first / kColumns);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    // The weights before the last rejection. Without a rejection the count is −1, which changes nothing.
    const Weights left = judge.left(weights[i], first + i, rejections, rejected - 1);
    finish.whole = Foremost()(finish.whole, racer(words.word[i], left.p, first + i));
    if (rejected == 0) continue;
    const float rest = judge.rest(left, first + i, rejections[rejected - 1].token);
    finish.rest = Foremost()(finish.rest, racer(words.word[i], rest, first + i));
  }
  return finish;
}

__device__ Finish foremost(Finish finish, Memory& memory) {
  finish.rest = block_reduce<kSliceWarps>(finish.rest, memory.standings, Foremost());
  finish.whole = block_reduce<kSliceWarps>(finish.whole, memory.standings, Foremost());
  return finish;
}

// Writes the report of a slot, after its state is committed.
__device__ void write_report(const VerifyParams& p, int64_t slot, int32_t length, int32_t done, int32_t accepted) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  int32_t* report = p.report + slot * (kReportColumns + p.newest);
  if (i < p.newest) report[kReportColumns + i] = p.tokens[slot * p.capacity + newest_position(length, i, p.newest, p.capacity)];
  if (i != 0) return;
  report[kReportLength] = length;
  report[kReportDone] = done;
  report[kReportAccepted] = accepted;
  report[kReportProposed] = p.spec_len[slot];
  report[kReportHit] = p.hit[slot];
  report[kReportBad] = p.bad[slot];
}

// Writes the outcome, and commits as many of its tokens as the sequence has room for. Thread i has the i-th token. Without a
// decided token, the accepted ones are committed and the sequence has failed.
__device__ void commit(const VerifyParams& p, int64_t slot, int32_t accepted, int32_t decided, Memory& memory) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  const int64_t n = p.length[slot], room = p.max_length[slot] - (n + 1);
  const int32_t token = i < accepted ? memory.tree.token[memory.path[i]] : decided;
  bool finishes = i + 1 >= room;
  for (int32_t e = 0; e < p.eos_count && p.ignore_eos[slot] == 0; ++e) finishes = finishes || token == p.eos[e];
  const int32_t tokens = accepted + (decided == kNoToken ? 0 : 1);
  const int32_t end = block_reduce<kSliceWarps>(finishes && i < tokens ? i : kMaxNodes, memory.ints,
                                                [](int32_t a, int32_t b) { return min(a, b); });
  const int32_t committed = min(end + 1, tokens);
  if (i < committed && n >= 0 && n + 1 + i < p.capacity) p.tokens[slot * p.capacity + n + 1 + i] = token;
  if (i < p.nodes) p.path[slot * p.nodes + i] = i >= committed ? -1 : i == 0 ? 0 : memory.path[i - 1];
  if (i == committed - 1) p.last_token[slot] = token;
  const int32_t length = static_cast<int32_t>(n) + committed;
  const Done done = end < tokens ? kFinished : tokens <= accepted ? kFailed : kRunning;
  __syncthreads();  // the report has tokens that other threads have written
  write_report(p, slot, length, done, accepted);
  if (i != 0) return;
  int32_t* outcome = p.outcome + (slot * 2 + (*p.parity & 1)) * 2;
  outcome[0] = accepted;
  outcome[1] = decided;
  p.length[slot] = length;
  p.done[slot] = done;
}

__global__ void __launch_bounds__(kSliceThreads, 4) verify_kernel(VerifyParams p) {
  Memory& memory = *shared_memory<Memory>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Slice slice = this_slice(p.vocabulary);
  const int64_t slot = slice.row;
  const bool done = p.done[slot] != 0;
  load_tree(p, slot, memory.tree);
  if (done) {
    const auto i = static_cast<int32_t>(threadIdx.x);
    if (slice.index == 0 && i < 2) p.outcome[(slot * 2 + (*p.parity & 1)) * 2 + i] = -1;
    if (slice.index == 0 && i < p.nodes) p.path[slot * p.nodes + i] = -1;
    if (slice.index == 0) write_report(p, slot, p.length[slot], p.done[slot], -1);
    return;
  }
  int32_t accepted;
  const int32_t node = walk_down(p, slot, memory, accepted);
  const Judge judge = judge_of(p, slot, node, memory.tree);
  Finish finish{kNowhere, kNowhere};
  if (!judge.greedy()) {
    const int32_t rejected = memory.judgements[node].rejected;
    finish = foremost(race(judge, p.vocabulary, slice.first, memory.rejections, rejected), memory);
  }
  Finish* finishes = workspace_of(p).finishes + slot * slice.count;
  if (threadIdx.x == 0) finishes[slice.index] = finish;
  if (!last_to_arrive(p.arrivals + slot, slice.count, &memory.last)) return;

  finish = {kNowhere, kNowhere};
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slice.count; i += kSliceThreads)
    finish = {Foremost()(finish.rest, finishes[i].rest), Foremost()(finish.whole, finishes[i].whole)};
  finish = foremost(finish, memory);
  const Standing winner = finish.rest != kNowhere ? finish.rest : finish.whole;
  const int32_t drawn = winner != kNowhere ? column_of(winner) : kNoToken;  // a bad row has no probability, so no winner
  commit(p, slot, accepted, judge.greedy() ? static_cast<int32_t>(judge.p_stats[kCutId]) : drawn, memory);
}

}  // namespace

size_t verify_workspace(const VerifyParams& params) {
  const size_t slots = static_cast<size_t>(params.slots), nodes = static_cast<size_t>(params.nodes);
  const size_t finishes = static_cast<size_t>(slices_of(params.vocabulary)) * sizeof(Finish);
  const size_t judged = params.parent == nullptr ? 0 : nodes * (sizeof(Judgement) + nodes * sizeof(Rejection));
  return slots * (finishes + judged);
}

cudaError_t verify(const VerifyParams& params, cudaStream_t stream) {
  if (params.parent != nullptr) {
    const dim3 grid(static_cast<unsigned>(params.slots * params.nodes));
    const cudaError_t error = launch<judge_kernel>(grid, dim3(kJudgeThreads), sizeof(JudgeMemory), stream, params);
    if (error != cudaSuccess) return error;
  }
  return launch<verify_kernel>(slice_grid(params.slots, params.vocabulary), dim3(kSliceThreads), sizeof(Memory), stream,
                               params);
}

}  // namespace ssd::cuda
