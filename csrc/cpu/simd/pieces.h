// Loops over pieces of a constant size, so that a piece's sums stay in registers.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace ssd::SSD_ISA {
namespace {

// Calls f with an integral constant: count, which is 1..MOST.
template <int MOST, typename F>
inline void with_count(int count, const F& f) {
  if constexpr (MOST > 1) {
    if (count < MOST) return with_count<MOST - 1>(count, f);
  }
  f(std::integral_constant<int, MOST>());
}

// Calls f(begin, constant size) for pieces of nearly equal size, at most MOST, that cover [begin, end).
template <int MOST, typename F>
inline void in_pieces(int begin, int end, const F& f) {
  for (int left = (end - begin + MOST - 1) / MOST; left > 0; --left) {
    const int size = (end - begin + left - 1) / left;
    with_count<MOST>(size, [&](auto constant) { f(begin, constant); });
    begin += size;
  }
}

}  // namespace
}  // namespace ssd::SSD_ISA
