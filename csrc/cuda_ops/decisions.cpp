// The ops on CUDA that decide tokens: distributions and drawing from them (row_stats, sample), and the speculation cache with
// its verification (fork, verify, rank_outcomes, cache_lookup, ngram_propose).

#include "call.h"

namespace ssd {
namespace {

Tensor row_stats(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& min_p,
                 int64_t saguaro_f, double saguaro_c) {
  const LogitsSizes sizes = check_row_stats(logits, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c);
  const Call call{{"logits", logits}, {"temperature", temperature}, {"top_k", top_k}, {"top_p", top_p}, {"min_p", min_p}};
  Tensor stats = call.empty({sizes.rows, kStats}, at::kFloat);
  cuda::RowStatsParams params{.logits = logits.const_data_ptr<float>(),
                              .temperature = temperature.const_data_ptr<float>(),
                              .top_k = top_k.const_data_ptr<int32_t>(),
                              .top_p = top_p.const_data_ptr<float>(),
                              .min_p = min_p.const_data_ptr<float>(),
                              .stats = stats.mutable_data_ptr<float>(),
                              .workspace = nullptr,
                              .arrivals = call.arrivals(sizes.rows),
                              .rows = int32(sizes.rows),
                              .rows_a_slot = int32(sizes.rows_a_slot),
                              .vocabulary = int32(sizes.vocabulary),
                              .saguaro_f = int32(std::min(saguaro_f, sizes.vocabulary)),
                              .saguaro_c = static_cast<float>(saguaro_c)};
  const Tensor workspace = call.workspace(cuda::row_stats_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::row_stats(params, call.stream()));
  return stats;
}

void sample(const Tensor& logits, const Tensor& stats, const Tensor& seed, const Tensor& position, const Tensor& tokens,
            int64_t m, const OptionalTensor& id_of, const OptionalTensor& missed, const OptionalTensor& parity, bool next_half,
            const OptionalTensor& q_logits, const OptionalTensor& q_stats, const OptionalTensor& spec_len,
            const OptionalTensor& bad, int64_t drafted) {
  const LogitsSizes sizes =
      check_sample(logits, stats, seed, position, tokens, m, id_of, missed, parity, q_logits, q_stats, spec_len, bad, drafted);
  const Call call{{"logits", logits},     {"stats", stats},     {"seed", seed},         {"position", position},
                  {"tokens", tokens},     {"id_of", id_of},     {"missed", missed},     {"parity", parity},
                  {"q_logits", q_logits}, {"q_stats", q_stats}, {"spec_len", spec_len}, {"bad", bad}};
  cuda::SampleParams params{.logits = logits.const_data_ptr<float>(),
                            .stats = stats.const_data_ptr<float>(),
                            .seed = seed.const_data_ptr<int64_t>(),
                            .position = position.const_data_ptr<int32_t>(),
                            .id_of = pointer_or_null<int32_t>(id_of),
                            .missed = pointer_or_null<uint8_t>(missed),
                            .parity = pointer_or_null<int32_t>(parity),
                            .spec_len = spec_len.has_value() ? spec_len->mutable_data_ptr<int32_t>() : nullptr,
                            .bad = bad.has_value() ? bad->mutable_data_ptr<int32_t>() : nullptr,
                            .tokens = tokens.mutable_data_ptr<int32_t>(),
                            .q_logits = nullptr,
                            .q_stats = nullptr,
                            .workspace = nullptr,
                            .arrivals = call.arrivals(sizes.rows),
                            .position_stride = position.stride(0),
                            .tokens_strides = {tokens.stride(0), tokens.stride(1)},
                            .q_logits_strides = {},
                            .q_stats_strides = {},
                            .next_half = next_half,
                            .rows = int32(sizes.rows),
                            .rows_a_slot = int32(sizes.rows_a_slot),
                            .vocabulary = int32(sizes.vocabulary),
                            .m = int32(m),
                            .drafted = int32(drafted)};
  if (q_logits.has_value()) {
    params.q_logits = q_logits->mutable_data_ptr<float>();
    params.q_stats = q_stats->mutable_data_ptr<float>();
    for (int d = 0; d < 3; ++d) {
      params.q_logits_strides[d] = q_logits->stride(d);
      params.q_stats_strides[d] = q_stats->stride(d);
    }
  }
  const Tensor workspace = call.workspace(cuda::sample_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::sample(params, call.stream()));
}

void fork(const Tensor& logits, const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& table, const Tensor& hit,
          const Tensor& guess, const Tensor& guess_k, const OptionalTensor& id_of) {
  const ForkSizes sizes = check_fork(logits, spec_tokens, spec_len, table, hit, guess, guess_k, id_of);
  const Call call{{"logits", logits}, {"spec_tokens", spec_tokens}, {"spec_len", spec_len}, {"table", table}, {"hit", hit},
                  {"guess", guess},   {"guess_k", guess_k},         {"id_of", id_of}};
  cuda::ForkParams params{.logits = logits.const_data_ptr<float>(),
                          .spec_tokens = spec_tokens.const_data_ptr<int32_t>(),
                          .spec_len = spec_len.const_data_ptr<int32_t>(),
                          .table = table.const_data_ptr<int32_t>(),
                          .hit = hit.const_data_ptr<uint8_t>(),
                          .id_of = pointer_or_null<int32_t>(id_of),
                          .guess = guess.mutable_data_ptr<int32_t>(),
                          .guess_k = guess_k.mutable_data_ptr<int32_t>(),
                          .workspace = nullptr,
                          .arrivals = call.arrivals(sizes.slots * (sizes.lookahead + 1)),
                          .slots = int32(sizes.slots),
                          .lookahead = int32(sizes.lookahead),
                          .vocabulary = int32(sizes.vocabulary),
                          .budget = int32(sizes.budget)};
  const Tensor workspace = call.workspace(cuda::fork_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::fork(params, call.stream()));
}

void verify(const Tensor& p_logits, const Tensor& p_stats, const OptionalTensor& q_logits, const OptionalTensor& q_stats,
            const Tensor& q_address, const OptionalTensor& draft_id_of, const Tensor& spec_tokens, const Tensor& spec_len,
            const Tensor& hit, const Tensor& bad, const OptionalTensor& parent, const Tensor& parity, const Tensor& seed,
            const Tensor& eos, const Tensor& ignore_eos, const Tensor& max_length, const Tensor& tokens, const Tensor& length,
            const Tensor& last_token, const Tensor& done, const Tensor& outcome, const Tensor& path, const Tensor& report) {
  const VerifySizes sizes =
      check_verify(p_logits, p_stats, q_logits, q_stats, q_address, draft_id_of, spec_tokens, spec_len, hit, bad, parent,
                   parity, seed, eos, ignore_eos, max_length, tokens, length, last_token, done, outcome, path, report);
  const Call call{{"p_logits", p_logits},
                  {"p_stats", p_stats},
                  {"q_logits", q_logits},
                  {"q_stats", q_stats},
                  {"q_address", q_address},
                  {"draft_id_of", draft_id_of},
                  {"spec_tokens", spec_tokens},
                  {"spec_len", spec_len},
                  {"hit", hit},
                  {"bad", bad},
                  {"parent", parent},
                  {"parity", parity},
                  {"seed", seed},
                  {"eos", eos},
                  {"ignore_eos", ignore_eos},
                  {"max_length", max_length},
                  {"tokens", tokens},
                  {"length", length},
                  {"last_token", last_token},
                  {"done", done},
                  {"outcome", outcome},
                  {"path", path},
                  {"report", report}};
  cuda::VerifyParams params{.p_logits = p_logits.const_data_ptr<float>(),
                            .p_stats = p_stats.const_data_ptr<float>(),
                            .q_logits = pointer_or_null<float>(q_logits),
                            .q_stats = pointer_or_null<float>(q_stats),
                            .q_address = q_address.const_data_ptr<int32_t>(),
                            .draft_id_of = pointer_or_null<int32_t>(draft_id_of),
                            .spec_tokens = spec_tokens.const_data_ptr<int32_t>(),
                            .spec_len = spec_len.const_data_ptr<int32_t>(),
                            .hit = hit.const_data_ptr<uint8_t>(),
                            .bad = bad.const_data_ptr<int32_t>(),
                            .parent = pointer_or_null<int32_t>(parent),
                            .parity = parity.const_data_ptr<int32_t>(),
                            .seed = seed.const_data_ptr<int64_t>(),
                            .eos = eos.const_data_ptr<int32_t>(),
                            .ignore_eos = ignore_eos.const_data_ptr<uint8_t>(),
                            .max_length = max_length.const_data_ptr<int32_t>(),
                            .tokens = tokens.mutable_data_ptr<int32_t>(),
                            .length = length.mutable_data_ptr<int32_t>(),
                            .last_token = last_token.mutable_data_ptr<int32_t>(),
                            .done = done.mutable_data_ptr<uint8_t>(),
                            .outcome = outcome.mutable_data_ptr<int32_t>(),
                            .path = path.mutable_data_ptr<int32_t>(),
                            .report = report.mutable_data_ptr<int32_t>(),
                            .workspace = nullptr,
                            .arrivals = call.arrivals(sizes.slots),
                            .parent_stride = sizes.parent_stride,
                            .slots = int32(sizes.slots),
                            .nodes = int32(sizes.nodes),
                            .newest = int32(sizes.newest),
                            .vocabulary = int32(sizes.vocabulary),
                            .draft_vocabulary = int32(sizes.draft_vocabulary),
                            .addresses = int32(sizes.addresses),
                            .q_rows = int32(sizes.q_rows),
                            .eos_count = int32(sizes.eos_count),
                            .capacity = int32(sizes.capacity)};
  const Tensor workspace = call.workspace(cuda::verify_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::verify(params, call.stream()));
}

void rank_outcomes(const Tensor& logits, const Tensor& outcome, const Tensor& parity, const Tensor& spec_tokens,
                   const Tensor& spec_len, const Tensor& hit, const Tensor& done, const Tensor& length,
                   const OptionalTensor& draft_id_of, int64_t budget, int64_t draft_context, const Tensor& seen) {
  const RankSizes sizes = check_rank_outcomes(logits, outcome, parity, spec_tokens, spec_len, hit, done, length, draft_id_of,
                                              budget, draft_context, seen);
  const Call call{{"logits", logits},           {"outcome", outcome}, {"parity", parity}, {"spec_tokens", spec_tokens},
                  {"spec_len", spec_len},       {"hit", hit},         {"done", done},     {"length", length},
                  {"draft_id_of", draft_id_of}, {"seen", seen}};
  cuda::RankOutcomesParams params{.logits = logits.const_data_ptr<float>(),
                                  .outcome = outcome.const_data_ptr<int32_t>(),
                                  .parity = parity.const_data_ptr<int32_t>(),
                                  .spec_tokens = spec_tokens.const_data_ptr<int32_t>(),
                                  .spec_len = spec_len.const_data_ptr<int32_t>(),
                                  .hit = hit.const_data_ptr<uint8_t>(),
                                  .done = done.const_data_ptr<uint8_t>(),
                                  .length = length.const_data_ptr<int32_t>(),
                                  .draft_id_of = pointer_or_null<int32_t>(draft_id_of),
                                  .seen = seen.mutable_data_ptr<int32_t>(),
                                  .workspace = nullptr,
                                  .arrivals = call.arrivals(sizes.slots),
                                  .slots = int32(sizes.slots),
                                  .nodes = int32(sizes.nodes),
                                  .vocabulary = int32(sizes.vocabulary),
                                  .target_vocabulary = int32(sizes.target_vocabulary),
                                  .budget = int32(budget),
                                  .draft_context = int32(draft_context)};
  const Tensor workspace = call.workspace(cuda::rank_outcomes_workspace(params));
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::rank_outcomes(params, call.stream()));
}

void cache_lookup(const Tensor& outcome, const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens,
                  const Tensor& length, const Tensor& last_token, const Tensor& max_length, const Tensor& done,
                  const OptionalTensor& nodes_within, int64_t draft_context, const Tensor& parity, const Tensor& draft_length,
                  const Tensor& draft_last_token, const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& hit,
                  const Tensor& missed, const Tensor& q_address, const Tensor& bad) {
  const LookupSizes sizes = check_cache_lookup(outcome, guess, guess_k, branch_tokens, length, last_token, max_length, done,
                                               nodes_within, draft_context, parity, draft_length, draft_last_token, spec_tokens,
                                               spec_len, hit, missed, q_address, bad);
  const Call call{{"outcome", outcome},
                  {"guess", guess},
                  {"guess_k", guess_k},
                  {"branch_tokens", branch_tokens},
                  {"length", length},
                  {"last_token", last_token},
                  {"max_length", max_length},
                  {"done", done},
                  {"nodes_within", nodes_within},
                  {"parity", parity},
                  {"draft_length", draft_length},
                  {"draft_last_token", draft_last_token},
                  {"spec_tokens", spec_tokens},
                  {"spec_len", spec_len},
                  {"hit", hit},
                  {"missed", missed},
                  {"q_address", q_address},
                  {"bad", bad}};
  C10_CUDA_CHECK(cuda::cache_lookup({.outcome = outcome.const_data_ptr<int32_t>(),
                                     .guess = guess.const_data_ptr<int32_t>(),
                                     .guess_k = guess_k.const_data_ptr<int32_t>(),
                                     .branch_tokens = branch_tokens.const_data_ptr<int32_t>(),
                                     .length = length.const_data_ptr<int32_t>(),
                                     .last_token = last_token.const_data_ptr<int32_t>(),
                                     .max_length = max_length.const_data_ptr<int32_t>(),
                                     .done = done.const_data_ptr<uint8_t>(),
                                     .nodes_within = pointer_or_null<int32_t>(nodes_within),
                                     .parity = parity.mutable_data_ptr<int32_t>(),
                                     .draft_length = draft_length.mutable_data_ptr<int32_t>(),
                                     .draft_last_token = draft_last_token.mutable_data_ptr<int32_t>(),
                                     .spec_tokens = spec_tokens.mutable_data_ptr<int32_t>(),
                                     .spec_len = spec_len.mutable_data_ptr<int32_t>(),
                                     .hit = hit.mutable_data_ptr<uint8_t>(),
                                     .missed = missed.mutable_data_ptr<uint8_t>(),
                                     .q_address = q_address.mutable_data_ptr<int32_t>(),
                                     .bad = bad.mutable_data_ptr<int32_t>(),
                                     .slots = int32(sizes.slots),
                                     .budget = int32(sizes.budget),
                                     .lookahead = int32(sizes.lookahead),
                                     .depth = int32(sizes.depth),
                                     .draft_context = int32(draft_context)},
                                    call.stream()));
}

void ngram_propose(const Tensor& tokens, const Tensor& length, const Tensor& missed, const Tensor& spec_tokens,
                   const Tensor& spec_len, const Tensor& q_address) {
  const NgramSizes sizes = check_ngram_propose(tokens, length, missed, spec_tokens, spec_len, q_address);
  const Call call{{"tokens", tokens},           {"length", length},     {"missed", missed},
                  {"spec_tokens", spec_tokens}, {"spec_len", spec_len}, {"q_address", q_address}};
  C10_CUDA_CHECK(cuda::ngram_propose({.tokens = tokens.const_data_ptr<int32_t>(),
                                      .length = length.const_data_ptr<int32_t>(),
                                      .missed = missed.const_data_ptr<uint8_t>(),
                                      .spec_tokens = spec_tokens.mutable_data_ptr<int32_t>(),
                                      .spec_len = spec_len.mutable_data_ptr<int32_t>(),
                                      .q_address = q_address.mutable_data_ptr<int32_t>(),
                                      .slots = int32(sizes.slots),
                                      .capacity = int32(sizes.capacity),
                                      .lookahead = int32(sizes.lookahead)},
                                     call.stream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CUDA, m) {
  m.impl("row_stats", row_stats);
  m.impl("sample", sample);
  m.impl("fork", fork);
  m.impl("verify", verify);
  m.impl("rank_outcomes", rank_outcomes);
  m.impl("cache_lookup", cache_lookup);
  m.impl("ngram_propose", ngram_propose);
}

}  // namespace ssd
