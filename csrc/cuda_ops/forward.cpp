// The ops of the forward pass on CUDA: embed, rms_norm, pack_weight, linear, logits, rope_store_kv, paged_attention, move_kv,
// and its rows: tree_rows, branch_rows.

#include <algorithm>
#include <tuple>

#include "call.h"

namespace ssd {
namespace {

constexpr std::array kHeadDims{64, 80, 96, 128, 256};  // head sizes that paged_attention is compiled for
constexpr int64_t kMaxRotatedDim = 256;
constexpr int64_t kMaxGroup = 16;       // most query heads that share a K/V head
constexpr int64_t kInputsTogether = 8;  // elements in 16 bytes

Tensor embed(const Tensor& ids, const Tensor& table) {
  const EmbedSizes sizes = check_embed(ids, table, kCudaDtypes);
  const Call call{{"ids", ids}, {"table", table}};
  Tensor out = call.empty({sizes.rows, sizes.width}, table.scalar_type());
  C10_CUDA_CHECK(cuda::embed({.ids = ids.const_data_ptr<int32_t>(),
                              .table = table.const_data_ptr(),
                              .out = out.mutable_data_ptr(),
                              .rows = int32(sizes.rows),
                              .vocabulary = int32(sizes.vocabulary),
                              .width = int32(sizes.width)},
                             call.stream()));
  return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const NormSizes sizes = check_rms_norm(x, weight, kCudaDtypes);
  const Call call{{"x", x}, {"weight", weight}};
  Tensor out = call.empty({sizes.rows, sizes.width}, x.scalar_type());
  C10_CUDA_CHECK(cuda::rms_norm({.x = x.const_data_ptr(),
                                 .weight = weight.const_data_ptr(),
                                 .out = out.mutable_data_ptr(),
                                 .x_stride = x.stride(0),
                                 .rows = int32(sizes.rows),
                                 .width = int32(sizes.width),
                                 .eps = static_cast<float>(eps)},
                                call.stream()));
  return out;
}

cuda::Epilogue on_device(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kAdd: return cuda::Epilogue::kAdd;
    case Epilogue::kSiluMul: return cuda::Epilogue::kSiluMul;
    default: return cuda::Epilogue::kNone;
  }
}

// An int8 weight is [packed outputs, packed inputs + 4] bytes: its elements, and then a float scale for each output.
PackedShape packed_shape(const WeightSizes& sizes) {
  const auto bytes_of_scale = static_cast<int64_t>(sizes.int8 ? sizeof(float) : 0);
  return {.outputs = cuda::packed_outputs(sizes.outputs), .inputs = cuda::packed_inputs(sizes.inputs) + bytes_of_scale};
}

void check_inputs(int64_t inputs, const char* name) {
  TORCH_CHECK(inputs % kInputsTogether == 0, name, " must have a multiple of ", kInputsTogether, " inputs on CUDA, not ",
              inputs);
}

Tensor pack_weight(const Tensor& weight, std::string_view epilogue_name, const OptionalTensor& scale) {
  constexpr std::array kWeightDtypes{at::kBFloat16, at::kChar};
  const WeightSizes sizes = check_pack_weight(weight, epilogue_name, scale, kWeightDtypes);
  check_inputs(sizes.inputs, "weight");
  check_aligned(weight, "weight");
  const Call call{{"weight", weight}, {"scale", scale}};
  const PackedShape shape = packed_shape(sizes);
  Tensor packed = call.empty({shape.outputs, shape.inputs}, sizes.int8 ? at::kByte : weight.scalar_type());
  C10_CUDA_CHECK(cuda::pack_weight({.weight = weight.const_data_ptr(),
                                    .scale = pointer_or_null<float>(scale),
                                    .packed = packed.mutable_data_ptr(),
                                    .outputs = int32(sizes.outputs),
                                    .inputs = int32(sizes.inputs),
                                    .epilogue = on_device(sizes.epilogue)},
                                   call.stream()));
  // `linear` may read weights while the kernel ahead of it still runs, so packing ends before anybody has the packed weight.
  if (!is_capturing(call.stream())) C10_CUDA_CHECK(cudaStreamSynchronize(call.stream()));
  return packed;
}

// y: [rows, columns], run dtype or float32.
void multiply(const Call& call, const Tensor& x, const Tensor& weight, const LinearSizes& sizes, const OptionalTensor& bias,
              const OptionalTensor& residual, const Tensor& y, bool float32_out) {
  check_inputs(sizes.inputs, "x");
  check_aligned(x, "x");
  check_aligned(weight, "weight");
  C10_CUDA_CHECK(cuda::linear({.x = x.const_data_ptr(),
                               .weight = weight.const_data_ptr(),
                               .bias = raw_or_null(bias),
                               .residual = raw_or_null(residual),
                               .y = y.mutable_data_ptr(),
                               .rows = int32(sizes.rows),
                               .inputs = int32(sizes.inputs),
                               .outputs = int32(sizes.outputs),
                               .epilogue = on_device(sizes.epilogue),
                               .int8 = sizes.int8,
                               .float32_out = float32_out},
                              call.stream()));
}

Tensor linear(const Tensor& x, const Tensor& weight, int64_t out_features, std::string_view epilogue_name,
              const OptionalTensor& bias, const OptionalTensor& residual, bool float32_out) {
  const LinearSizes sizes = check_linear(x, weight, out_features, epilogue_name, bias, residual, kCudaDtypes, packed_shape);
  const Call call{{"x", x}, {"weight", weight}, {"bias", bias}, {"residual", residual}};
  Tensor y = call.empty({sizes.rows, sizes.columns}, float32_out ? at::kFloat : x.scalar_type());
  multiply(call, x, weight, sizes, bias, residual, y, float32_out);
  return y;
}

void logits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  const LinearSizes sizes = check_logits(x, weight, bias, out, kCudaDtypes, packed_shape);
  const Call call{{"x", x}, {"weight", weight}, {"bias", bias}, {"out", out}};
  multiply(call, x, weight, sizes, bias, std::nullopt, out, true);
}

void rope_store_kv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& positions,
                   const Tensor& kv_slots, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& q_norm,
                   const OptionalTensor& k_norm, double eps) {
  const RopeSizes sizes =
      check_rope_store_kv(q, k, v, cos_sin, positions, kv_slots, k_cache, v_cache, q_norm, k_norm, kCudaDtypes);
  TORCH_CHECK(sizes.head_dim <= kMaxRotatedDim, "q must have a head size up to ", kMaxRotatedDim, " on CUDA, not ",
              sizes.head_dim);
  const Call call{{"q", q},
                  {"k", k},
                  {"v", v},
                  {"cos_sin", cos_sin},
                  {"positions", positions},
                  {"kv_slots", kv_slots},
                  {"k_cache", k_cache},
                  {"v_cache", v_cache},
                  {"q_norm", q_norm},
                  {"k_norm", k_norm}};
  C10_CUDA_CHECK(cuda::rope_store_kv({.q = q.mutable_data_ptr(),
                                      .k = k.const_data_ptr(),
                                      .v = v.const_data_ptr(),
                                      .cos_sin = cos_sin.const_data_ptr<float>(),
                                      .positions = positions.const_data_ptr<int32_t>(),
                                      .kv_slots = kv_slots.const_data_ptr<int32_t>(),
                                      .q_norm = raw_or_null(q_norm),
                                      .k_norm = raw_or_null(k_norm),
                                      .k_cache = k_cache.mutable_data_ptr(),
                                      .v_cache = v_cache.mutable_data_ptr(),
                                      .q_stride = q.stride(0),
                                      .k_stride = k.stride(0),
                                      .v_stride = v.stride(0),
                                      .rows = int32(sizes.rows),
                                      .query_heads = int32(sizes.query_heads),
                                      .kv_heads = int32(sizes.kv_heads),
                                      .head_dim = int32(sizes.head_dim),
                                      .eps = static_cast<float>(eps)},
                                     call.stream()));
}

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                       const Tensor& row_seq, const Tensor& prefix_len, double scale, const OptionalTensor& suffix_slots,
                       const OptionalTensor& suffix_len) {
  const AttentionSizes sizes = check_paged_attention(q, k_cache, v_cache, page_table, row_seq, prefix_len, suffix_slots,
                                                     suffix_len, kCudaDtypes, kMaxGroup);
  TORCH_CHECK(std::find(kHeadDims.begin(), kHeadDims.end(), sizes.head_dim) != kHeadDims.end(),
              "q must have a head size of 64, 80, 96, 128 or 256 on CUDA, not ", sizes.head_dim);
  TORCH_CHECK(sizes.rows <= 1 || q.stride(0) % kInputsTogether == 0, "q's rows must lie a multiple of ", kInputsTogether,
              " elements apart on CUDA, not ", q.stride(0));
  TORCH_CHECK(scale > 0.0, "scale must be positive on CUDA, not ", scale);
  check_aligned(q, "q");
  check_aligned(k_cache, "k_cache");
  check_aligned(v_cache, "v_cache");
  const Call call{{"q", q},
                  {"k_cache", k_cache},
                  {"v_cache", v_cache},
                  {"page_table", page_table},
                  {"row_seq", row_seq},
                  {"prefix_len", prefix_len},
                  {"suffix_slots", suffix_slots},
                  {"suffix_len", suffix_len}};
  Tensor out = call.empty({sizes.rows, sizes.query_heads, sizes.head_dim}, q.scalar_type());
  cuda::PagedAttentionParams params{.q = q.const_data_ptr(),
                                    .k_cache = k_cache.const_data_ptr(),
                                    .v_cache = v_cache.const_data_ptr(),
                                    .page_table = page_table.const_data_ptr<int32_t>(),
                                    .row_seq = row_seq.const_data_ptr<int32_t>(),
                                    .prefix_len = prefix_len.const_data_ptr<int32_t>(),
                                    .suffix_slots = pointer_or_null<int32_t>(suffix_slots),
                                    .suffix_len = pointer_or_null<int32_t>(suffix_len),
                                    .out = out.mutable_data_ptr(),
                                    .workspace = nullptr,
                                    .arrivals = nullptr,
                                    .q_stride = q.stride(0),
                                    .rows = int32(sizes.rows),
                                    .sequences = int32(sizes.sequences),
                                    .query_heads = int32(sizes.query_heads),
                                    .kv_heads = int32(sizes.kv_heads),
                                    .head_dim = int32(sizes.head_dim),
                                    .page_size = int32(sizes.page_size),
                                    .table_width = int32(sizes.table_width),
                                    .suffix_width = int32(sizes.suffix_width),
                                    .scale = static_cast<float>(scale)};
  params.arrivals = call.arrivals(cuda::paged_attention_arrivals(params));
  const Tensor workspace = call.workspace(cuda::paged_attention_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::paged_attention(params, call.stream()));
  return out;
}

void move_kv(const Tensor& kv, const Tensor& page_table, const Tensor& length, const Tensor& path) {
  const MoveSizes sizes = check_move_kv(kv, page_table, length, path, kCudaDtypes);
  TORCH_CHECK(sizes.slot_bytes % 16 == 0, "kv must have KV slots of a multiple of 16 bytes on CUDA, not ", sizes.slot_bytes);
  check_aligned(kv, "kv");
  const Call call{{"kv", kv}, {"page_table", page_table}, {"length", length}, {"path", path}};
  C10_CUDA_CHECK(cuda::move_kv({.kv = kv.mutable_data_ptr(),
                                .page_table = page_table.const_data_ptr<int32_t>(),
                                .length = length.const_data_ptr<int32_t>(),
                                .path = path.const_data_ptr<int32_t>(),
                                .length_stride = length.stride(0),
                                .planes = sizes.planes,
                                .kv_slots = sizes.kv_slots,
                                .row_bytes = sizes.slot_bytes,
                                .slots = int32(sizes.slots),
                                .nodes = int32(sizes.nodes),
                                .table_width = int32(sizes.table_width),
                                .page_size = int32(sizes.page_size)},
                               call.stream()));
}

using RowTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RowTensors empty_rows(const Call& call, int64_t rows, int64_t width) {
  const auto column = [&] { return call.empty({rows}, at::kInt); };
  return {column(), column(), column(), column(), column(), call.empty({rows, width}, at::kInt), column()};
}

cuda::RowTables tables_of(const RowTensors& rows) {
  return std::apply([](const auto&... columns) { return cuda::RowTables{columns.template mutable_data_ptr<int32_t>()...}; },
                    rows);
}

RowTensors tree_rows(const Tensor& tokens, const Tensor& spec_tokens, const Tensor& length, const Tensor& page_table,
                     const OptionalTensor& parent, int64_t page_size, int64_t first, int64_t count, int64_t depth) {
  const TreeRowsSizes sizes = check_tree_rows(tokens, spec_tokens, length, page_table, parent, page_size, first, count, depth);
  const Call call{
      {"tokens", tokens}, {"spec_tokens", spec_tokens}, {"length", length}, {"page_table", page_table}, {"parent", parent}};
  RowTensors rows = empty_rows(call, sizes.rows, depth);
  C10_CUDA_CHECK(cuda::tree_rows({.tokens = tokens.const_data_ptr<int32_t>(),
                                  .spec_tokens = spec_tokens.const_data_ptr<int32_t>(),
                                  .length = length.const_data_ptr<int32_t>(),
                                  .page_table = page_table.const_data_ptr<int32_t>(),
                                  .parent = pointer_or_null<int32_t>(parent),
                                  .rows = tables_of(rows),
                                  .slots = int32(sizes.slots),
                                  .capacity = int32(sizes.capacity),
                                  .nodes = int32(sizes.nodes),
                                  .table_width = int32(sizes.table_width),
                                  .page_size = int32(page_size),
                                  .first = int32(first),
                                  .count = int32(count),
                                  .depth = int32(depth)},
                                 call.stream()));
  return rows;
}

RowTensors branch_rows(const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens, const Tensor& length,
                       const Tensor& scratch, int64_t step) {
  const BranchRowsSizes sizes = check_branch_rows(guess, guess_k, branch_tokens, length, scratch, step);
  const Call call{
      {"guess", guess}, {"guess_k", guess_k}, {"branch_tokens", branch_tokens}, {"length", length}, {"scratch", scratch}};
  RowTensors rows = empty_rows(call, sizes.slots * sizes.budget, step + 1);
  C10_CUDA_CHECK(cuda::branch_rows({.guess = guess.const_data_ptr<int32_t>(),
                                    .guess_k = guess_k.const_data_ptr<int32_t>(),
                                    .branch_tokens = branch_tokens.const_data_ptr<int32_t>(),
                                    .length = length.const_data_ptr<int32_t>(),
                                    .scratch = scratch.const_data_ptr<int32_t>(),
                                    .rows = tables_of(rows),
                                    .slots = int32(sizes.slots),
                                    .budget = int32(sizes.budget),
                                    .lookahead = int32(sizes.lookahead),
                                    .step = int32(step)},
                                   call.stream()));
  return rows;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CUDA, m) {
  m.impl("embed", embed);
  m.impl("rms_norm", rms_norm);
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
  m.impl("logits", logits);
  m.impl("rope_store_kv", rope_store_kv);
  m.impl("paged_attention", paged_attention);
  m.impl("move_kv", move_kv);
  m.impl("tree_rows", tree_rows);
  m.impl("branch_rows", branch_rows);
}

}  // namespace ssd
