// ngram_propose: finds the longest earlier match of the sequence's own ending and proposes the tokens that followed it. This
// costs no forward pass, so that one sequence that missed does not stall a whole batch (arXiv 2603.03251, Theorem 17).

#include <algorithm>
#include <vector>

#include "../arguments.h"
#include "parallel.h"
#include "program.h"

namespace ssd {
namespace {

struct Match {
  int64_t tokens = 0;  // 0: none
  int64_t end = 0;     // position of the match's last token
};

// The Z-algorithm on the reversed sequence, which takes linear time. agreeing[d] is the length of the match that ends d
// positions before the last one. Inside the match that reaches furthest back, the text repeats the ending, so earlier results
// tell how long a match is, and no token there is compared again.
Match longest_match(const int32_t* sequence, int64_t last, std::vector<int64_t>& agreeing) {
  agreeing.assign(static_cast<size_t>(last) + 1, 0);
  Match best;
  int64_t from = 0, reached = 0;  // the match that reaches furthest back covers from <= distance < reached
  for (int64_t distance = 1; distance <= last; ++distance) {
    int64_t count = distance < reached ? std::min(agreeing[static_cast<size_t>(distance - from)], reached - distance) : 0;
    while (distance + count <= last && sequence[last - distance - count] == sequence[last - count]) ++count;
    agreeing[static_cast<size_t>(distance)] = count;
    if (distance + count > reached) from = distance, reached = distance + count;
    if (count > best.tokens) best = {count, last - distance};  // the most recent of the longest
  }
  return best;
}

void ngram_propose(const Tensor& tokens, const Tensor& length, const Tensor& missed, const Tensor& spec_tokens,
                   const Tensor& spec_len, const Tensor& q_address) {
  const NgramSizes sizes = check_ngram_propose(tokens, length, missed, spec_tokens, spec_len, q_address);
  const int64_t capacity = sizes.capacity, lookahead = sizes.lookahead;
  run_or_record([=] {
    parallel_for(sizes.slots, 1, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> scratch;
      for (int64_t s = begin; s < end; ++s) {
        if (missed.const_data_ptr<uint8_t>()[s] == 0) continue;
        const int64_t last = length.const_data_ptr<int32_t>()[s];
        TORCH_CHECK(last >= 0 && last < capacity, "length[", s, "] is ", last, ", outside 0..", capacity - 1);
        const int32_t* sequence = tokens.const_data_ptr<int32_t>() + s * capacity;
        const Match match = longest_match(sequence, last, scratch);
        const int64_t count = match.tokens == 0 ? 0 : std::min(lookahead, last - match.end);
        int32_t* speculation = spec_tokens.mutable_data_ptr<int32_t>() + s * lookahead;
        std::fill_n(std::copy_n(sequence + match.end + 1, count, speculation), lookahead - count, 0);
        int32_t& room = spec_len.mutable_data_ptr<int32_t>()[s];
        room = static_cast<int32_t>(std::min<int64_t>(room, count));
        q_address.mutable_data_ptr<int32_t>()[s] = -1;
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("ngram_propose", ngram_propose); }

}  // namespace ssd
