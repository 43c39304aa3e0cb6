"""Calls every op at least once on the GPU, on small shapes. test_sanitizer.py runs it under compute-sanitizer."""

from __future__ import annotations

import torch

from ops import backend

backend.choose("gpu")  # before the examples are made: their shapes depend on the back end


def main() -> None:
    from gpu.on_gpu import named_examples

    for _, op, arguments in named_examples():
        getattr(backend.ssd_ops, op)(**arguments)
    tokens, found = torch.randint(4, (3, 40), dtype=torch.int32), torch.zeros(3, 4, dtype=torch.int32)
    length, room, missed = torch.tensor([5, 39, 20], dtype=torch.int32), torch.full((3,), 4), torch.ones(3, dtype=torch.uint8)
    backend.ssd_ops.ngram_propose(tokens, length, missed, found, room.int(), length.clone())
    left_out = {op for op in backend.Op.called ^ {name.split("::")[1] for name in registered()}}
    assert not left_out, left_out
    print("all of it was run: every op")


def registered() -> list[str]:
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd::")]


if __name__ == "__main__":
    main()
