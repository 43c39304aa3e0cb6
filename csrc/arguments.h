// The checks of every op's arguments (dtypes, shapes, layouts), written once for all back ends. There is one function for each
// op. It takes the op's arguments in their order, raises with the name of a wrong argument, and returns the sizes.
//
// A back end adds two kinds of checks. It refuses shapes that only it cannot compute (a head size, an alignment). The CPU also
// refuses wrong values (an id out of range, a length); CUDA does not, because the host does not read a device's memory.
#pragma once

#include <limits>
#include <string_view>

#include "checks.h"
#include "common/distribution.h"
#include "common/report.h"

namespace ssd {

using RunDtypes = at::ArrayRef<at::ScalarType>;  // dtypes that a back end takes for activations, weights and K/V

// The forward pass ------------------------------------------------------------------------------------------------------------

struct EmbedSizes {
  int64_t rows, vocabulary, width;
};

inline EmbedSizes check_embed(const Tensor& ids, const Tensor& table, RunDtypes dtypes) {
  check_run_dtype(table, "table", dtypes);
  check(ids, "ids", at::kInt, {-1});
  check(table, "table", table.scalar_type(), {-1, -1});
  TORCH_CHECK(table.size(0) > 0, "table must have at least one row");
  return {.rows = ids.size(0), .vocabulary = table.size(0), .width = table.size(1)};
}

struct NormSizes {
  int64_t rows, width;
};

inline NormSizes check_rms_norm(const Tensor& x, const Tensor& weight, RunDtypes dtypes) {
  check_run_dtype(x, "x", dtypes);
  check(x, "x", x.scalar_type(), {-1, -1}, 1);
  check(weight, "weight", x.scalar_type(), {x.size(1)});
  return {.rows = x.size(0), .width = x.size(1)};
}

enum class Epilogue : int { kNone, kAdd, kSiluMul };

inline Epilogue parse_epilogue(std::string_view name) {
  if (name == "none") return Epilogue::kNone;
  if (name == "add") return Epilogue::kAdd;
  TORCH_CHECK(name == "silu_mul", "epilogue must be none, add or silu_mul, not ", name);
  return Epilogue::kSiluMul;
}

struct WeightSizes {
  int64_t outputs, inputs;
  Epilogue epilogue;
  bool int8 = false;  // int8 weights, with a scale for each output
};

// dtypes: allowed dtypes of the weight. An int8 weight needs a scale, and no other weight may have one.
inline WeightSizes check_pack_weight(const Tensor& weight, std::string_view epilogue_name, const OptionalTensor& scale,
                                     RunDtypes dtypes) {
  check_run_dtype(weight, "weight", dtypes);
  check(weight, "weight", weight.scalar_type(), {-1, -1});
  const bool int8 = weight.scalar_type() == at::kChar;
  TORCH_CHECK(scale.has_value() == int8, "scale goes with int8 weights, and only with them");
  check(scale, "scale", at::kFloat, {weight.size(0)});
  const Epilogue epilogue = parse_epilogue(epilogue_name);
  TORCH_CHECK(epilogue != Epilogue::kSiluMul || weight.size(0) % 2 == 0, "weight must hold as many gate rows as up rows, not ",
              weight.size(0), " in all");
  return {.outputs = weight.size(0), .inputs = weight.size(1), .epilogue = epilogue, .int8 = int8};
}

struct LinearSizes {
  int64_t rows, inputs, outputs, columns;  // outputs: rows of the weight before packing; columns: of the result
  Epilogue epilogue;
  bool int8;
};

struct PackedShape {
  int64_t outputs, inputs;
};

// packed_shape: the back end's function from a weight's sizes to its packed shape. Packed int8 weights are bytes.
inline LinearSizes check_linear(const Tensor& x, const Tensor& weight, int64_t out_features, std::string_view epilogue_name,
                                const OptionalTensor& bias, const OptionalTensor& residual, RunDtypes dtypes,
                                PackedShape packed_shape(const WeightSizes&)) {
  const Epilogue epilogue = parse_epilogue(epilogue_name);
  const bool gated = epilogue == Epilogue::kSiluMul;
  check_run_dtype(x, "x", dtypes);
  check(x, "x", x.scalar_type(), {-1, -1});
  const int64_t rows = x.size(0), inputs = x.size(1), columns = gated ? out_features / 2 : out_features;
  TORCH_CHECK(out_features > 0 && (!gated || out_features % 2 == 0), "out_features must be positive", gated ? " and even" : "",
              ", not ", out_features);
  const bool int8 = weight.scalar_type() == at::kByte;
  const PackedShape packed = packed_shape({.outputs = out_features, .inputs = inputs, .epilogue = epilogue, .int8 = int8});
  TORCH_CHECK(weight.dim() == 2 && weight.size(0) == packed.outputs && weight.size(1) == packed.inputs,
              "weight must come from pack_weight with out_features = ", out_features, ", in = ", inputs,
              " and the same epilogue; its shape is ", weight.sizes());
  check(weight, "weight", int8 ? at::kByte : x.scalar_type(), {-1, -1});
  check(bias, "bias", x.scalar_type(), {out_features});
  check(residual, "residual", x.scalar_type(), {rows, columns});
  TORCH_CHECK(residual.has_value() == (epilogue == Epilogue::kAdd), "residual goes with the epilogue add, and only with it");
  return {.rows = rows, .inputs = inputs, .outputs = out_features, .columns = columns, .epilogue = epilogue, .int8 = int8};
}

inline LinearSizes check_logits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out,
                                RunDtypes dtypes, PackedShape packed_shape(const WeightSizes&)) {
  check(out, "out", at::kFloat, {-1, -1});
  TORCH_CHECK(out.size(1) > 0, "out must have at least one column");
  const LinearSizes sizes = check_linear(x, weight, out.size(1), "none", bias, std::nullopt, dtypes, packed_shape);
  check(out, "out", at::kFloat, {sizes.rows, sizes.columns});
  return sizes;
}

struct RopeSizes {
  int64_t rows, query_heads, kv_heads, head_dim, table_rows, kv_slots;
};

inline RopeSizes check_rope_store_kv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin,
                                     const Tensor& positions, const Tensor& kv_slots, const Tensor& k_cache,
                                     const Tensor& v_cache, const OptionalTensor& q_norm, const OptionalTensor& k_norm,
                                     RunDtypes dtypes) {
  check_run_dtype(q, "q", dtypes);
  const at::ScalarType dtype = q.scalar_type();
  check(q, "q", dtype, {-1, -1, -1}, 2);
  const int64_t rows = q.size(0), query_heads = q.size(1), head_dim = q.size(2);
  TORCH_CHECK(head_dim > 0 && head_dim % 2 == 0, "q must have an even head size, not ", head_dim);
  check(k, "k", dtype, {rows, -1, head_dim}, 2);
  const int64_t kv_heads = k.size(1);
  check(v, "v", dtype, {rows, kv_heads, head_dim}, 2);
  check(cos_sin, "cos_sin", at::kFloat, {-1, head_dim});
  check(positions, "positions", at::kInt, {rows});
  check(kv_slots, "kv_slots", at::kInt, {rows});
  check(k_cache, "k_cache", dtype, {-1, -1, kv_heads, head_dim});
  check(v_cache, "v_cache", dtype, {k_cache.size(0), k_cache.size(1), kv_heads, head_dim});
  check(q_norm, "q_norm", dtype, {head_dim});
  check(k_norm, "k_norm", dtype, {head_dim});
  TORCH_CHECK(q_norm.has_value() == k_norm.has_value(), "q_norm and k_norm go together");
  return {.rows = rows,
          .query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .table_rows = cos_sin.size(0),
          .kv_slots = k_cache.size(0) * k_cache.size(1)};
}

struct AttentionSizes {
  int64_t rows, query_heads, kv_heads, head_dim, pages, page_size, sequences, table_width, suffix_width;
};

// max_group: the most query heads that may share a K/V head.
inline AttentionSizes check_paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const Tensor& page_table, const Tensor& row_seq, const Tensor& prefix_len,
                                            const OptionalTensor& suffix_slots, const OptionalTensor& suffix_len,
                                            RunDtypes dtypes, int64_t max_group) {
  check_run_dtype(q, "q", dtypes);
  check(q, "q", q.scalar_type(), {-1, -1, -1}, 2);
  const int64_t rows = q.size(0), query_heads = q.size(1), head_dim = q.size(2);
  check(k_cache, "k_cache", q.scalar_type(), {-1, -1, -1, head_dim});
  const int64_t pages = k_cache.size(0), page_size = k_cache.size(1), kv_heads = k_cache.size(2);
  check(v_cache, "v_cache", q.scalar_type(), {pages, page_size, kv_heads, head_dim});
  check(page_table, "page_table", at::kInt, {-1, -1});
  check(row_seq, "row_seq", at::kInt, {rows});
  check(prefix_len, "prefix_len", at::kInt, {rows});
  check(suffix_slots, "suffix_slots", at::kInt, {rows, -1});
  check(suffix_len, "suffix_len", at::kInt, {rows});
  TORCH_CHECK(suffix_slots.has_value() == suffix_len.has_value(), "suffix_slots and suffix_len go together");
  TORCH_CHECK(kv_heads > 0 && query_heads % kv_heads == 0 && query_heads / kv_heads <= max_group,
              "q must have a multiple of k_cache's ", kv_heads, " heads, at most ", max_group, " times, not ", query_heads);
  return {.rows = rows,
          .query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .pages = pages,
          .page_size = page_size,
          .sequences = page_table.size(0),
          .table_width = page_table.size(1),
          .suffix_width = suffix_slots.has_value() ? suffix_slots->size(1) : 0};
}

struct MoveSizes {
  int64_t planes, kv_slots, slot_bytes, page_size;  // a plane is one layer's K or V
  int64_t slots, table_width, nodes;
};

inline MoveSizes check_move_kv(const Tensor& kv, const Tensor& page_table, const Tensor& length, const Tensor& path,
                               RunDtypes dtypes) {
  check_run_dtype(kv, "kv", dtypes);
  check(kv, "kv", kv.scalar_type(), {-1, 2, -1, -1, -1, -1});
  check(page_table, "page_table", at::kInt, {-1, -1});
  const int64_t slots = page_table.size(0);
  check(length, "length", at::kInt, {slots}, 0);
  check(path, "path", at::kInt, {slots, -1});
  return {.planes = 2 * kv.size(0),
          .kv_slots = kv.size(2) * kv.size(3),
          .slot_bytes = kv.size(4) * kv.size(5) * static_cast<int64_t>(kv.element_size()),
          .page_size = kv.size(3),
          .slots = slots,
          .table_width = page_table.size(1),
          .nodes = path.size(1)};
}

// The rows of a forward pass ----------------------------------------------------------------------------------------------------

struct TreeRowsSizes {
  int64_t slots, rows, capacity, nodes, table_width;
};

inline TreeRowsSizes check_tree_rows(const Tensor& tokens, const Tensor& spec_tokens, const Tensor& length,
                                     const Tensor& page_table, const OptionalTensor& parent, int64_t page_size, int64_t first,
                                     int64_t count, int64_t depth) {
  check(tokens, "tokens", at::kInt, {-1, -1});
  const int64_t slots = tokens.size(0);
  check(spec_tokens, "spec_tokens", at::kInt, {slots, -1});
  const int64_t nodes = spec_tokens.size(1) + 1;
  check(length, "length", at::kInt, {slots});
  check(page_table, "page_table", at::kInt, {slots, -1});
  check(parent, "parent", at::kInt, {nodes});
  TORCH_CHECK(tokens.size(1) > 0, "tokens must have at least one column");
  TORCH_CHECK(page_size > 0, "page_size must be positive, not ", page_size);
  TORCH_CHECK(first >= -1, "first must be at least -1, the token before the root, not ", first);
  TORCH_CHECK(count >= 0 && count <= nodes - first, "count must be 0 to ", nodes - first, ", the nodes from first on, not ",
              count);
  TORCH_CHECK(parent.has_value() ? depth >= 1 && depth < nodes : depth == 0, "depth must be ",
              parent.has_value() ? "1 to the number of proposals for a tree, not " : "0 without parent, not ", depth);
  return {.slots = slots, .rows = slots * count, .capacity = tokens.size(1), .nodes = nodes, .table_width = page_table.size(1)};
}

struct BranchRowsSizes {
  int64_t slots, budget, lookahead;
};

inline BranchRowsSizes check_branch_rows(const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens,
                                         const Tensor& length, const Tensor& scratch, int64_t step) {
  check(guess, "guess", at::kInt, {-1, -1});
  const int64_t slots = guess.size(0), budget = guess.size(1);
  check(guess_k, "guess_k", at::kInt, {slots, budget});
  check(branch_tokens, "branch_tokens", at::kInt, {slots, budget, -1});
  const int64_t lookahead = branch_tokens.size(2);
  check(length, "length", at::kInt, {slots});
  check(scratch, "scratch", at::kInt, {slots, budget, lookahead});
  TORCH_CHECK(step >= 0 && step < lookahead, "step must be 0 to ", lookahead - 1, ", not ", step);
  return {.slots = slots, .budget = budget, .lookahead = lookahead};
}

// Distributions, and drawing from them ----------------------------------------------------------------------------------------

struct LogitsSizes {
  int64_t rows, vocabulary, rows_a_slot;
};

// The rows of a slot are adjacent, and every slot has as many.
inline int64_t rows_a_slot(int64_t rows, int64_t slots, const char* name) {
  TORCH_CHECK(slots > 0 ? rows % slots == 0 : rows == 0, "logits must have as many rows for each of the ", slots, " slots of ",
              name, ", not ", rows, " in all");
  return slots > 0 ? rows / slots : 0;
}

inline LogitsSizes check_row_stats(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                                   const Tensor& min_p, int64_t saguaro_f, double saguaro_c) {
  check(logits, "logits", at::kFloat, {-1, -1});
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  check(temperature, "temperature", at::kFloat, {-1});
  const int64_t slots = temperature.size(0);
  check(top_k, "top_k", at::kInt, {slots});
  check(top_p, "top_p", at::kFloat, {slots});
  check(min_p, "min_p", at::kFloat, {slots});
  TORCH_CHECK(vocabulary > 0 && vocabulary < (1 << 24), "logits must have 1 to 2^24 - 1 columns, not ", vocabulary);
  TORCH_CHECK(saguaro_c > 0.0 && saguaro_c <= 1.0, "saguaro_c must be in (0, 1], not ", saguaro_c);
  TORCH_CHECK(saguaro_f >= 0, "saguaro_f must not be negative, not ", saguaro_f);
  return {.rows = rows, .vocabulary = vocabulary, .rows_a_slot = rows_a_slot(rows, slots, "temperature")};
}

inline LogitsSizes check_sample(const Tensor& logits, const Tensor& stats, const Tensor& seed, const Tensor& position,
                                const Tensor& tokens, int64_t m, const OptionalTensor& id_of, const OptionalTensor& missed,
                                const OptionalTensor& parity, const OptionalTensor& q_logits, const OptionalTensor& q_stats,
                                const OptionalTensor& spec_len, const OptionalTensor& bad, int64_t drafted) {
  check(logits, "logits", at::kFloat, {-1, -1});
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  check(stats, "stats", at::kFloat, {rows, kStats});
  check(seed, "seed", at::kLong, {-1});
  const int64_t slots = seed.size(0), of_a_slot = rows_a_slot(rows, slots, "seed");
  check(position, "position", at::kInt, {rows}, 0);
  TORCH_CHECK(m >= 1, "m must be at least 1, not ", m);
  check(tokens, "tokens", at::kInt, {slots, of_a_slot * m}, 0);
  check(id_of, "id_of", at::kInt, {vocabulary});
  check(missed, "missed", at::kByte, {slots});
  check(parity, "parity", at::kInt, {1});
  check(q_logits, "q_logits", at::kFloat, {slots, 2, of_a_slot, vocabulary}, 1);
  check(q_stats, "q_stats", at::kFloat, {slots, 2, of_a_slot, kStats}, 1);
  TORCH_CHECK(q_logits.has_value() == q_stats.has_value() && (!q_logits.has_value() || parity.has_value()),
              "q_logits, q_stats and parity go together");
  check(spec_len, "spec_len", at::kInt, {slots});
  TORCH_CHECK(spec_len.has_value() == bad.has_value(), "spec_len and bad go together");
  check(bad, "bad", at::kInt, {slots});
  TORCH_CHECK(drafted >= 0, "drafted must not be negative, not ", drafted);
  TORCH_CHECK(vocabulary > 0, "logits must have at least one column");
  return {.rows = rows, .vocabulary = vocabulary, .rows_a_slot = of_a_slot};
}

// The speculation cache and its verification ----------------------------------------------------------------------------------

struct ForkSizes {
  int64_t slots, lookahead, vocabulary, budget;
};

inline ForkSizes check_fork(const Tensor& logits, const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& table,
                            const Tensor& hit, const Tensor& guess, const Tensor& guess_k, const OptionalTensor& id_of) {
  check(logits, "logits", at::kFloat, {-1, -1, -1});
  const int64_t slots = logits.size(0), width = logits.size(1), vocabulary = logits.size(2);
  TORCH_CHECK(width >= 1, "logits must have K + 1 rows a slot, not none");
  check(spec_tokens, "spec_tokens", at::kInt, {slots, width - 1});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(table, "table", at::kInt, {2, width, width});
  check(hit, "hit", at::kByte, {slots});
  check(guess, "guess", at::kInt, {slots, -1});
  check(guess_k, "guess_k", at::kInt, {slots, guess.size(1)});
  check(id_of, "id_of", at::kInt, {vocabulary});
  return {.slots = slots, .lookahead = width - 1, .vocabulary = vocabulary, .budget = guess.size(1)};
}

constexpr int64_t kMaxNodes = 64;  // of a tree of proposals, the root included

struct VerifySizes {
  int64_t slots, nodes, vocabulary, draft_vocabulary, addresses, q_rows, eos_count, capacity;
  int64_t parent_stride, newest;  // newest: tokens in a report
};

inline VerifySizes check_verify(const Tensor& p_logits, const Tensor& p_stats, const OptionalTensor& q_logits,
                                const OptionalTensor& q_stats, const Tensor& q_address, const OptionalTensor& draft_id_of,
                                const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& hit, const Tensor& bad,
                                const OptionalTensor& parent, const Tensor& parity, const Tensor& seed, const Tensor& eos,
                                const Tensor& ignore_eos, const Tensor& max_length, const Tensor& tokens, const Tensor& length,
                                const Tensor& last_token, const Tensor& done, const Tensor& outcome, const Tensor& path,
                                const Tensor& report) {
  check(p_logits, "p_logits", at::kFloat, {-1, -1, -1});
  const int64_t slots = p_logits.size(0), nodes = p_logits.size(1), vocabulary = p_logits.size(2);
  TORCH_CHECK(nodes >= 1 && nodes <= kMaxNodes, "p_logits must have 1 to ", kMaxNodes, " rows a slot, not ", nodes);
  check(p_stats, "p_stats", at::kFloat, {slots, nodes, kStats});
  TORCH_CHECK(q_logits.has_value() == q_stats.has_value(), "q_logits and q_stats go together");
  check(q_logits, "q_logits", at::kFloat, {slots, 2, -1, -1, -1});
  const int64_t addresses = q_logits.has_value() ? q_logits->size(2) : 0;
  const int64_t q_rows = q_logits.has_value() ? q_logits->size(3) : 0;
  const int64_t draft_vocabulary = q_logits.has_value() ? q_logits->size(4) : vocabulary;
  TORCH_CHECK(!q_logits.has_value() || q_rows >= nodes - 1, "q_logits must have a row for every node with children: at least ",
              nodes - 1, ", not ", q_rows);
  check(q_stats, "q_stats", at::kFloat, {slots, 2, addresses, q_rows, kStats});
  check(q_address, "q_address", at::kInt, {slots});
  check(draft_id_of, "draft_id_of", at::kInt, {vocabulary});
  check(spec_tokens, "spec_tokens", at::kInt, {slots, nodes - 1});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(hit, "hit", at::kByte, {slots});
  check(bad, "bad", at::kInt, {slots});
  check(parent, "parent", at::kInt, {slots, nodes}, 1);
  check(parity, "parity", at::kInt, {1});
  check(seed, "seed", at::kLong, {slots});
  check(eos, "eos", at::kInt, {-1});
  check(ignore_eos, "ignore_eos", at::kByte, {slots});
  check(max_length, "max_length", at::kInt, {slots});
  check(tokens, "tokens", at::kInt, {slots, -1});
  check(length, "length", at::kInt, {slots});
  check(last_token, "last_token", at::kInt, {slots});
  check(done, "done", at::kByte, {slots});
  check(outcome, "outcome", at::kInt, {slots, 2, 2});
  check(path, "path", at::kInt, {slots, nodes});
  check(report, "report", at::kInt, {slots, -1});
  TORCH_CHECK(report.size(1) > kReportColumns && report.size(1) <= kReportColumns + kMaxNodes, "report must have ",
              kReportColumns + 1, " to ", kReportColumns + kMaxNodes, " columns, not ", report.size(1));
  return {.slots = slots,
          .nodes = nodes,
          .vocabulary = vocabulary,
          .draft_vocabulary = draft_vocabulary,
          .addresses = addresses,
          .q_rows = q_rows,
          .eos_count = eos.size(0),
          .capacity = tokens.size(1),
          .parent_stride = parent.has_value() ? parent->stride(0) : 0,
          .newest = report.size(1) - kReportColumns};
}

struct RankSizes {
  int64_t slots, nodes, vocabulary, target_vocabulary;
};

inline void check_draft_context(int64_t draft_context) {
  TORCH_CHECK(draft_context > 0 && draft_context <= std::numeric_limits<int32_t>::max() - 2,
              "draft_context must be positive and below 2^31 - 2, not ", draft_context);
}

inline RankSizes check_rank_outcomes(const Tensor& logits, const Tensor& outcome, const Tensor& parity,
                                     const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& hit, const Tensor& done,
                                     const Tensor& length, const OptionalTensor& draft_id_of, int64_t budget,
                                     int64_t draft_context, const Tensor& seen) {
  check(logits, "logits", at::kFloat, {-1, -1, -1});
  const int64_t slots = logits.size(0), nodes = logits.size(1), vocabulary = logits.size(2);
  TORCH_CHECK(nodes >= 1, "logits must have K + 1 rows a slot, not none");
  TORCH_CHECK(vocabulary > 0, "logits must have at least one column");
  check(outcome, "outcome", at::kInt, {slots, 2, 2});
  check(parity, "parity", at::kInt, {1});
  check(spec_tokens, "spec_tokens", at::kInt, {slots, nodes - 1});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(hit, "hit", at::kByte, {slots});
  check(done, "done", at::kByte, {slots});
  check(draft_id_of, "draft_id_of", at::kInt, {-1});
  check(length, "length", at::kInt, {slots});
  check(seen, "seen", at::kInt, {slots, kSeenColumns});
  check_draft_context(draft_context);
  TORCH_CHECK(budget >= 0, "budget must not be negative, not ", budget);
  return {.slots = slots,
          .nodes = nodes,
          .vocabulary = vocabulary,
          .target_vocabulary = draft_id_of.has_value() ? draft_id_of->size(0) : vocabulary};
}

struct LookupSizes {
  int64_t slots, budget, lookahead, depth;  // depth: levels of a tree
};

inline LookupSizes check_cache_lookup(const Tensor& outcome, const Tensor& guess, const Tensor& guess_k,
                                      const Tensor& branch_tokens, const Tensor& length, const Tensor& last_token,
                                      const Tensor& max_length, const Tensor& done, const OptionalTensor& nodes_within,
                                      int64_t draft_context, const Tensor& parity, const Tensor& draft_length,
                                      const Tensor& draft_last_token, const Tensor& spec_tokens, const Tensor& spec_len,
                                      const Tensor& hit, const Tensor& missed, const Tensor& q_address, const Tensor& bad) {
  check(outcome, "outcome", at::kInt, {-1, 2, 2});
  const int64_t slots = outcome.size(0);
  check(guess, "guess", at::kInt, {slots, -1});
  const int64_t budget = guess.size(1);
  check(guess_k, "guess_k", at::kInt, {slots, budget});
  check(branch_tokens, "branch_tokens", at::kInt, {slots, budget, -1});
  const int64_t lookahead = branch_tokens.size(2);
  check(length, "length", at::kInt, {slots});
  check(last_token, "last_token", at::kInt, {slots});
  check(max_length, "max_length", at::kInt, {slots});
  check(done, "done", at::kByte, {slots});
  check(nodes_within, "nodes_within", at::kInt, {-1});
  TORCH_CHECK(!nodes_within.has_value() || nodes_within->size(0) > 0,
              "nodes_within must have an entry for every depth, not none");
  check_draft_context(draft_context);
  check(parity, "parity", at::kInt, {1});
  check(draft_length, "draft_length", at::kInt, {slots});
  check(draft_last_token, "draft_last_token", at::kInt, {slots});
  check(spec_tokens, "spec_tokens", at::kInt, {slots, lookahead});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(hit, "hit", at::kByte, {slots});
  check(missed, "missed", at::kByte, {slots});
  check(q_address, "q_address", at::kInt, {slots});
  check(bad, "bad", at::kInt, {slots});
  return {.slots = slots,
          .budget = budget,
          .lookahead = lookahead,
          .depth = nodes_within.has_value() ? nodes_within->size(0) - 1 : lookahead};
}

struct NgramSizes {
  int64_t slots, capacity, lookahead;
};

inline NgramSizes check_ngram_propose(const Tensor& tokens, const Tensor& length, const Tensor& missed,
                                      const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& q_address) {
  check(tokens, "tokens", at::kInt, {-1, -1});
  const int64_t slots = tokens.size(0);
  check(length, "length", at::kInt, {slots});
  check(missed, "missed", at::kByte, {slots});
  check(spec_tokens, "spec_tokens", at::kInt, {slots, -1});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(q_address, "q_address", at::kInt, {slots});
  return {.slots = slots, .capacity = tokens.size(1), .lookahead = spec_tokens.size(1)};
}

}  // namespace ssd
