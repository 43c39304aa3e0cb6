"""torch.library.opcheck on every op: the schema says what is written, and the meta function says what comes out."""

from __future__ import annotations

import pytest
import torch

from ops.examples import Arguments, decision_examples, forward_examples

CASES = [
    *((f"{op}-{i}-fp32", op, arguments) for i, (op, arguments) in enumerate(forward_examples(torch.float32))),
    *((f"{op}-{i}-bf16", op, arguments) for i, (op, arguments) in enumerate(forward_examples(torch.bfloat16))),
    *((f"{op}-{i}", op, arguments) for i, (op, arguments) in enumerate(decision_examples())),
]


@pytest.mark.parametrize("op, arguments", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_schema_and_meta_function_tell_the_truth(op: str, arguments: Arguments) -> None:
    overload = getattr(torch.ops.ssd, op).default
    torch.library.opcheck(overload, (), arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_op_is_checked() -> None:
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd::")}
    assert registered == {op for _, op, _ in CASES} | {"ngram_propose"}  # whose body is still to come
