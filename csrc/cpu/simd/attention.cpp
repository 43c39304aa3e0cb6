// Attention of the rows of one sequence, for one K/V head, over paged keys and an explicit suffix.
//
// Keys are processed in tiles, cut at fixed indices (common/paging.h). For each tile, every query (a row's query head) gets a
// softmax: a maximum, a sum and weighted values. A query's softmaxes are merged tile after tile. So a result depends neither on
// the other rows, nor on whether a key came from the prefix or the suffix, nor on whether one thread computed all tiles. Keys
// that a row does not see are never loaded for it.
//
// Sixteen keys are transposed, so that a vector holds one element of each key. Their scores then need no horizontal sums, and
// one transposition serves all queries. Queries are taken in groups that share the registers with a key or a value. The sums of
// bf16 scores are those of float products: a product of two bf16 numbers is exact in float. So q is not scaled before, but the
// scores after. Floor: one read of the sequence's K/V.
//
// Versions; us of a call on one thread, bf16, 9/3 heads of 64, 200 keys, on a shared Zen 4 core (1 row; 1 row with K/V not in
// the cache; 5 rows): a horizontal sum for each score 13.6, 36.6, 52.5; transposed keys, shared registers and prefetching 11.9,
// 17.6, 31.8; fewer and vectorised merges, 64 keys a strip 11.0, -, -.

#include <cstring>
#include <limits>

#include "../../common/paging.h"
#include "pieces.h"
#include "softmaxes.h"
#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

// The accumulators of a loop, in vectors: as many as leave registers for its operands.
constexpr int kScoreQueries = kVecRegisters >= 32 ? 6 : kVecRegisters >= 8 ? 3 : 1, kScoreBlocks = kVecRegisters == 8 ? 1 : 4;
constexpr int kValueQueries = kVecRegisters >= 32 ? 6 : kVecRegisters >= 8 ? 3 : 1, kValueVectors = kVecRegisters == 8 ? 2 : 4;
static_assert(kAttentionStrip % (kScoreBlocks * kBlock) == 0);

// The type in which scores are computed. Without a fast bf16 dot product, queries and transposed keys become floats.
template <typename T>
using Factor = std::conditional_t<kFastBf16Dot, T, float>;

template <typename T>
constexpr int kElementsAWord = sizeof(float) / sizeof(T);

inline Vec words(const float* w) { return load(w); }
inline Pairs words(const bf16* w) { return pairs(w); }
inline Vec multiply(Vec sum, Vec w, const float* x) { return fma(w, splat(*x), sum); }
inline Vec multiply(Vec sum, const Pairs& w, const bf16* x) { return dot(sum, w, x); }

// Writes the first and then the second bf16 numbers of sixteen words.
inline void split(const float* words, float* out) {
  bf16 halves[2 * kBlock];
  std::memcpy(halves, words, sizeof halves);
  for (int i = 0; i < kBlock; ++i) {
    out[i] = to_float(halves[2 * i]);
    out[kBlock + i] = to_float(halves[2 * i + 1]);
  }
}

template <typename T>
inline void prefetch(const T* begin, int count) {
  for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(begin + i, 0, 2);
}

template <typename T>
class Run {
 public:
  explicit Run(const AttentionRun<T>& run)
      : r_(run),
        rows_(static_cast<int>(run.rows)),
        group_(run.query_heads / run.kv_heads),
        queries_(rows_ * group_),
        dim_(run.head_dim),
        slot_stride_(static_cast<int64_t>(run.kv_heads) * run.head_dim),
        keys_(run.k_cache + static_cast<int64_t>(run.kv_head) * run.head_dim),
        values_(run.v_cache + static_cast<int64_t>(run.kv_head) * run.head_dim) {
    for (int r = 0; r < rows_; ++r) {
      length_[r] = run.prefix_len[r] + (run.suffix_len != nullptr ? run.suffix_len[r] : 0);
      longest_ = length_[r] > longest_ ? length_[r] : longest_;
      longest_prefix_ = run.prefix_len[r] > longest_prefix_ ? run.prefix_len[r] : longest_prefix_;
    }
    for (int q = 0; q < queries_; ++q) {
      row_[q] = static_cast<uint8_t>(q / group_);
      const int64_t head = static_cast<int64_t>(run.kv_head) * group_ + q % group_;
      const T* source = run.q + row_[q] * run.q_stride + head * dim_;
      if constexpr (std::is_same_v<T, Factor<T>>) {
        query_[q] = source;
      } else {
        float* target = run.scratch + q * dim_;
        for (int d = 0; d < dim_; d += kBlock) store(target + d, load(source + d));
        query_[q] = target;
      }
      out_[q] = run.out + (row_[q] * static_cast<int64_t>(run.query_heads) + head) * dim_;
    }
    float* place = run.scratch + queries_ * dim_;
    running_ = softmaxes_at(place, queries_);
    place += attention_partial(queries_, dim_);
    tile_ = softmaxes_at(place, queries_);
    place += attention_partial(queries_, dim_);
    strip_ = reinterpret_cast<Factor<T>*>(place);
    scores_ = place + kAttentionStrip * dim_;
  }

  void all() {
    attend(0, running_);
    for (int32_t first = next_tile_cut(0); first < longest_; first = next_tile_cut(first)) {
      attend(first, tile_);
      add(first, tile_);
    }
    finish();
  }

  void one_tile() { attend(r_.first_key, softmaxes_at(r_.partials, queries_)); }

  void merge_tiles() {
    const float* partial = r_.partials;
    std::memcpy(running_.maximum, partial, static_cast<size_t>(attention_partial(queries_, dim_)) * sizeof(float));
    for (int32_t first = next_tile_cut(0); first < longest_; first = next_tile_cut(first)) {
      partial += r_.partial_stride;
      add(first, softmaxes_at(const_cast<float*>(partial), queries_));
    }
    finish();
  }

 private:
  // How many of the keys [first, cut) row r sees.
  int seen(int r, int32_t first, int32_t cut) const {
    return length_[r] <= first ? 0 : (length_[r] < cut ? length_[r] : cut) - first;
  }
  // How many of the keys [first, cut) row r sees as keys of its prefix.
  int seen_in_prefix(int r, int32_t first, int32_t cut) const {
    return r_.prefix_len[r] <= first ? 0 : (r_.prefix_len[r] < cut ? r_.prefix_len[r] : cut) - first;
  }

  void add(int32_t first, const Softmaxes& tile) {
    bool sees[kMaxAttentionQueries];
    for (int q = 0; q < queries_; ++q) sees[q] = length_[row_[q]] > first;
    merge(running_, tile, sees, queries_, dim_);
  }

  void finish() {
    for (int q = 0; q < queries_; ++q) {
      const Vec scale = splat(1.0f / running_.sum[q]);
      for (int d = 0; d < dim_; d += kBlock) store(out_[q] + d, load(running_.weighted + q * dim_ + d) * scale);
    }
  }

  // Writes the softmaxes of the tile that begins at key `first`.
  void attend(int32_t first, const Softmaxes& tile) {
    const int32_t cut = next_tile_cut(first);
    tile_keys_ = cut - first;
    int count = longest_prefix_ < cut ? longest_prefix_ - first : tile_keys_;
    for (int i = 0; i < count;) {
      const int32_t key = first + i, offset = key % r_.page_size;
      const int64_t page = static_cast<int64_t>(r_.pages[key / r_.page_size]) * r_.page_size;
      for (int32_t o = offset; o < r_.page_size && i < count; ++o, ++i) {
        shared_[i] = (page + o) * slot_stride_;
        prefetch(keys_ + shared_[i], dim_);
      }
    }
    score(first, cut);
    for (int q = 0; q < queries_; ++q) exponentiate(q, seen(row_[q], first, cut), tile);
    weigh(first, cut, tile);
  }

  void score(int32_t first, int32_t cut) {
    for (int32_t at = first; at < cut && at < longest_; at += kAttentionStrip) {
      const int32_t end = at + kAttentionStrip < cut ? at + kAttentionStrip : cut;
      int shared = 0;  // keys of this strip that some row sees in its prefix
      for (int r = 0; r < rows_; ++r) {
        const int in_prefix = seen_in_prefix(r, at, end);
        if (in_prefix == seen(r, at, end) && in_prefix > shared) shared = in_prefix;
      }
      for (int i = 0; i < seen_in_prefix_of_any(at, end); ++i) prefetch(values_ + shared_[at - first + i], dim_);
      if (shared > 0) transpose_strip(shared_ + (at - first), shared);
      // First the rows that share these keys, then each of the others with its own.
      for (int r = 0; r < rows_;) {
        int next = r;
        while (next < rows_ && seen(next, at, end) > 0 && seen(next, at, end) == seen_in_prefix(next, at, end)) ++next;
        if (next > r) score_strip(r * group_, next * group_, at - first, shared);
        r = next + 1;
      }
      for (int r = 0; r < rows_; ++r) {
        const int count = seen(r, at, end);
        if (count == seen_in_prefix(r, at, end)) continue;
        own_slots(r, first, at - first, at - first + count);
        transpose_strip(own_ + (at - first), count);
        score_strip(r * group_, (r + 1) * group_, at - first, count);
      }
    }
  }

  int seen_in_prefix_of_any(int32_t first, int32_t cut) const {
    return longest_prefix_ <= first ? 0 : (longest_prefix_ < cut ? longest_prefix_ : cut) - first;
  }

  // own_[i] = the slot of key first + i as row r sees it.
  void own_slots(int r, int32_t first, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const int32_t in_suffix = first + i - r_.prefix_len[r];
      own_[i] = in_suffix < 0 ? shared_[i] : r_.suffix_slots[r * r_.suffix_width + in_suffix] * slot_stride_;
    }
  }

  // Fills strip_, blocks of [words of a key, kBlock keys], with `count` keys and zeros.
  void transpose_strip(const int64_t* slots, int count) {
    static const float zeros[kMaxHeadDim] = {};
    const int words = dim_ / kElementsAWord<T>;
    for (int block = 0; block < count; block += kBlock) {
      const float* source[kBlock];
      for (int i = 0; i < kBlock; ++i)
        source[i] = block + i < count ? reinterpret_cast<const float*>(keys_ + slots[block + i]) : zeros;
      float* target = reinterpret_cast<float*>(strip_ + block * dim_);
      for (int w = 0; w < words; w += 4) {
        if constexpr (std::is_same_v<T, Factor<T>>) {
          transpose_four(source, w, target + w * kBlock);
        } else {
          float pairs_of[4 * kBlock];
          transpose_four(source, w, pairs_of);
          for (int i = 0; i < 4; ++i) split(pairs_of + i * kBlock, target + 2 * (w + i) * kBlock);
        }
      }
    }
  }

  // The scores of the queries [begin, end) for the first `count` keys in strip_, which are keys `at`.. of the tile.
  void score_strip(int begin, int end, int at, int count) {
    const Vec scale = splat(r_.scale);
    in_pieces<kScoreQueries>(begin, end, [&](int query, auto size) {
      constexpr int QUERIES = decltype(size)::value;
      const Factor<T>* q[QUERIES];
      for (int i = 0; i < QUERIES; ++i) q[i] = query_[query + i];
      in_pieces<kScoreBlocks>(0, (count + kBlock - 1) / kBlock, [&](int block, auto blocks) {
        constexpr int BLOCKS = decltype(blocks)::value;
        const Factor<T>* key = strip_ + block * kBlock * dim_;
        Vec sum[QUERIES][BLOCKS];
        for (int i = 0; i < QUERIES; ++i)
          for (int b = 0; b < BLOCKS; ++b) sum[i][b] = splat(0.0f);
        for (int d = 0; d < dim_; d += kElementsAWord<Factor<T>>) {
          for (int b = 0; b < BLOCKS; ++b) {
            const auto word = words(key + (b * dim_ + d) * kBlock);
#pragma GCC unroll 8
            for (int i = 0; i < QUERIES; ++i) sum[i][b] = multiply(sum[i][b], word, q[i] + d);
          }
        }
        for (int i = 0; i < QUERIES; ++i)
          for (int b = 0; b < BLOCKS; ++b)
            store(scores_ + static_cast<int64_t>(query + i) * tile_keys_ + at + (block + b) * kBlock, sum[i][b] * scale);
      });
    });
  }

  // Replaces a query's scores by their exponentials.
  void exponentiate(int query, int count, const Softmaxes& tile) {
    if (count == 0) {  // merge() reads them, but keeps nothing
      tile.maximum[query] = tile.sum[query] = 0.0f;
      return;
    }
    float* s = scores_ + static_cast<int64_t>(query) * tile_keys_;
    const int padded = (count + kBlock - 1) / kBlock * kBlock;
    for (int i = count; i < padded; ++i) s[i] = -std::numeric_limits<float>::infinity();
    Vec largest = load(s);
    for (int i = kBlock; i < padded; i += kBlock) largest = max(largest, load(s + i));
    const float maximum = reduce_max(largest);
#pragma omp simd
    for (int i = 0; i < padded; ++i) s[i] = exp_lane(s[i] - maximum);
    Vec total = load(s);
    for (int i = kBlock; i < padded; i += kBlock) total = total + load(s + i);
    tile.maximum[query] = maximum;
    tile.sum[query] = reduce_add(total);
  }

  void weigh(int32_t first, int32_t cut, const Softmaxes& tile) {
    for (int i = 0; i < queries_ * dim_; i += kBlock) store(tile.weighted + i, splat(0.0f));
    in_pieces<kValueQueries>(0, queries_, [&](int query, auto size) {
      constexpr int QUERIES = decltype(size)::value;
      int shared = tile_keys_;
      for (int r = row_[query]; r <= row_[query + QUERIES - 1]; ++r) {
        const int in_prefix = seen_in_prefix(r, first, cut);
        shared = in_prefix < shared ? in_prefix : shared;
      }
      weigh_keys<QUERIES>(query, shared_, 0, shared, tile);
      for (int q = query; q < query + QUERIES;) {
        const int row = row_[q], row_end = (row + 1) * group_, count = seen(row, first, cut);
        const int next = row_end < query + QUERIES ? row_end : query + QUERIES;
        if (count > shared) {
          own_slots(row, first, shared, count);
          with_count<QUERIES>(next - q, [&](auto some) { weigh_keys<decltype(some)::value>(q, own_, shared, count, tile); });
        }
        q = next;
      }
    });
  }

  // Adds the values of the tile's keys [begin, end) to the weighted values of QUERIES queries.
  template <int QUERIES>
  void weigh_keys(int query, const int64_t* slots, int begin, int end, const Softmaxes& tile) {
    if (begin >= end) return;
    const float* weights = scores_ + static_cast<int64_t>(query) * tile_keys_;
    in_pieces<kValueVectors>(0, dim_ / kBlock, [&](int vector, auto vectors) {
      constexpr int VECTORS = decltype(vectors)::value;
      const T* values = values_ + vector * kBlock;
      float* target = tile.weighted + static_cast<int64_t>(query) * dim_ + vector * kBlock;
      Vec sum[QUERIES][VECTORS];
      for (int i = 0; i < QUERIES; ++i)
        for (int d = 0; d < VECTORS; ++d) sum[i][d] = load(target + i * dim_ + d * kBlock);
      for (int k = begin; k < end; ++k) {
        Vec value[VECTORS];
        for (int d = 0; d < VECTORS; ++d) value[d] = load(values + slots[k] + d * kBlock);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i) {
          const Vec weight = splat(weights[i * tile_keys_ + k]);
#pragma GCC unroll 8
          for (int d = 0; d < VECTORS; ++d) sum[i][d] = fma(weight, value[d], sum[i][d]);
        }
      }
      for (int i = 0; i < QUERIES; ++i)
        for (int d = 0; d < VECTORS; ++d) store(target + i * dim_ + d * kBlock, sum[i][d]);
    });
  }

  const AttentionRun<T>& r_;
  const int rows_, group_, queries_, dim_;
  const int64_t slot_stride_;
  const T *keys_, *values_;
  int32_t length_[kMaxAttentionQueries];          // keys of each row
  uint8_t row_[kMaxAttentionQueries];             // of each query
  const Factor<T>* query_[kMaxAttentionQueries];  // [head_dim]
  T* out_[kMaxAttentionQueries];                  // [head_dim]
  int32_t longest_ = 0, longest_prefix_ = 0;
  int tile_keys_ = 0;  // of the current tile
  Softmaxes running_, tile_;
  Factor<T>* strip_;
  float* scores_;                // [queries, tile_keys_]
  int64_t shared_[kCoarseTile];  // where the tile's keys begin, in elements from keys_ or values_: of the prefix
  int64_t own_[kCoarseTile];     // the same for one row, prefix and suffix
};

template <typename T>
void attention(const AttentionRun<T>& arguments) {
  Run<T> run(arguments);
  switch (arguments.part) {
    case AttentionPart::kAll: return run.all();
    case AttentionPart::kTile: return run.one_tile();
    case AttentionPart::kMerge: return run.merge_tiles();
  }
}

}  // namespace

void attention_bf16(const AttentionRun<bf16>& run) { attention(run); }
void attention_float(const AttentionRun<float>& run) { attention(run); }

}  // namespace ssd::SSD_ISA
