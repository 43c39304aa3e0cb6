#!/usr/bin/env bash
# Nsight Compute on one kernel, at the shapes of profiling/kernels.py: one report of its first launches.
#
#   profiling/ncu.sh FAMILY [KERNEL [COUNT]]      FAMILY as in kernels.py --only, KERNEL a pattern for its name, COUNT launches
#
# Clocks are not fixed: fix them yourself, or read only ratios. Needs a stock Nsight Compute, and permission to read counters.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v ncu > /dev/null; then
  echo "SKIPPED: ncu.sh; there is no ncu (Nsight Compute) on the path."
  exit 0
fi
family=${1:?"usage: profiling/ncu.sh FAMILY [KERNEL [COUNT]]"} kernel=${2:-ssd} count=${3:-10}
mkdir -p build/profiles
out=build/profiles/$family
ncu --force-overwrite --export "$out" --set full --import-source yes --clock-control none \
  --nvtx --nvtx-include "profiled/" --kernel-name-base mangled --kernel-name "regex:$kernel" --launch-count "$count" \
  "${PYTHON:-python3}" profiling/kernels.py --only "$family" --once
ncu --import "$out.ncu-rep" --page details --print-summary per-kernel
echo "$out.ncu-rep"
