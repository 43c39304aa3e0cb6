"""The placement of an engine: its devices and dtype, the memory for its K/V, and the executor of its rounds."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch

from ssd import _build_info
from ssd.errors import SsdError
from ssd.native import cpu_isa, has_conditional_nodes
from ssd.options import EngineOptions
from ssd.runtime.captured import CapturedExecutor
from ssd.runtime.executor import EagerExecutor, Executor
from ssd.runtime.memory import available_memory
from ssd.runtime.recorded import RecordedExecutor
from ssd.runtime.trace import Trace

CPU_MEMORY_FRACTION = 0.5  # fraction of the machine's available memory for K/V


@dataclass(frozen=True)
class Placement:
    """The device of each role, and the dtype of both. apart: whether each role has its own tables, which two devices need."""

    target_device: torch.device
    draft_device: torch.device
    apart: bool
    dtype: torch.dtype


def place(options: EngineOptions) -> Placement:
    """Choose devices and dtype. Device "auto" is the CPU; dtype "auto" is bfloat16 if the device computes in it, else float32.

    Raises SsdError for a GPU that does not exist, an installation without CUDA kernels, and a dtype that they lack.
    """
    device = _device("device", options.device)
    draft_device = _device("draft_device", options.draft_device) if options.draft_device is not None else device
    apart = options.draft_device is not None
    if device.type != draft_device.type:
        raise SsdError(
            f"device is {options.device!r} and draft_device {options.draft_device!r}; both must be GPUs, or both the CPU."
        )
    if options.draft_sms is not None and (device.type == "cpu" or draft_device != device):
        raise SsdError("draft_sms is the draft's share of the one GPU that both models run on; leave it out.")
    if device.type == "cpu":
        name = ("bfloat16" if cpu_isa() == "avx512bf16" else "float32") if options.dtype == "auto" else options.dtype
        if name == "float32" and options.weights == "bf16":
            raise SsdError("weights is 'bf16', and dtype is 'float32'; use dtype='bfloat16', or weights='auto'.")
        return Placement(device, draft_device, apart, getattr(torch, name))
    if options.dtype == "float32":
        raise SsdError("dtype is 'float32', and the CUDA kernels compute in bfloat16; leave dtype out, or use device='cpu'.")
    if options.pace is not None:
        raise SsdError("pace is for one machine without a GPU; leave it out, or use device='cpu'.")
    return Placement(device, draft_device, apart, torch.bfloat16)


def _device(setting: str, name: str) -> torch.device:
    if name in ("auto", "cpu"):
        return torch.device("cpu")
    if not _build_info.CUDA:
        raise SsdError(
            f"{setting} is {name!r}, and this installation has no CUDA kernels ({_build_info.WHY_NO_CUDA}); or use 'cpu'."
        )
    device, count = torch.device(name), torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise SsdError(
            f"{setting} is {name!r}, and torch sees {count} GPU{'s' if count != 1 else ''}; choose another, or 'cpu'."
        )
    return torch.device("cuda", device.index or 0)


def memory_for_kv(options: EngineOptions, device: torch.device) -> int:
    """The bytes for both models' K/V and the draft's distributions. On a CPU: half of the available memory. On a GPU:
    gpu_memory_utilization of its memory, minus everything that is in use now. Raises SsdError if nothing is left."""
    if device.type == "cpu":
        return int(available_memory() * CPU_MEMORY_FRACTION)
    torch.cuda.empty_cache()  # give back the memory that loading used
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(options.gpu_memory_utilization * total) - (total - free)
    if allowed <= 0:
        raise SsdError(
            f"{(total - free) / 1e9:.1f} of {total / 1e9:.1f} GB of {device}'s memory are taken, and gpu_memory_utilization is "
            f"{options.gpu_memory_utilization:g}; raise it, or free some."
        )
    return allowed


def make_executor(trace: Trace, options: EngineOptions, placement: Placement) -> Executor:
    """The executor of this placement: graphs on a GPU, recorded programs on a CPU.

    Rounds are eager if $SSD_EAGER is 1, on a GPU whose driver lacks conditional nodes, and on a CPU where each role has tables
    of its own, or where passes are paced. Raises SsdError for draft_sms without graphs.
    """
    eager = os.environ.get("SSD_EAGER") == "1"
    if placement.target_device.type == "cuda" and not eager:
        if has_conditional_nodes():
            from ssd.runtime.cuda import CudaDevice

            lanes = {"target": placement.target_device, "draft": placement.draft_device}
            return CapturedExecutor(trace, CudaDevice(lanes, options.draft_sms), options.max_batch)
        warnings.warn(
            "this GPU's driver is older than CUDA 12.4 and cannot record whole rounds; they run eagerly, slower", stacklevel=3
        )
    if options.draft_sms is not None:
        raise SsdError("draft_sms needs rounds as graphs, and here they run eagerly; leave it out.")
    eager = eager or placement.apart or options.pace is not None or placement.target_device.type == "cuda"
    kind = EagerExecutor if eager else RecordedExecutor
    return kind(trace, options.draft_threads or 1)
