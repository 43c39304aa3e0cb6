// The kernels of paged_attention for head size 64, in a file of their own so that head sizes compile in parallel.
#include "paged_attention.cuh"

namespace ssd::cuda {

template cudaError_t start_paged_attention<64>(const AttentionLaunch&, int32_t, cudaStream_t);

}  // namespace ssd::cuda
