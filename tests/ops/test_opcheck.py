"""torch.library.opcheck on every op: the schema names all written arguments, and the meta function gives the results'
shapes."""

from __future__ import annotations

import pytest
import torch

from ops.backend import chosen
from ops.cases import DTYPE_NAMES, DTYPES
from ops.examples import Arguments, decision_examples, forward_examples, row_examples

pytestmark = pytest.mark.skipif(chosen.name == "emulator", reason="emulator: its tensors are not on the device they are for")

CASES = [
    *(
        (f"{op}-{i}-{name}", op, arguments)
        for name, dtype in zip(DTYPE_NAMES, DTYPES, strict=True)
        for i, (op, arguments) in enumerate(forward_examples(dtype))
    ),
    *((f"{op}-{i}", op, arguments) for i, (op, arguments) in enumerate([*row_examples(), *decision_examples()])),
]


@pytest.mark.parametrize("op, arguments", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_schema_and_meta_function_agree_with_the_op(op: str, arguments: Arguments) -> None:
    overload = getattr(torch.ops.ssd, op).default
    if chosen.name == "gpu":
        arguments = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    torch.library.opcheck(overload, (), arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_op_is_checked() -> None:
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd::")}
    assert registered == {op for _, op, _ in CASES}
