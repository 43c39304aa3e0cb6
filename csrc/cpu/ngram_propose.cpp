// ngram_propose: the speculation that costs no forward pass, for when one missing sequence would stall a whole batch
// (arXiv 2603.03251, Theorem 17): what followed the longest earlier match of the sequence's own ending.

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../arguments.h"
#include "parallel.h"

namespace ssd {
namespace {

struct Match {
  int64_t tokens = 0;  // 0: none
  int64_t end = 0;     // the place that resembles the sequence's last
};

// In linear time: the Z-algorithm, read backwards. agreeing[d] is by how many tokens the text that ends d places before the last
// agrees with the sequence's ending. What lies within the match that reaches furthest back has been seen once already, in the
// ending itself, and is not compared again.
Match longest_match(const int32_t* sequence, int64_t last, std::vector<int64_t>& agreeing) {
  agreeing.assign(static_cast<size_t>(last) + 1, 0);
  Match best;
  int64_t from = 0, reached = 0;  // distances that the furthest match covers: from <= distance < reached
  for (int64_t distance = 1; distance <= last; ++distance) {
    int64_t count = distance < reached ? std::min(agreeing[static_cast<size_t>(distance - from)], reached - distance) : 0;
    while (distance + count <= last && sequence[last - distance - count] == sequence[last - count]) ++count;
    agreeing[static_cast<size_t>(distance)] = count;
    if (distance + count > reached) from = distance, reached = distance + count;
    if (count > best.tokens) best = {count, last - distance};  // of equally long ones the most recent
  }
  return best;
}

std::tuple<Tensor, Tensor> ngram_propose(const Tensor& tokens, const Tensor& length, int64_t lookahead) {
  const auto [slots, places] = check_ngram_propose(tokens, length, lookahead);
  Tensor spec_tokens = at::zeros({slots, lookahead}, length.options());
  Tensor spec_len = at::zeros({slots}, length.options());
  parallel_for(slots, 1, [&, places = places](int64_t begin, int64_t end) {
    std::vector<int64_t> scratch;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t last = length.const_data_ptr<int32_t>()[s];
      TORCH_CHECK(last >= 0 && last < places, "length[", s, "] is ", last, ", outside 0..", places - 1);
      const int32_t* sequence = tokens.const_data_ptr<int32_t>() + s * places;
      const Match match = longest_match(sequence, last, scratch);
      const int64_t count = match.tokens == 0 ? 0 : std::min(lookahead, last - match.end);
      std::copy_n(sequence + match.end + 1, count, spec_tokens.mutable_data_ptr<int32_t>() + s * lookahead);
      spec_len.mutable_data_ptr<int32_t>()[s] = static_cast<int32_t>(count);
    }
  });
  return {spec_tokens, spec_len};
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("ngram_propose", ngram_propose); }

}  // namespace ssd
