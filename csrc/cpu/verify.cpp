// verify: the exact walk down a chain or tree of proposals, and the commit of its outcome (Leviathan et al. 2023; for siblings,
// sampling without replacement). A chain is a tree whose nodes have one child each.

#include <algorithm>
#include <limits>
#include <vector>

#include "../arguments.h"
#include "../common/distribution.h"
#include "../common/philox.h"
#include "parallel.h"
#include "program.h"
#include "simd/kernels.h"

namespace ssd {
namespace {

// The proposals of one sequence, and the distributions of target and draft.
struct Walk {
  const float* p_logits;       // [nodes, vocabulary]
  const float* p_stats;        // [nodes, kStats]
  const float* q_logits;       // [q_rows, draft vocabulary]; null if the proposals were not drawn from a distribution
  const float* q_stats;        // [q_rows, kStats]
  const int32_t* draft_id_of;  // [vocabulary]; null if target and draft have the same ids
  const int32_t* tokens;       // [nodes - 1]; the token of node i is at i - 1
  const int32_t* parent;       // [nodes]; null for a chain
  int64_t nodes;               // the root, and the proposals of this sequence
  int64_t vocabulary, draft_vocabulary;
  int64_t seed;
  int32_t position;  // the root's
};

struct Verdict {
  std::vector<int64_t> path;  // the root, then the accepted nodes
  int32_t token;              // the recovery or bonus token; kNoToken if the target's row for it is bad
};

// p and q at one node, after the rejections so far: the residual of p, and the distribution that the next sibling was drawn
// from. They become vectors over the target's vocabulary only when the first proposal is rejected.
class Residual {
 public:
  Residual(const Walk& walk, int64_t node) : walk_(walk), node_(node) {}

  float target(int32_t token) {
    if (!p_.empty()) return p_[static_cast<size_t>(token)];
    return one(walk_.p_logits + node_ * walk_.vocabulary, walk_.p_stats + node_ * kStats, token);
  }

  float draft(int32_t token) {
    if (walk_.q_logits == nullptr) return 1.0f;  // not drawn from a distribution: q is a point mass on each proposal in turn
    if (!q_.empty()) return q_[static_cast<size_t>(token)];
    const int32_t column = draft_column(token);
    return column < 0 ? 0.0f : one(q_row(), walk_.q_stats + node_ * kStats, column);
  }

  // p becomes norm(max(0, p - q)), unless rounding leaves nothing of it: then p stays. q loses the token and is renormalised.
  void reject(int32_t token) {
    if (p_.empty()) materialise_p();
    if (q_.empty() && walk_.q_logits != nullptr) materialise_q();
    std::vector<float> rest = p_;
    if (walk_.q_logits == nullptr) {
      rest[static_cast<size_t>(token)] = 0.0f;
    } else {
      for (size_t i = 0; i < rest.size(); ++i) rest[i] = residual(p_[i], q_[i]);
      q_[static_cast<size_t>(token)] = 0.0f;
      normalise(q_);
    }
    if (normalise(rest)) p_ = std::move(rest);
  }

  // Draws from the residual of p.
  int32_t draw(int32_t position) {
    if (p_.empty()) materialise_p();  // no proposal was rejected here: a leaf has no row of q
    std::vector<float> times(p_.size());
    kernels().race_times(p_.data(), walk_.vocabulary, walk_.seed, position, static_cast<uint32_t>(Purpose::kResample),
                         times.data());
    return static_cast<int32_t>(std::min_element(times.begin(), times.end()) - times.begin());
  }

 private:
  const float* q_row() const { return walk_.q_logits + node_ * walk_.draft_vocabulary; }
  int32_t draft_column(int32_t token) const {
    const int32_t column = walk_.draft_id_of != nullptr ? walk_.draft_id_of[token] : token;
    return column < walk_.draft_vocabulary ? column : -1;
  }

  static float one(const float* logits, const float* stats, int32_t id) {
    float value;
    kernels().probabilities(logits + id, stats, id, 1, &value);
    return value;
  }

  static bool normalise(std::vector<float>& weights) {
    const double total = kernels().sum(weights.data(), static_cast<int64_t>(weights.size()));
    if (!(total > 0.0)) return false;
    const float scale = static_cast<float>(1.0 / total);
    for (float& weight : weights) weight *= scale;
    return true;
  }

  void materialise_p() {
    p_.resize(static_cast<size_t>(walk_.vocabulary));
    kernels().probabilities(walk_.p_logits + node_ * walk_.vocabulary, walk_.p_stats + node_ * kStats, 0, walk_.vocabulary,
                            p_.data());
  }

  void materialise_q() {
    std::vector<float> drawn(static_cast<size_t>(walk_.draft_vocabulary));
    kernels().probabilities(q_row(), walk_.q_stats + node_ * kStats, 0, walk_.draft_vocabulary, drawn.data());
    q_.resize(p_.size());
    for (int32_t id = 0; id < static_cast<int32_t>(q_.size()); ++id) {
      const int32_t column = draft_column(id);
      q_[static_cast<size_t>(id)] = column < 0 ? 0.0f : drawn[static_cast<size_t>(column)];
    }
  }

  const Walk& walk_;
  int64_t node_;
  std::vector<float> p_, q_;
};

Verdict walk_down(const Walk& walk) {
  Verdict verdict{{0}, 0};
  for (int64_t node = 0;;) {
    const int32_t position = walk.position + static_cast<int32_t>(verdict.path.size());
    const float* p_stats = walk.p_stats + node * kStats;
    if (is_bad(p_stats)) {
      verdict.token = kNoToken;
      return verdict;
    }
    const auto is_child = [&](int64_t i) { return walk.parent != nullptr ? walk.parent[i] == node : i == node + 1; };
    Residual left(walk, node);
    int64_t accepted = -1;
    int32_t sibling = 0;
    for (int64_t child = node + 1; child < walk.nodes && accepted < 0; ++child) {
      const int32_t token = walk.tokens[child - 1];
      if (!is_child(child) || token < 0) continue;
      if (is_greedy(p_stats)) {
        if (static_cast<float>(token) == p_stats[kCutId]) accepted = child;
        continue;
      }
      const float u = uniform(draw_words(walk.seed, position, Purpose::kAccept, sibling, 0).word[0]);
      if (accepts(u, left.target(token), left.draft(token))) {
        accepted = child;
      } else {
        left.reject(token);
      }
      ++sibling;
    }
    if (accepted < 0) {
      verdict.token = is_greedy(p_stats) ? static_cast<int32_t>(p_stats[kCutId]) : left.draw(position);
      return verdict;
    }
    verdict.path.push_back(accepted);
    node = accepted;
  }
}

void verify(const Tensor& p_logits, const Tensor& p_stats, const OptionalTensor& q_logits, const OptionalTensor& q_stats,
            const Tensor& q_address, const OptionalTensor& draft_id_of, const Tensor& spec_tokens, const Tensor& spec_len,
            const Tensor& hit, const Tensor& bad, const OptionalTensor& parent, const Tensor& parity, const Tensor& seed,
            const Tensor& eos, const Tensor& ignore_eos, const Tensor& max_length, const Tensor& tokens, const Tensor& length,
            const Tensor& last_token, const Tensor& done, const Tensor& outcome, const Tensor& path, const Tensor& report) {
  const VerifySizes sizes =
      check_verify(p_logits, p_stats, q_logits, q_stats, q_address, draft_id_of, spec_tokens, spec_len, hit, bad, parent,
                   parity, seed, eos, ignore_eos, max_length, tokens, length, last_token, done, outcome, path, report);
  const int64_t slots = sizes.slots, nodes = sizes.nodes, vocabulary = sizes.vocabulary, capacity = sizes.capacity;
  const int64_t draft_vocabulary = sizes.draft_vocabulary, addresses = sizes.addresses, q_rows = sizes.q_rows;
  run_or_record([=] {
    const int64_t half = parity.const_data_ptr<int32_t>()[0];
    TORCH_CHECK(half == 0 || half == 1, "parity must be 0 or 1, not ", half);

    const auto report_slot = [&](int64_t s, const int32_t* decided) {
      int32_t* row = report.mutable_data_ptr<int32_t>() + s * (kReportColumns + sizes.newest);
      const int32_t n = length.const_data_ptr<int32_t>()[s];
      row[kReportLength] = n;
      row[kReportDone] = done.const_data_ptr<uint8_t>()[s];
      row[kReportAccepted] = decided[0];
      row[kReportProposed] = spec_len.const_data_ptr<int32_t>()[s];
      row[kReportHit] = hit.const_data_ptr<uint8_t>()[s];
      row[kReportBad] = bad.const_data_ptr<int32_t>()[s];
      for (int64_t i = 0; i < sizes.newest; ++i)
        row[kReportColumns + i] =
            tokens.const_data_ptr<int32_t>()[s * capacity + newest_position(n, i, sizes.newest, capacity)];
    };
    parallel_for(slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        int32_t* result = outcome.mutable_data_ptr<int32_t>() + (s * 2 + half) * 2;
        result[0] = result[1] = -1;
        std::fill_n(path.mutable_data_ptr<int32_t>() + s * nodes, nodes, -1);
        if (done.const_data_ptr<uint8_t>()[s] != 0) {
          report_slot(s, result);
          continue;
        }
        const int64_t proposed = spec_len.const_data_ptr<int32_t>()[s];
        const int32_t address = q_address.const_data_ptr<int32_t>()[s];
        const int32_t n = length.const_data_ptr<int32_t>()[s];
        TORCH_CHECK(proposed >= 0 && proposed < nodes, "spec_len[", s, "] is ", proposed, ", outside 0..", nodes - 1);
        TORCH_CHECK(!q_logits.has_value() || address < addresses, "q_address[", s, "] is ", address, ", outside -1..",
                    addresses - 1);
        TORCH_CHECK(n >= 0, "length[", s, "] is ", n);
        const int32_t* proposals = spec_tokens.const_data_ptr<int32_t>() + s * (nodes - 1);
        for (int64_t i = 0; i < proposed; ++i)
          TORCH_CHECK(proposals[i] < vocabulary, "spec_tokens[", s, ", ", i, "] is ", proposals[i],
                      ", outside the target's vocabulary of ", vocabulary);
        const bool drawn = q_logits.has_value() && address >= 0;
        const int64_t q_row = drawn ? ((s * 2 + half) * addresses + address) * q_rows : 0;
        const Verdict verdict = walk_down({
            .p_logits = p_logits.const_data_ptr<float>() + s * nodes * vocabulary,
            .p_stats = p_stats.const_data_ptr<float>() + s * nodes * kStats,
            .q_logits = drawn ? q_logits->const_data_ptr<float>() + q_row * draft_vocabulary : nullptr,
            .q_stats = drawn ? q_stats->const_data_ptr<float>() + q_row * kStats : nullptr,
            .draft_id_of = pointer_or_null<int32_t>(draft_id_of),
            .tokens = proposals,
            .parent = parent.has_value() ? parent->const_data_ptr<int32_t>() + s * sizes.parent_stride : nullptr,
            .nodes = proposed + 1,
            .vocabulary = vocabulary,
            .draft_vocabulary = draft_vocabulary,
            .seed = seed.const_data_ptr<int64_t>()[s],
            .position = n,
        });

        const int64_t accepted = static_cast<int64_t>(verdict.path.size()) - 1;
        TORCH_CHECK(n + 1 + accepted < capacity, "tokens has room for ", capacity, " a slot, too few for slot ", s,
                    " of length ", n, " and ", accepted + 1, " more");
        result[0] = static_cast<int32_t>(accepted);
        result[1] = verdict.token;
        const int64_t decided = accepted + (verdict.token == kNoToken ? 0 : 1);
        const int32_t* end_ids = eos.const_data_ptr<int32_t>();
        const bool ends = ignore_eos.const_data_ptr<uint8_t>()[s] == 0;
        const int64_t room = max_length.const_data_ptr<int32_t>()[s] - (n + 1);
        int32_t* sequence = tokens.mutable_data_ptr<int32_t>() + s * capacity;
        bool finished = false;
        int64_t committed = 0;
        for (; committed < decided && !finished; ++committed) {
          const int64_t next = committed < accepted ? verdict.path[static_cast<size_t>(committed) + 1] : 0;
          const int32_t token = committed < accepted ? proposals[next - 1] : verdict.token;
          sequence[n + 1 + committed] = token;
          path.mutable_data_ptr<int32_t>()[s * nodes + committed] =
              static_cast<int32_t>(verdict.path[static_cast<size_t>(committed)]);
          finished = (ends && std::find(end_ids, end_ids + sizes.eos_count, token) != end_ids + sizes.eos_count) ||
                     committed + 1 >= room;
        }
        length.mutable_data_ptr<int32_t>()[s] = n + static_cast<int32_t>(committed);
        if (committed > 0) last_token.mutable_data_ptr<int32_t>()[s] = sequence[n + committed];
        done.mutable_data_ptr<uint8_t>()[s] = finished ? kFinished : decided <= accepted ? kFailed : kRunning;
        report_slot(s, result);
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("verify", verify); }

}  // namespace ssd
