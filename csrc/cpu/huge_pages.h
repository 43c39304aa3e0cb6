// Memory for weights on large pages. A decode step streams every weight once, and with 4 KiB pages it spends a third of its
// time walking page tables (16 against 27 GB/s measured on one Zen 4 core).
#pragma once

#include <ATen/core/Tensor.h>

namespace ssd {

// A zeroed CPU tensor cut from a large-page arena; where the system has none, an ordinary one. An arena is unmapped when its
// last tensor is gone.
at::Tensor huge_pages(at::IntArrayRef shape, const at::TensorOptions& options);

}  // namespace ssd
