// paged_attention's kernels for heads of 128.
#include "paged_attention.cuh"

namespace ssd::cuda {

template cudaError_t start_paged_attention<128>(const AttentionLaunch&, int32_t, cudaStream_t);

}  // namespace ssd::cuda
