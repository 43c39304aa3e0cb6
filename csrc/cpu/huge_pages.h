// Memory for weights, on large pages. A decode step reads every weight once. With 4 KiB pages it spends a third of its time on
// page table walks: 16 GB/s instead of 27 GB/s, measured on one Zen 4 core.
#pragma once

#include <ATen/core/Tensor.h>

namespace ssd {

// A CPU tensor of zeros in an arena of large pages. It is an ordinary tensor on a system without large pages. An arena is
// unmapped when its last tensor is freed.
at::Tensor huge_pages(at::IntArrayRef shape, const at::TensorOptions& options);

}  // namespace ssd
