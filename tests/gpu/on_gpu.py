"""Helpers of the GPU tests: the ops' examples on the device, and the results of an op there. Imported as `gpu.on_gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ops.examples import Arguments, decision_examples, forward_examples, row_examples


def named_examples() -> Iterator[tuple[str, str, Arguments]]:
    """Yields (a name for the test, the op, its arguments on the CPU)."""
    for i, (op, arguments) in enumerate([*forward_examples(torch.bfloat16), *row_examples(), *decision_examples()]):
        yield f"{op}-{i}", op, arguments


def on_gpu(arguments: Arguments) -> Arguments:
    """Copies of the arguments on the device."""
    return {name: x.to("cuda", copy=True) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def call(op: str, arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Returns (the op's results, every argument that the op may write)."""
    overload = getattr(torch.ops.ssd, op).default
    result: Any = overload(**arguments)
    results = list(result) if isinstance(result, tuple | list) else [result] if isinstance(result, Tensor) else []
    written = [arguments.get(a.name) for a in overload._schema.arguments if a.is_write]
    return results, [x for x in written if isinstance(x, Tensor)]
