#!/usr/bin/env bash
# Nsight Systems: a timeline of kernels, and of the gaps between them.
#
#   profiling/nsys.sh kernels [FAMILIES]     the cases of profiling/kernels.py; FAMILIES as in its --only (all by default)
#   profiling/nsys.sh decode [OPTIONS]       a whole decode, with rounds by name and every kernel of every graph; OPTIONS as
#                                            in profiling/rounds.py
#
# Without options the decode is ssd with random weights, Llama-3.1-8B with 3.2-1B as draft. Recording covers the NVTX range
# "profiled". Needs a stock Nsight Systems, and the Python package nvtx for the names of rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nsys > /dev/null; then
  echo "SKIPPED: nsys.sh; there is no nsys (Nsight Systems) on the path."
  exit 0
fi
what=${1:-kernels}
shift || true
case $what in
  kernels) command=(profiling/kernels.py --once ${1:+--only "$1"}) ;;
  decode)
    [ $# -gt 0 ] || set -- --prompts random --target random:Llama-3.1-8B --draft random:Llama-3.2-1B --modes ssd --device cuda
    command=(profiling/rounds.py --limit 1 --max-new-tokens 64 --ignore-eos --results build/profiles "$@")
    ;;
  *)
    echo "nsys.sh takes 'kernels' or 'decode', not '$what'." >&2
    exit 2
    ;;
esac
mkdir -p build/profiles
out=build/profiles/$what
# torch's NVTX strings are not registered, so nsys must accept others.
nsys profile --force-overwrite true --output "$out" --trace cuda,nvtx --cuda-graph-trace node \
  --capture-range nvtx --nvtx-capture profiled --env-var NSYS_NVTX_PROFILER_REGISTER_ONLY=0 \
  "${PYTHON:-python3}" "${command[@]}"
nsys stats --report nvtx_kern_sum,cuda_gpu_kern_sum "$out.nsys-rep"
