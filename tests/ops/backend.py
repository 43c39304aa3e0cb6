"""The back end that the op tests compare with the oracle: `pytest tests/ops --backend cpu`, `emulator` or `gpu`.

    cpu       the CPU's own ops
    emulator  the CUDA ops on the emulator of tests/emulator: the kernels' own sources, every access guarded
    gpu       the CUDA ops on the machine's GPU

Tests always make and compare CPU tensors. For the GPU, arguments are copied there, and results and written arguments are copied
back. All differences between back ends are in this file: dtypes, head sizes, and how large a grid is affordable. pytest chooses
the back end once (tests/conftest.py), before it imports any test module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor

import ssd.ops

ROOT = Path(__file__).parents[2]
EMULATOR = Path(os.environ.get("SSD_EMULATOR", ROOT / "build" / "emulator" / "ssd_emulator.so"))
ORDERS = ("forward", "reversed", "shuffled")


@dataclass(frozen=True)
class BackEnd:
    name: str
    dtypes: tuple[torch.dtype, ...]
    attention_head_sizes: tuple[int, ...] | None  # None: every multiple of 16
    linear_inputs: int  # the number of inputs must be a multiple of this
    rounds_x: bool  # `linear` rounds x to int8 beside int8 weights
    examples: int  # examples that Hypothesis tries for each property
    rows: int  # rows of the invariance tests' pools: on the CPU and the GPU more than share one read of the weights
    slots: int  # slots of a whole decode
    length: int  # the length it decodes to
    draws: int  # draws of a chi-square test


CUDA_HEADS = (64, 80, 96, 128, 256)
WHOLE = {"examples": 20, "rows": 300, "slots": 60, "length": 40, "draws": 200_000}
SMALL = {"examples": 3, "rows": 40, "slots": 3, "length": 24, "draws": 300}  # an emulated launch takes milliseconds
BACK_ENDS = {
    "cpu": BackEnd("cpu", (torch.float32, torch.bfloat16), None, 1, True, **WHOLE),
    "emulator": BackEnd("emulator", (torch.bfloat16,), CUDA_HEADS, 8, False, **SMALL),
    "gpu": BackEnd(
        "gpu", (torch.bfloat16,), CUDA_HEADS, 8, False, **(WHOLE | {"draws": 130_000})
    ),  # half of the draws go into one call
}
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Op:
    """One op of torch.ops.ssd, run by the back end. It records that it was called."""

    called: set[str] = set()  # noqa: RUF012  (by the test that runs now; tests/conftest.py clears it)

    def __init__(self, name: str, overload: Callable[..., Any], run: Callable[..., Any]) -> None:
        self.name, self.overload, self._run = name, overload, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Op.called.add(self.name)
        return self._run(self.overload, *args, **kwargs)

    @property
    def default(self) -> Op:
        return self


class Ops:
    """Replaces torch.ops.ssd."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __getattr__(self, name: str) -> Op:
        op = Op(name, getattr(torch.ops.ssd, name).default, self._run)
        setattr(self, name, op)
        return op


def run_on_cpu(overload: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return overload(*args, **kwargs)


def run_on_emulator(overload: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the CUDA implementation on CPU tensors."""
    return overload.redispatch(CUDA, *args, **kwargs)


def run_on_gpu(overload: Any, *args: Any, **kwargs: Any) -> Any:
    """Run on copies of the tensors with the originals' memory layout: strides, offsets, two views of one storage.

    Tensors that are on the GPU already are left there.
    """
    if any(isinstance(x, Tensor) and x.is_cuda for x in (*args, *kwargs.values())):
        return overload(*args, **kwargs)
    storages: dict[int, tuple[Any, Any]] = {}

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        here = x.untyped_storage()
        _, there = storages.setdefault(here.data_ptr() or id(x), (here, here.cuda()))
        return torch.empty(0, dtype=x.dtype, device="cuda").set_(there, x.storage_offset(), x.size(), x.stride())

    names = [argument.name for argument in overload._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    with no_memory_happens_to_be_right():
        result = overload(**{name: copied(value) for name, value in given.items()})
    torch.cuda.synchronize()
    for argument in overload._schema.arguments:
        if argument.is_write and isinstance(given.get(argument.name), Tensor) and given[argument.name].numel() > 0:
            here, there = storages[given[argument.name].untyped_storage().data_ptr()]
            here.copy_(there)
    if isinstance(result, Tensor):
        return result.cpu()
    return tuple(x.cpu() for x in result) if isinstance(result, tuple | list) else result


class no_memory_happens_to_be_right:
    """Inside this context torch.empty gives NaN and the largest integers, so that unwritten outputs and workspaces show."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


RUN = {"cpu": run_on_cpu, "emulator": run_on_emulator, "gpu": run_on_gpu}

# The chosen back end ----------------------------------------------------------------------------------------------------------

chosen = BACK_ENDS["cpu"]
ssd_ops: Any = torch.ops.ssd


def choose(name: str) -> None:
    """Make `ssd.ops` and `ssd_ops` run on this back end. Raises pytest.UsageError if that is impossible here."""
    global chosen, ssd_ops
    if name == "emulator":
        load_emulator()
    if name == "gpu" and (sentence := why_no_gpu()):
        raise pytest.UsageError(f"--backend gpu: {sentence}")
    chosen, ssd_ops = BACK_ENDS[name], Ops(RUN[name])
    ssd.ops._ssd = ssd_ops


def load_emulator() -> None:
    folders = ("csrc/common", "csrc/cuda", "csrc/cuda_ops", "tests/emulator")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.[ch]*") if path.is_file()]
    if not EMULATOR.exists():
        raise pytest.UsageError(f"--backend emulator: {EMULATOR} is not there; run `make emulator` first.")
    stale = [path for path in sources if path.stat().st_mtime > EMULATOR.stat().st_mtime]
    if stale:
        raise pytest.UsageError(
            f"--backend emulator: {stale[0].relative_to(ROOT)} is newer than {EMULATOR}; run `make emulator`."
        )
    torch.ops.load_library(str(EMULATOR))


def why_no_gpu() -> str | None:
    """The reason why the CUDA ops cannot run here, in one sentence; None if they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU here."
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ssd::linear", "CUDA"):
        return "ssd was built without its CUDA kernels; build it with SSD_CUDA=1."
    return None


def only_on_the_cpu(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(chosen.name != "cpu", reason=f"{chosen.name}: {why}")


def fewer(count: int) -> int:
    """`count`, or fewer if the back end cannot afford so many slots."""
    return count if chosen.name != "emulator" else min(count, max(4, count // 8))


# Sizes that a back end supports --- -------------------------------------------------------------------------------------------


def inputs(count: int) -> int:
    """Inputs of a linear: `count`, or the next number that the back end supports."""
    return -(-count // chosen.linear_inputs) * chosen.linear_inputs


def attention_head_size(size: int) -> int:
    """`size`, or the next larger head size that the back end's attention supports."""
    sizes = chosen.attention_head_sizes
    return size if sizes is None else min(s for s in sizes if s >= size)


def set_up_emulator(test: str) -> None:
    """Set the order of threads, the seed and the guarded side of tensors. They depend only on the test's name."""
    number = crc32(test.encode())
    torch.ops.ssd_emulator.configure(ORDERS[number % 3], number, bool(number // 3 % 2))
