// The schema of every op. Both back ends (csrc/cpu, csrc/cuda_ops) implement all of them. ssd/ops.py documents each argument:
// shapes, dtypes, errors, and the section of the method that the op comes from.
//
// Conventions: the first dimension of a table is the slot, so that the first S slots of any table are one contiguous block.
// Ids, lengths and slots are int32, seeds are int64, statistics and logits are float32. (x!) marks an argument that the op
// writes.

#include <torch/library.h>

TORCH_LIBRARY(ssd, m) {
  // The forward pass. Rows of one sequence are adjacent.
  m.def("pack_weight(Tensor weight, str epilogue, Tensor? scale=None) -> Tensor");
  m.def("embed(Tensor ids, Tensor table) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, int out_features, str epilogue, Tensor? bias=None, Tensor? residual=None, "
      "bool float32_out=False) -> Tensor");
  m.def("logits(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def(
      "rope_store_kv(Tensor(a!) q, Tensor k, Tensor v, Tensor cos_sin, Tensor positions, Tensor kv_slots, "
      "Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor? q_norm=None, Tensor? k_norm=None, float eps=0.0) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor row_seq, Tensor prefix_len, "
      "float scale, Tensor? suffix_slots=None, Tensor? suffix_len=None) -> Tensor");
  m.def("move_kv(Tensor(a!) kv, Tensor page_table, Tensor length, Tensor path) -> ()");

  // The rows of a forward pass. Both return ids, positions, kv_slots, row_seq, prefix_len, suffix_slots and suffix_len.
  m.def(
      "tree_rows(Tensor tokens, Tensor spec_tokens, Tensor length, Tensor page_table, Tensor? parent, int page_size, int first, "
      "int count, int depth=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "branch_rows(Tensor guess, Tensor guess_k, Tensor branch_tokens, Tensor length, Tensor scratch, int step) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // Distributions, and drawing from them.
  m.def(
      "row_stats(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, int saguaro_f=0, "
      "float saguaro_c=1.0) -> Tensor");
  m.def(
      "sample(Tensor logits, Tensor stats, Tensor seed, Tensor position, Tensor(a!) tokens, int m=1, Tensor? id_of=None, "
      "Tensor? missed=None, Tensor? parity=None, bool next_half=False, Tensor(b!)? q_logits=None, "
      "Tensor(c!)? q_stats=None, Tensor(d!)? spec_len=None, Tensor(e!)? bad=None, int drafted=0) -> ()");

  // The speculation cache and its verification.
  m.def(
      "fork(Tensor logits, Tensor spec_tokens, Tensor spec_len, Tensor table, Tensor hit, Tensor(a!) guess, "
      "Tensor(b!) guess_k, Tensor? id_of=None) -> ()");
  m.def(
      "verify(Tensor p_logits, Tensor p_stats, Tensor? q_logits, Tensor? q_stats, Tensor q_address, Tensor? draft_id_of, "
      "Tensor spec_tokens, Tensor spec_len, Tensor hit, Tensor bad, Tensor? parent, Tensor parity, Tensor seed, Tensor eos, "
      "Tensor ignore_eos, Tensor max_length, Tensor(a!) tokens, Tensor(b!) length, Tensor(c!) last_token, Tensor(d!) done, "
      "Tensor(e!) outcome, Tensor(f!) path, Tensor(g!) report) -> ()");
  m.def(
      "rank_outcomes(Tensor logits, Tensor outcome, Tensor parity, Tensor spec_tokens, Tensor spec_len, Tensor hit, "
      "Tensor done, Tensor length, Tensor? draft_id_of, int budget, int draft_context, Tensor(a!) seen) -> ()");
  m.def(
      "cache_lookup(Tensor outcome, Tensor guess, Tensor guess_k, Tensor branch_tokens, Tensor length, Tensor last_token, "
      "Tensor max_length, Tensor done, Tensor? nodes_within, int draft_context, Tensor(a!) parity, Tensor(b!) draft_length, "
      "Tensor(c!) draft_last_token, Tensor(d!) spec_tokens, Tensor(e!) spec_len, Tensor(f!) hit, Tensor(g!) missed, "
      "Tensor(h!) q_address, Tensor(i!) bad) -> ()");
  m.def(
      "ngram_propose(Tensor tokens, Tensor length, Tensor missed, Tensor(a!) spec_tokens, Tensor(b!) spec_len, "
      "Tensor(c!) q_address) -> ()");
}
