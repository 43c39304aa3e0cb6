// Attention of the rows of one sequence, for one K/V head, over paged keys and an explicit suffix.
//
// Keys are processed in tiles, cut at fixed indices (common/paging.h). For each tile, every (row, query head) gets a maximum, a
// sum and weighted values, which are merged into its running ones, tile after tile. So a result depends neither on the other
// rows nor on whether a key came from the prefix or the suffix. The keys of a tile stay in the L1 cache for all rows of the
// sequence. Keys that a row does not see are never loaded for it. Floor: one read of the sequence's K/V.

#include <limits>

#include "../../common/paging.h"
#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

// The softmax of one query head so far. out is sum(exp(s - maximum) * v), not yet divided by sum.
struct Running {
  float maximum, sum;
  float* out;  // [head_dim]
};

// VECTORS: head_dim / 16 as a constant, so that the loops unroll; 0 for unusual head sizes, which take runtime_vectors.
template <int VECTORS, typename T>
void attend(const AttentionTile<T>& t, int runtime_vectors) {
  const int vectors = VECTORS > 0 ? VECTORS : runtime_vectors;
  constexpr int kRegisters = VECTORS > 0 ? VECTORS : kMaxHeadDim / kBlock;
  const int group = t.query_heads / t.kv_heads;
  const int64_t slot_stride = static_cast<int64_t>(t.kv_heads) * t.head_dim;
  const T* keys = t.k_cache + static_cast<int64_t>(t.kv_head) * t.head_dim;
  const T* values = t.v_cache + static_cast<int64_t>(t.kv_head) * t.head_dim;

  float* query = t.scratch;                               // [rows, group, head_dim]
  float* out = query + t.rows * group * t.head_dim;       // [rows, group, head_dim]
  float* all_scores = out + t.rows * group * t.head_dim;  // [group, kCoarseTile]
  Running running[kMaxAttentionRows * kMaxGroup];
  int64_t shared_slots[kCoarseTile], own_slots[kCoarseTile];

  int32_t longest_prefix = 0, longest = 0;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int32_t suffix = t.suffix_len != nullptr ? t.suffix_len[r] : 0;
    longest_prefix = t.prefix_len[r] > longest_prefix ? t.prefix_len[r] : longest_prefix;
    longest = t.prefix_len[r] + suffix > longest ? t.prefix_len[r] + suffix : longest;
    for (int h = 0; h < group; ++h) {
      const int64_t item = r * group + h;
      const T* source = t.q + r * t.q_stride + (static_cast<int64_t>(t.kv_head) * group + h) * t.head_dim;
      for (int d = 0; d < t.head_dim; ++d) query[item * t.head_dim + d] = to_float(source[d]) * t.scale;
      running[item] = {-std::numeric_limits<float>::infinity(), 0.0f, out + item * t.head_dim};
      for (int d = 0; d < t.head_dim; ++d) out[item * t.head_dim + d] = 0.0f;
    }
  }

  for (int32_t first = 0; first < longest; first = next_tile_cut(first)) {
    const int32_t cut = next_tile_cut(first);
    for (int32_t j = first; j < cut && j < longest_prefix; ++j)
      shared_slots[j - first] = kv_slot(t.pages, j, t.page_size) * slot_stride;

    for (int64_t r = 0; r < t.rows; ++r) {
      const int32_t prefix = t.prefix_len[r];
      const int32_t length = prefix + (t.suffix_len != nullptr ? t.suffix_len[r] : 0);
      const int32_t count = (length < cut ? length : cut) - first;
      if (count <= 0) continue;
      const int64_t* slots = shared_slots;
      if (first + count > prefix) {
        for (int32_t i = 0; i < count; ++i)
          own_slots[i] =
              first + i < prefix ? shared_slots[i] : t.suffix_slots[r * t.suffix_width + first + i - prefix] * slot_stride;
        slots = own_slots;
      }

      for (int32_t i = 0; i < count; ++i) {
        Vec key[kRegisters];
        for (int d = 0; d < vectors; ++d) key[d] = load(keys + slots[i] + d * kBlock);
        for (int h = 0; h < group; ++h) {
          const float* q = query + (r * group + h) * t.head_dim;
          Vec dot = key[0] * load(q);
          for (int d = 1; d < vectors; ++d) dot = fma(key[d], load(q + d * kBlock), dot);
          all_scores[h * kCoarseTile + i] = reduce_add(dot);
        }
      }

      for (int h = 0; h < group; ++h) {
        float* s = all_scores + h * kCoarseTile;
        const int32_t padded = (count + kBlock - 1) / kBlock * kBlock;
        for (int32_t i = count; i < padded; ++i) s[i] = -std::numeric_limits<float>::infinity();
        Vec largest = load(s);
        for (int32_t i = kBlock; i < padded; i += kBlock) largest = max(largest, load(s + i));
        const float maximum = reduce_max(largest);
#pragma omp simd
        for (int32_t i = 0; i < padded; ++i) s[i] = exp_lane(s[i] - maximum);
        Vec total = load(s);
        for (int32_t i = kBlock; i < padded; i += kBlock) total = total + load(s + i);
        const float sum = reduce_add(total);

        Vec weighted[kRegisters];
        for (int d = 0; d < vectors; ++d) weighted[d] = splat(0.0f);
        for (int32_t i = 0; i < count; ++i) {
          const Vec weight = splat(s[i]);
          for (int d = 0; d < vectors; ++d) weighted[d] = fma(weight, load(values + slots[i] + d * kBlock), weighted[d]);
        }

        Running& state = running[r * group + h];
        const float merged = maximum > state.maximum ? maximum : state.maximum;
        const float keep = exp_lane(state.maximum - merged), take = exp_lane(maximum - merged);
        state.maximum = merged;
        state.sum = state.sum * keep + sum * take;
        for (int d = 0; d < vectors; ++d) {
          float* place = state.out + d * kBlock;
          store(place, fma(load(place), splat(keep), weighted[d] * splat(take)));
        }
      }
    }
  }

  for (int64_t r = 0; r < t.rows; ++r) {
    for (int h = 0; h < group; ++h) {
      const Running& state = running[r * group + h];
      T* target = t.out + (r * t.query_heads + static_cast<int64_t>(t.kv_head) * group + h) * t.head_dim;
      const float scale = 1.0f / state.sum;
      for (int d = 0; d < t.head_dim; ++d) from_float(state.out[d] * scale, target + d);
    }
  }
}

template <typename T>
void attend_any(const AttentionTile<T>& tile) {
  const int vectors = tile.head_dim / kBlock;
  switch (vectors) {
    case 4: return attend<4>(tile, vectors);
    case 5: return attend<5>(tile, vectors);
    case 8: return attend<8>(tile, vectors);
    default: return attend<0>(tile, vectors);
  }
}

}  // namespace

void attention_bf16(const AttentionTile<bf16>& tile) { attend_any(tile); }
void attention_float(const AttentionTile<float>& tile) { attend_any(tile); }

}  // namespace ssd::SSD_ISA
