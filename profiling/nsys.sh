#!/usr/bin/env bash
# Nsight Systems over profiling/kernels.py, from the first case on: what runs when, and the gaps between.
#
#   profiling/nsys.sh [FAMILIES]      as in kernels.py --only; all of them without
#
# Recording starts and ends with the NVTX range "profiled"; each case is a range of its own inside. Needs a stock Nsight Systems.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nsys > /dev/null; then
  echo "SKIPPED: nsys.sh; there is no nsys (Nsight Systems) on the path."
  exit 0
fi
mkdir -p build/profiles
out=build/profiles/${1:-kernels}
# torch's NVTX strings are not registered ones.
nsys profile --force-overwrite true --output "$out" --trace cuda,nvtx --cuda-graph-trace node \
  --capture-range nvtx --nvtx-capture profiled --env-var NSYS_NVTX_PROFILER_REGISTER_ONLY=0 \
  "${PYTHON:-python3}" profiling/kernels.py --once ${1:+--only "$1"}
nsys stats --report nvtx_kern_sum,cuda_gpu_kern_sum "$out.nsys-rep"
