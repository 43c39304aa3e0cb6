"""A tensor on the wrong device is refused by name. The dispatcher looks at one tensor only, so each op must check them all."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from gpu.on_gpu import named_examples, on_gpu
from ops.backend import chosen
from ops.examples import Arguments

CASES = [
    (op, name, arguments)
    for _, op, arguments in (named_examples() if chosen.name == "gpu" else [])
    for name, x in arguments.items()
    if isinstance(x, Tensor) and sum(isinstance(other, Tensor) for other in arguments.values()) > 1
]


@pytest.mark.parametrize("op, name, arguments", CASES, ids=[f"{op}-{name}" for op, name, _ in CASES])
def test_a_tensor_on_the_cpu_is_refused_by_name(op: str, name: str, arguments: Arguments) -> None:
    first = next(other for other, x in arguments.items() if isinstance(x, Tensor))
    said = name if name != first else r"\w+"  # the others are compared with the first tensor, so any of them may be named
    with pytest.raises(RuntimeError, match=rf"\b{said} must be on .* like {re.escape(first)}, not on"):
        getattr(torch.ops.ssd, op).default(**(on_gpu(arguments) | {name: arguments[name]}))
