// rope_store_kv and move_kv: the ops that write the paged K/V cache.

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "../common/paging.h"
#include "parallel.h"
#include "program.h"
#include "run_dtype.h"

namespace ssd {
namespace {

constexpr int64_t kRowsAThread = 16;

void normalise_head(const float* x, const float* weight, float eps, int64_t d, float* y) {
  kernels().rms_norm_float(x, weight, eps, d, y);
}
void normalise_head(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y) {
  kernels().rms_norm_bf16(x, weight, eps, d, y);
}

// Rotates one head: element i with element half + i. `out` may be `in`.
template <typename T>
void rotate(const T* in, const float* cos, const float* sin, int64_t half, T* out) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = as_float(in[i]), b = as_float(in[half + i]);
    round_to(a * cos[i] - b * sin[i], out + i);
    round_to(b * cos[i] + a * sin[i], out + half + i);
  }
}

void rope_store_kv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& positions,
                   const Tensor& kv_slots, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& q_norm,
                   const OptionalTensor& k_norm, double eps) {
  const RopeSizes sizes =
      check_rope_store_kv(q, k, v, cos_sin, positions, kv_slots, k_cache, v_cache, q_norm, k_norm, kCpuDtypes);
  const int64_t rows = sizes.rows, query_heads = sizes.query_heads, kv_heads = sizes.kv_heads, dim = sizes.head_dim;
  const int64_t half = dim / 2;
  run_or_record([=] {
    const int32_t* position = positions.const_data_ptr<int32_t>();
    const int32_t* slot = kv_slots.const_data_ptr<int32_t>();
    for (int64_t r = 0; r < rows; ++r) {
      TORCH_CHECK(position[r] >= 0 && position[r] < sizes.table_rows, "positions[", r, "] is ", position[r],
                  ", outside the rotary table's ", sizes.table_rows, " rows");
      TORCH_CHECK(slot[r] >= 0 && slot[r] < sizes.kv_slots, "kv_slots[", r, "] is ", slot[r], ", outside the cache's ",
                  sizes.kv_slots, " KV slots");
    }
    with_run_dtype(q, [&]<typename T>(T) {
      parallel_for(rows, kRowsAThread, [&](int64_t begin, int64_t end) {
        std::vector<T> normalised(static_cast<size_t>(dim));
        const auto place_head = [&](const T* in, const float* cos, const OptionalTensor& norm, T* out) {
          if (norm.has_value()) {
            normalise_head(in, data<T>(*norm), static_cast<float>(eps), dim, normalised.data());
            in = normalised.data();
          }
          rotate(in, cos, cos + half, half, out);
        };
        for (int64_t r = begin; r < end; ++r) {
          const float* cos = cos_sin.const_data_ptr<float>() + static_cast<int64_t>(position[r]) * dim;
          T* q_row = mutable_data<T>(q) + r * q.stride(0);
          for (int64_t h = 0; h < query_heads; ++h) place_head(q_row + h * dim, cos, q_norm, q_row + h * dim);
          const int64_t at = static_cast<int64_t>(slot[r]) * kv_heads * dim;
          for (int64_t h = 0; h < kv_heads; ++h)
            place_head(data<T>(k) + r * k.stride(0) + h * dim, cos, k_norm, mutable_data<T>(k_cache) + at + h * dim);
          std::memcpy(mutable_data<T>(v_cache) + at, data<T>(v) + r * v.stride(0),
                      static_cast<size_t>(kv_heads * dim) * sizeof(T));
        }
      });
    });
  });
}

void move_kv(const Tensor& kv, const Tensor& page_table, const Tensor& length, const Tensor& path) {
  const MoveSizes sizes = check_move_kv(kv, page_table, length, path, kCpuDtypes);
  const auto bytes = static_cast<size_t>(sizes.slot_bytes);
  const int64_t nodes = sizes.nodes, positions = sizes.table_width * sizes.page_size;
  run_or_record([=] {
    struct Move {
      int64_t from, to;
    };
    std::vector<Move> moves;
    for (int64_t s = 0; s < sizes.slots; ++s) {
      const int64_t n = length.const_data_ptr<int32_t>()[s * length.stride(0)];
      const int32_t* accepted = path.const_data_ptr<int32_t>() + s * nodes;
      const auto slot_at = [&](int64_t position, const char* name) {
        TORCH_CHECK(position >= 0 && position < positions, name, " leads to position ", position, " of slot ", s,
                    ", outside the page_table's ", positions);
        const int64_t slot = kv_slot(page_table.const_data_ptr<int32_t>() + s * sizes.table_width,
                                     static_cast<int32_t>(position), static_cast<int32_t>(sizes.page_size));
        TORCH_CHECK(slot >= 0 && slot < sizes.kv_slots, "page_table leads to KV slot ", slot, ", outside the cache's ",
                    sizes.kv_slots);
        return slot;
      };
      for (int64_t i = 1; i < nodes && accepted[i] >= 0; ++i) {
        TORCH_CHECK(accepted[i] < nodes, "path[", s, ", ", i, "] is ", accepted[i], ", outside -1..", nodes - 1);
        moves.push_back({slot_at(n + accepted[i], "length"), slot_at(n + i, "length")});
      }
    }
    auto* base = static_cast<char*>(kv.mutable_data_ptr());
    for (int64_t plane = 0; plane < sizes.planes; ++plane) {
      char* cache = base + static_cast<size_t>(plane * sizes.kv_slots) * bytes;
      for (const auto& [from, to] : moves)
        std::memmove(cache + static_cast<size_t>(to) * bytes, cache + static_cast<size_t>(from) * bytes, bytes);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("rope_store_kv", rope_store_kv);
  m.impl("move_kv", move_kv);
}

}  // namespace ssd
