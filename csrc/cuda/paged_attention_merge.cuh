// Merges the partial results of paged_attention: of warps, then of splits, then of sections, always in the order of their keys.
#pragma once

#include "arrivals.cuh"
#include "paged_attention_warp.cuh"

namespace ssd::cuda {

constexpr int kFold = 8;            // partial results of a query that a thread loads at once
constexpr int kTogether = 2;        // queries that a thread merges at once: their loads and sums overlap
constexpr int kPartialColumns = 4;  // of a Partial

// Four columns of one query's attention to some keys. Scores are scaled so that exp2 gives their weights.
struct Partial {
  float maximum;  // of the scores; -inf without keys
  float sum;      // of exp2(score - maximum)
  float4 values;  // sum of exp2(score - maximum) * value, not divided by `sum`
};

__device__ __forceinline__ Partial no_keys() { return {-INFINITY, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)}; }

// Merging with no_keys() changes nothing but the sign of a zero.
__device__ __forceinline__ Partial merge(const Partial& a, const Partial& b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  const float keep = exp2_approx(a.maximum - offset_of(maximum)), take = exp2_approx(b.maximum - offset_of(maximum));
  const auto add = [&](float of_a, float of_b) { return fmaf(of_a, keep, of_b * take); };
  return {maximum, add(a.sum, b.sum),
          make_float4(add(a.values.x, b.values.x), add(a.values.y, b.values.y), add(a.values.z, b.values.z),
                      add(a.values.w, b.values.w))};
}

template <int head_dim>
class AttentionResults {
 public:
  using Shared = AttentionShared<head_dim>;

  __device__ __forceinline__ AttentionResults(const AttentionLaunch& launch, Shared& shared)
      : launch_(launch),
        p_(launch.params),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        group_(p_.query_heads / p_.kv_heads) {}

  // Merges the results of the warps for a split into the result of the part, and writes that after the part's last split.
  __device__ __forceinline__ void merge_split(const Item& item, bool first, bool last) const {
    __syncthreads();
    const auto partial = [](float2 softmax, const float* values) -> Partial {
      return {softmax.x, softmax.y, reinterpret_cast<const float4&>(*values)};
    };
    for_results(item, [&](const Columns(&columns)[kTogether]) {
      Partial merged[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int q = columns[i].query, column = columns[i].column;
        merged[i] = partial(shared_.softmax[0][q], &shared_.warp[0].values[q][column]);
#pragma unroll
        for (int w = 1; w < kAttentionWarps; ++w)
          merged[i] = merge(merged[i], partial(shared_.softmax[w][q], &shared_.warp[w].values[q][column]));
        if (!first) merged[i] = merge(partial(shared_.section_softmax[q], &shared_.section_values[q][column]), merged[i]);
      }
      if (!last) __syncthreads();  // every thread has read section_softmax
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int q = columns[i].query, column = columns[i].column;
        if (!columns[i].exists) continue;
        if (last) {
          write(item, item.parts > 1 ? item.part : kOut, columns[i], merged[i]);
        } else {
          reinterpret_cast<float4&>(shared_.section_values[q][column]) = merged[i].values;
          if (column == 0) shared_.section_softmax[q] = make_float2(merged[i].maximum, merged[i].sum);
        }
      }
    });
    __syncthreads();  // the rings may be filled again
  }

  // The last block to arrive at a section merges its splits. The last block to arrive at a tile merges its sections.
  __device__ __forceinline__ void merge_parts(const Item& item) const {
    const bool by_section = shared_.schedule.by_section != 0;
    const int32_t sections = by_section ? item.parts : sections_of(first_key_of_split(item.parts - 1) + 1);
    const int32_t first_section = by_section ? 0 : item.parts;  // entries of merged sections come after those of splits
#pragma unroll 1
    for (bool merges_splits = !by_section;; merges_splits = false) {
      int32_t first = first_section, count = sections, into = kOut;
      int32_t* arrivals = p_.arrivals + item.tile * p_.kv_heads + item.kv_head;
      if (merges_splits) {
        const int32_t section = item.first_key / kSection;
        first = splits_of(section * kSection);
        count = min(splits_of((section + 1) * kSection), item.parts) - first;
        if (sections > 1) into = first_section + section;
        arrivals = launch_.section_arrivals + (shared_.schedule.first_part[item.tile] + first) * p_.kv_heads + item.kv_head;
      }
      if (!last_to_arrive(arrivals, count, &shared_.is_last)) return;
      fold(item, first, count, into);
      if (into == kOut) return;
    }
  }

 private:
  static constexpr int kEntry = head_dim + 4;                                 // floats: values, maximum, sum, padding
  static constexpr int kTurns = divide_up(head_dim, kWarp* kPartialColumns);  // of a warp, for all columns of a query
  static constexpr int32_t kOut = -1;                                         // the row's result, not an entry

  // Four columns of a query. If it does not exist, it is another one, which can be read but must not be written.
  struct Columns {
    int query, column;
    bool exists;
    int32_t head;  // number of the query among all heads of the tile's rows
  };

  // Calls function(columns) until all columns of the item's queries were passed to a thread. All threads call it equally often.
  template <typename Function>
  __device__ __forceinline__ void for_results(const Item& item, Function function) const {
    const int turns = item.rows * group_ * kTurns;
#pragma unroll 1
    for (int first = warp_; first - warp_ < turns; first += kTogether * kAttentionWarps) {
      Columns columns[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int turn = first + i * kAttentionWarps, column = (turn % kTurns * kWarp + lane_) * kPartialColumns;
        const int query = min(turn, turns - 1) / kTurns;
        columns[i] = {query, min(column, head_dim - kPartialColumns), turn < turns && column < head_dim,
                      query / group_ * p_.query_heads + item.kv_head * group_ + query % group_};
      }
      function(columns);
    }
  }

  // Part `number` of a query in the workspace.
  __device__ __forceinline__ float* entry(const Item& item, int32_t number, const Columns& columns) const {
    const int64_t row = shared_.schedule.first_entry[item.tile] + number * item.rows;
    return static_cast<float*>(p_.workspace) + (row * p_.query_heads + columns.head) * kEntry;
  }
  __device__ __forceinline__ Partial read_entry(const Item& item, int32_t number, const Columns& columns) const {
    const float* from = entry(item, number, columns);
    const float2 softmax = reinterpret_cast<const float2&>(from[head_dim]);
    return {softmax.x, softmax.y, reinterpret_cast<const float4&>(from[columns.column])};
  }

  // Merges `count` entries of each query, from `first` on and in order, and writes the result to the entry `into` or to kOut.
  __device__ __forceinline__ void fold(const Item& item, int32_t first, int32_t count, int32_t into) const {
    for_results(item, [&](const Columns(&columns)[kTogether]) {
      Partial total[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) total[i] = no_keys();
#pragma unroll 1
      for (int32_t done = 0; done < count; done += kFold) {
        Partial partial[kTogether][kFold];
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
#pragma unroll
          for (int j = 0; j < kFold; ++j)
            partial[i][j] = done + j < count && columns[i].exists ? read_entry(item, first + done + j, columns[i]) : no_keys();
#pragma unroll
        for (int j = 0; j < kFold; ++j)
#pragma unroll
          for (int i = 0; i < kTogether; ++i) total[i] = merge(total[i], partial[i][j]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (columns[i].exists) write(item, into, columns[i], total[i]);
    });
  }

  __device__ __forceinline__ void write(const Item& item, int32_t into, const Columns& columns, const Partial& result) const {
    if (into != kOut) {
      float* to = entry(item, into, columns);
      reinterpret_cast<float4&>(to[columns.column]) = result.values;
      if (columns.column == 0) reinterpret_cast<float2&>(to[head_dim]) = make_float2(result.maximum, result.sum);
      return;
    }
    const float factor = result.sum > 0.0f ? 1.0f / result.sum : 0.0f;
    // + 0 makes every zero positive: its sign may depend on how often no_keys() was merged.
    const auto finish = [&](float x) { return rounded(fmaf(x, factor, 0.0f)); };
    const int64_t head = static_cast<int64_t>(item.first_row) * p_.query_heads + columns.head;
    auto* out = static_cast<Element*>(p_.out) + head * head_dim + columns.column;
    reinterpret_cast<Vector<kPartialColumns>&>(*out) = {finish(result.values.x), finish(result.values.y),
                                                        finish(result.values.z), finish(result.values.w)};
  }

  const AttentionLaunch& launch_;
  const PagedAttentionParams& p_;
  Shared& shared_;
  const int lane_, warp_, group_;
};

}  // namespace ssd::cuda
