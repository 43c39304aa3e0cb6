// Merges the partial results of paged_attention: of warps, then of splits, then of sections, always in the order of their keys.
#pragma once

#include "arrivals.cuh"
#include "paged_attention_warp.cuh"

namespace ssd::cuda {

constexpr int kFold = 8;            // partial results that a thread loads at once
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

template <int head_dim, int query_tiles>
class AttentionResults {
 public:
  using Shared = AttentionShared<head_dim, query_tiles>;

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
    for (int q = warp_; q < item.rows * group_; q += kAttentionWarps) {
      Partial merged = no_keys();
      for (int column = lane_ * kPartialColumns; column < head_dim; column += kWarp * kPartialColumns) {
        const auto partial = [&](float2 softmax, const float* values) -> Partial {
          return {softmax.x, softmax.y, reinterpret_cast<const float4&>(values[column])};
        };
        merged = partial(shared_.softmax[0][q], shared_.warp[0].values[q]);
#pragma unroll
        for (int w = 1; w < kAttentionWarps; ++w)
          merged = merge(merged, partial(shared_.softmax[w][q], shared_.warp[w].values[q]));
        if (!first) merged = merge(partial(shared_.section_softmax[q], shared_.section_values[q]), merged);
        if (!last) {
          reinterpret_cast<float4&>(shared_.section_values[q][column]) = merged.values;
        } else if (item.parts > 1) {
          write_partial(item, item.part, q, column, merged);
        } else {
          write_out(item, q, column, merged);
        }
      }
      __syncwarp();  // all lanes have read section_softmax[q]
      if (!last && lane_ == 0) shared_.section_softmax[q] = make_float2(merged.maximum, merged.sum);
    }
    __syncthreads();  // the rings may be filled again
  }

  // The last block to arrive at a section merges its splits. The last block to arrive at a tile merges its sections.
  __device__ __forceinline__ void merge_parts(const Item& item) const {
    const bool by_section = shared_.schedule.by_section != 0;
    const int32_t sections = by_section ? item.parts : sections_of(first_key_of_split(item.parts - 1) + 1);
    const int32_t first_section = by_section ? 0 : item.parts;  // entries of merged sections come after those of splits
    if (!by_section) {
      const int32_t section = item.first_key / kSection, first = splits_of(section * kSection);
      const int32_t splits = min(splits_of((section + 1) * kSection), item.parts) - first;
      const int32_t number = shared_.schedule.first_part[item.tile] + first;
      if (!last_to_arrive(launch_.section_arrivals + number * p_.kv_heads + item.kv_head, splits, &shared_.is_last)) return;
      for_each_result(item, [&](int q, int column) {
        const Partial merged = fold(item, first, splits, q, column);
        if (sections == 1) {
          write_out(item, q, column, merged);
        } else {
          write_partial(item, first_section + section, q, column, merged);
        }
      });
      if (sections == 1) return;
    }
    if (!last_to_arrive(p_.arrivals + item.tile * p_.kv_heads + item.kv_head, sections, &shared_.is_last)) return;
    for_each_result(item,
                    [&](int q, int column) { write_out(item, q, column, fold(item, first_section, sections, q, column)); });
  }

 private:
  static constexpr int kEntry = head_dim + 4;  // floats: values, maximum, sum, padding

  // Calls function(query, first of four columns).
  template <typename Function>
  __device__ __forceinline__ void for_each_result(const Item& item, Function function) const {
    for (int q = warp_; q < item.rows * group_; q += kAttentionWarps)
      for (int column = lane_ * kPartialColumns; column < head_dim; column += kWarp * kPartialColumns) function(q, column);
  }

  // The workspace of part `number` of a query.
  __device__ __forceinline__ float* entry(const Item& item, int32_t number, int q) const {
    const int64_t row = shared_.schedule.first_entry[item.tile] + number * item.rows + q / group_;
    return static_cast<float*>(p_.workspace) + (row * p_.query_heads + item.kv_head * group_ + q % group_) * kEntry;
  }
  __device__ __forceinline__ void write_partial(const Item& item, int32_t number, int q, int column,
                                                const Partial& partial) const {
    float* result = entry(item, number, q);
    reinterpret_cast<float4&>(result[column]) = partial.values;
    if (column == 0) reinterpret_cast<float2&>(result[head_dim]) = make_float2(partial.maximum, partial.sum);
  }
  __device__ __forceinline__ Partial read_partial(const Item& item, int32_t number, int q, int column) const {
    const float* result = entry(item, number, q);
    const float2 softmax = reinterpret_cast<const float2&>(result[head_dim]);
    return {softmax.x, softmax.y, reinterpret_cast<const float4&>(result[column])};
  }

  // Merges `count` partial results, in order.
  __device__ __forceinline__ Partial fold(const Item& item, int32_t first, int32_t count, int q, int column) const {
    Partial total = no_keys();
    for (int32_t done = 0; done < count; done += kFold) {
      Partial partial[kFold];
#pragma unroll
      for (int i = 0; i < kFold; ++i)
        partial[i] = done + i < count ? read_partial(item, first + done + i, q, column) : no_keys();
#pragma unroll
      for (int i = 0; i < kFold; ++i) total = merge(total, partial[i]);
    }
    return total;
  }

  __device__ __forceinline__ void write_out(const Item& item, int q, int column, const Partial& result) const {
    const float factor = result.sum > 0.0f ? 1.0f / result.sum : 0.0f;
    // + 0 makes every zero positive: its sign may depend on how often no_keys() was merged.
    const auto finish = [&](float x) { return rounded(fmaf(x, factor, 0.0f)); };
    const int64_t row = item.first_row + q / group_, head = item.kv_head * group_ + q % group_;
    auto* out = static_cast<Element*>(p_.out) + (row * p_.query_heads + head) * head_dim + column;
    reinterpret_cast<Vector<kPartialColumns>&>(*out) = {finish(result.values.x), finish(result.values.y),
                                                        finish(result.values.z), finish(result.values.w)};
  }

  const AttentionLaunch& launch_;
  const PagedAttentionParams& p_;
  Shared& shared_;
  const int lane_, warp_, group_;
};

}  // namespace ssd::cuda
