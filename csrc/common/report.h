// The report of a slot after a verification, in one row of int32: these columns, then the newest tokens of the sequence in
// order. ssd/decoding/round.py reads it.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ssd {

enum ReportColumn : int {
  kReportLength = 0,    // tokens whose K/V is stored
  kReportDone = 1,      // see Done (distribution.h)
  kReportAccepted = 2,  // accepted proposals, -1 for a slot that was done before
  kReportProposed = 3,  // proposals
  kReportHit = 4,       // 1: the proposals came from the speculation cache
  kReportBad = 5,       // 1: logits of the draft that are not finite shortened the proposals or took guesses away
  kReportColumns = 6,
};

// The position of the i-th of the `count` newest tokens of a sequence whose last token is at `length`. A short sequence has
// fewer: its first token takes their place.
SSD_HOST_DEVICE int64_t newest_position(int64_t length, int64_t i, int64_t count, int64_t capacity) {
  const int64_t position = length + 1 + i - count;
  return position < 0 ? 0 : position < capacity ? position : capacity - 1;
}

// What a look-up saw of an outcome, in one row of int32; all -1 without one. ssd/decoding/round.py reads it.
enum SeenColumn : int {
  kSeenHit = 0,      // 1: the verified proposals came from the speculation cache
  kSeenSpecLen = 1,  // their number
  kSeenNode = 2,     // the last accepted node
  kSeenRank = 3,     // of the next token, among the draft's guesses for the node
  kSeenColumns = 4,
};

}  // namespace ssd
