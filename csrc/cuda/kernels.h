// The interface of csrc/cuda: a parameter struct and a launcher for each kernel, on raw pointers and a stream. csrc/cuda
// includes no torch header; csrc/cuda_ops checks tensors and fills the structs in.
//
// All arrays are on the device and contiguous unless a field says otherwise. A `void*` array of activations, weights or K/V
// holds bfloat16. ssd/ops.py explains the sizes. Launchers neither allocate nor synchronise. A grid depends on shapes alone,
// and kernels read lengths on the device. When the blocks of a launch share a result, each writes a part to `workspace` and
// counts itself in `arrivals`. The last block to arrive combines the parts, in a fixed order. A function beside the launcher
// returns the size of the workspace. Arrivals are zero before a launch and after it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ssd::cuda {

enum class Epilogue : int { kNone, kAdd, kSiluMul };  // of `linear`; ssd/ops.py describes them

// The forward pass ------------------------------------------------------------------------------------------------------------

struct EmbedParams {
  const int32_t* ids;  // [rows]; outside [0, vocabulary): row 0
  const void* table;   // [vocabulary, width]
  void* out;           // [rows, width]
  int32_t rows;
  int32_t vocabulary;
  int32_t width;
};
cudaError_t embed(const EmbedParams& params, cudaStream_t stream);

struct RmsNormParams {
  const void* x;       // [rows, width], rows x_stride elements apart; 16-byte aligned if width and x_stride are multiples of 8
  const void* weight;  // [width]
  void* out;           // [rows, width]
  int64_t x_stride;
  int32_t rows;
  int32_t width;
  float eps;
};
cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream);

// A packed weight has packed_outputs(outputs) x packed_inputs(inputs) elements, in an order that linear.cu explains, padded
// with zeros. After int8 elements come packed_outputs(outputs) float scales.
int64_t packed_outputs(int64_t outputs);
int64_t packed_inputs(int64_t inputs);

struct PackWeightParams {
  const void* weight;  // [outputs, inputs], bfloat16 or int8; for kSiluMul the gate's rows, then the up projection's
  const float* scale;  // [outputs], of an int8 weight, or null
  void* packed;        // 16-byte aligned
  int32_t outputs;
  int32_t inputs;
  Epilogue epilogue;
};
cudaError_t pack_weight(const PackWeightParams& params, cudaStream_t stream);

struct LinearParams {
  const void* x;         // [rows, inputs], 16-byte aligned
  const void* weight;    // packed with the same epilogue
  const void* bias;      // [outputs] or null
  const void* residual;  // [rows, outputs], with kAdd
  void* y;               // [rows, outputs], [rows, outputs / 2] for kSiluMul; float with float32_out
  int32_t rows;
  int32_t inputs;  // a multiple of 8
  int32_t outputs;
  Epilogue epilogue;
  bool int8;  // the weight is int8
  bool float32_out;
};
cudaError_t linear(const LinearParams& params, cudaStream_t stream);

struct RopeStoreKvParams {
  void* q;                   // [rows, query_heads, head_dim], rows q_stride elements apart; rotated in place
  const void* k;             // [rows, kv_heads, head_dim], rows k_stride elements apart
  const void* v;             // [rows, kv_heads, head_dim], rows v_stride elements apart
  const float* cos_sin;      // [table_rows, head_dim]: cosines, then sines
  const int32_t* positions;  // [rows]
  const int32_t* kv_slots;   // [rows]
  const void* q_norm;        // [head_dim] or null
  const void* k_norm;        // [head_dim] or null
  void* k_cache;             // [kv_slots, kv_heads, head_dim]
  void* v_cache;             // [kv_slots, kv_heads, head_dim]
  int64_t q_stride, k_stride, v_stride;
  int32_t rows;
  int32_t query_heads, kv_heads;
  int32_t head_dim;  // even
  float eps;
};
cudaError_t rope_store_kv(const RopeStoreKvParams& params, cudaStream_t stream);

struct PagedAttentionParams {
  const void* q;                // [rows, query_heads, head_dim], rows q_stride elements apart, 16-byte aligned
  const void* k_cache;          // [pages, page_size, kv_heads, head_dim], 16-byte aligned
  const void* v_cache;          // [pages, page_size, kv_heads, head_dim], 16-byte aligned
  const int32_t* page_table;    // [sequences, table_width]
  const int32_t* row_seq;       // [rows]; rows of one sequence are adjacent
  const int32_t* prefix_len;    // [rows]
  const int32_t* suffix_slots;  // [rows, suffix_width] or null
  const int32_t* suffix_len;    // [rows] or null
  void* out;                    // [rows, query_heads, head_dim]
  void* workspace;              // paged_attention_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;            // [paged_attention_arrivals(..)]
  int64_t q_stride;             // a multiple of 8
  int32_t rows;
  int32_t sequences;
  int32_t query_heads, kv_heads;  // at most 16 query heads a K/V head
  int32_t head_dim;               // 64, 80, 96, 128 or 256
  int32_t page_size;
  int32_t table_width;
  int32_t suffix_width;
  float scale;  // positive
};
int64_t paged_attention_arrivals(const PagedAttentionParams& params);
size_t paged_attention_workspace(const PagedAttentionParams& params);
cudaError_t paged_attention(const PagedAttentionParams& params, cudaStream_t stream);

struct MoveKvParams {
  void* kv;                   // [planes, kv_slots, row_bytes], planes = layers * 2 (K and V); 16-byte aligned
  const int32_t* page_table;  // [slots, table_width]
  const int32_t* length;      // [slots], length_stride elements apart
  const int32_t* path;        // [slots, nodes]; a path ends at its first negative entry
  int64_t length_stride;
  int64_t planes;
  int64_t kv_slots;   // pages * page_size
  int64_t row_bytes;  // kv_heads * head_dim * element size, a multiple of 16
  int32_t slots;
  int32_t nodes;
  int32_t table_width;
  int32_t page_size;
};
cudaError_t move_kv(const MoveKvParams& params, cudaStream_t stream);

// The rows of a forward pass --------------------------------------------------------------------------------------------------

struct RowTables {
  int32_t *ids, *positions, *kv_slots, *row_seq, *prefix_len;  // [rows]
  int32_t* suffix_slots;                                       // [rows, suffix width]; every element is written
  int32_t* suffix_len;                                         // [rows]
};

struct TreeRowsParams {
  const int32_t* tokens;       // [slots, capacity]
  const int32_t* spec_tokens;  // [slots, nodes - 1]
  const int32_t* length;       // [slots]
  const int32_t* page_table;   // [slots, table_width]
  const int32_t* parent;       // [nodes]; null for a chain
  RowTables rows;              // [slots * count], suffix width: depth
  int32_t slots;
  int32_t capacity;
  int32_t nodes;
  int32_t table_width;
  int32_t page_size;
  int32_t first, count;  // of the nodes of a slot; first may be -1
  int32_t depth;
};
cudaError_t tree_rows(const TreeRowsParams& params, cudaStream_t stream);

struct BranchRowsParams {
  const int32_t* guess;          // [slots, budget]
  const int32_t* guess_k;        // [slots, budget]
  const int32_t* branch_tokens;  // [slots, budget, lookahead]
  const int32_t* length;         // [slots]
  const int32_t* scratch;        // [slots, budget, lookahead]
  RowTables rows;                // [slots * budget], suffix width: step + 1
  int32_t slots;
  int32_t budget;
  int32_t lookahead;
  int32_t step;
};
cudaError_t branch_rows(const BranchRowsParams& params, cudaStream_t stream);

// Distributions, and drawing from them ----------------------------------------------------------------------------------------

struct RowStatsParams {
  const float* logits;       // [rows, vocabulary]
  const float* temperature;  // [slots]
  const int32_t* top_k;      // [slots]
  const float* top_p;        // [slots]
  const float* min_p;        // [slots]
  float* stats;              // [rows, kStats]
  void* workspace;           // row_stats_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;         // [rows]
  int32_t rows;
  int32_t rows_a_slot;
  int32_t vocabulary;
  int32_t saguaro_f;
  float saguaro_c;
};
size_t row_stats_workspace(const RowStatsParams& params);
cudaError_t row_stats(const RowStatsParams& params, cudaStream_t stream);

struct SampleParams {
  const float* logits;      // [rows, vocabulary]
  const float* stats;       // [rows, kStats]
  const int64_t* seed;      // [slots]
  const int32_t* position;  // [rows], position_stride elements apart: of the rows' own tokens
  const int32_t* id_of;     // [vocabulary] or null
  const uint8_t* missed;    // [slots] or null; tokens of a slot with 0 stay as they are
  const int32_t* parity;    // [1], with q_logits
  int32_t* spec_len;        // [slots] or null
  int32_t* bad;             // [slots]; null if spec_len is
  int32_t* tokens;          // [slots, rows_a_slot * m], tokens_strides elements apart
  float* q_logits;          // [slots, 2, rows_a_slot, vocabulary], q_logits_strides elements apart; or null
  float* q_stats;           // [slots, 2, rows_a_slot, kStats], q_stats_strides elements apart; or null
  void* workspace;          // sample_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;        // [rows]
  int64_t position_stride;
  int64_t tokens_strides[2];
  int64_t q_logits_strides[3], q_stats_strides[3];
  bool next_half;
  int32_t rows;
  int32_t rows_a_slot;
  int32_t vocabulary;
  int32_t m;
  int32_t drafted;  // tokens of each speculation before these
};
size_t sample_workspace(const SampleParams& params);
cudaError_t sample(const SampleParams& params, cudaStream_t stream);

// The speculation cache and its verification ----------------------------------------------------------------------------------

struct ForkParams {
  const float* logits;         // [slots, lookahead + 1, vocabulary]
  const int32_t* spec_tokens;  // [slots, lookahead]
  const int32_t* spec_len;     // [slots]
  const int32_t* table;        // [2, lookahead + 1, lookahead + 1]
  const uint8_t* hit;          // [slots]
  const int32_t* id_of;        // [vocabulary] or null
  int32_t* guess;              // [slots, budget]
  int32_t* guess_k;            // [slots, budget]
  void* workspace;             // fork_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;           // [slots * (lookahead + 1)]
  int32_t slots;
  int32_t lookahead;
  int32_t vocabulary;
  int32_t budget;
};
size_t fork_workspace(const ForkParams& params);
cudaError_t fork(const ForkParams& params, cudaStream_t stream);

struct VerifyParams {
  const float* p_logits;       // [slots, nodes, vocabulary]
  const float* p_stats;        // [slots, nodes, kStats]
  const float* q_logits;       // [slots, 2, addresses, q_rows, draft_vocabulary] or null
  const float* q_stats;        // [slots, 2, addresses, q_rows, kStats] or null
  const int32_t* q_address;    // [slots]; -1: proposals that were not drawn from a distribution
  const int32_t* draft_id_of;  // [vocabulary] or null
  const int32_t* spec_tokens;  // [slots, nodes - 1]
  const int32_t* spec_len;     // [slots]
  const uint8_t* hit;          // [slots]
  const int32_t* bad;          // [slots]
  const int32_t* parent;       // [slots, nodes], slots parent_stride elements apart; null for a chain
  const int32_t* parity;       // [1]
  const int64_t* seed;         // [slots]
  const int32_t* eos;          // [eos_count]
  const uint8_t* ignore_eos;   // [slots]
  const int32_t* max_length;   // [slots]
  int32_t* tokens;             // [slots, capacity]
  int32_t* length;             // [slots]
  int32_t* last_token;         // [slots]
  uint8_t* done;               // [slots]
  int32_t* outcome;            // [slots, 2, 2]
  int32_t* path;               // [slots, nodes]; every element is written
  int32_t* report;             // [slots, kReportColumns + newest]
  void* workspace;             // verify_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;           // [slots]
  int64_t parent_stride;
  int32_t slots;
  int32_t nodes;   // at most 64
  int32_t newest;  // at most 64
  int32_t vocabulary;
  int32_t draft_vocabulary;
  int32_t addresses;
  int32_t q_rows;
  int32_t eos_count;
  int32_t capacity;
};
size_t verify_workspace(const VerifyParams& params);
cudaError_t verify(const VerifyParams& params, cudaStream_t stream);

struct RankOutcomesParams {
  const float* logits;         // [slots, nodes, vocabulary]
  const int32_t* outcome;      // [slots, 2, 2]
  const int32_t* parity;       // [1]
  const int32_t* spec_tokens;  // [slots, nodes - 1]
  const int32_t* spec_len;     // [slots]
  const uint8_t* hit;          // [slots]
  const uint8_t* done;         // [slots]
  const int32_t* length;       // [slots]
  const int32_t* draft_id_of;  // [target_vocabulary] or null
  int32_t* seen;               // [slots, kSeenColumns]
  void* workspace;             // rank_outcomes_workspace(..) bytes, 16-byte aligned
  int32_t* arrivals;           // [slots]
  int32_t slots;
  int32_t nodes;
  int32_t vocabulary;
  int32_t target_vocabulary;
  int32_t budget;
  int32_t draft_context;
};
size_t rank_outcomes_workspace(const RankOutcomesParams& params);
cudaError_t rank_outcomes(const RankOutcomesParams& params, cudaStream_t stream);

struct CacheLookupParams {
  const int32_t* outcome;        // [slots, 2, 2]
  const int32_t* guess;          // [slots, budget]
  const int32_t* guess_k;        // [slots, budget]
  const int32_t* branch_tokens;  // [slots, budget, lookahead]
  const int32_t* length;         // [slots]
  const int32_t* last_token;     // [slots]
  const int32_t* max_length;     // [slots]
  const uint8_t* done;           // [slots]
  const int32_t* nodes_within;   // [depth + 1] or null
  int32_t* parity;               // [1], flipped
  int32_t* draft_length;         // [slots]
  int32_t* draft_last_token;     // [slots]
  int32_t* spec_tokens;          // [slots, lookahead]
  int32_t* spec_len;             // [slots]
  uint8_t* hit;                  // [slots]
  uint8_t* missed;               // [slots]
  int32_t* q_address;            // [slots]
  int32_t* bad;                  // [slots]
  int32_t slots;
  int32_t budget;
  int32_t lookahead;
  int32_t depth;
  int32_t draft_context;
};
cudaError_t cache_lookup(const CacheLookupParams& params, cudaStream_t stream);

struct NgramProposeParams {
  const int32_t* tokens;  // [slots, capacity]
  const int32_t* length;  // [slots]; the last committed token is at tokens[length]
  const uint8_t* missed;  // [slots]; a slot with 0 stays as it is
  int32_t* spec_tokens;   // [slots, lookahead]
  int32_t* spec_len;      // [slots]
  int32_t* q_address;     // [slots]
  int32_t slots;
  int32_t capacity;
  int32_t lookahead;
};
cudaError_t ngram_propose(const NgramProposeParams& params, cudaStream_t stream);

// Rounds as graphs ------------------------------------------------------------------------------------------------------------

struct ConditionParams {
  const uint8_t* flags;               // [count]
  cudaGraphConditionalHandle handle;  // handle of a conditional node in the graph that captures this launch
  int32_t count;
};
cudaError_t condition(const ConditionParams& params, cudaStream_t stream);

// Launches --------------------------------------------------------------------------------------------------------------------

// Whether a kernel on the current device may start while the kernel ahead of it in the stream still runs (launch.h).
cudaError_t launches_overlap(bool& overlap);

}  // namespace ssd::cuda
