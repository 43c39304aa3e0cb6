"""Small cases on the GPU: `python tests/gpu/smoke.py CASE`. profiling/gpu_check.py runs each case in a process of its own.

conditional   a conditional node in a CUDA graph: the body, two of our kernels, runs only if a flag is set
ar, sd, ssd   a tiny decode in this mode: graphs give the same tokens as eager rounds
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch

import tiny
from ssd import Engine, SamplingParams, ops
from ssd.runtime.cuda import CudaDevice

PROMPTS = [[1, 2, 3], [4] * 20]


def conditional(replays: int = 100) -> None:
    """The kernels in the body are launched as everywhere else: the second may start while the first still runs."""
    gpu = torch.device("cuda:0")
    device = CudaDevice({"draft": gpu}, draft_sms=None)
    stream = device.stream("draft")
    x, weight = torch.randn(4, 256, device=gpu).bfloat16(), torch.ones(256, device=gpu).bfloat16()
    flag, out = torch.zeros(1, dtype=torch.bool, device=gpu), torch.zeros_like(x)

    def body() -> None:
        out.copy_(ops.rms_norm(ops.rms_norm(x, weight, 1e-5), weight, 1e-5))

    body()
    expected = out.clone()
    torch.cuda.synchronize()
    with torch.inference_mode():
        graph, _ = device.capture(stream, lambda: device.when(flag, body))
    for i in range(replays):
        is_set = i % 3 > 0
        flag.fill_(is_set)
        out.zero_()
        torch.cuda.synchronize()
        stream.launch(graph)
        torch.cuda.synchronize()
        assert torch.equal(out, expected if is_set else torch.zeros_like(out)), f"replay {i}, the flag {is_set}"


def decode(mode: str) -> None:
    params = [SamplingParams(max_new_tokens=24), SamplingParams(max_new_tokens=24, temperature=1.0, seed=1)]
    tokens = {}
    with tempfile.TemporaryDirectory() as folder:
        target, draft = Path(folder) / "target", Path(folder) / "draft"
        sizes = {"vocab_size": 288, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
        tiny.write_model(target, **sizes)
        tiny.write_draft_of(target, draft, noise=0.07)
        for eager in ("1", "0"):
            os.environ["SSD_EAGER"] = eager
            with Engine(str(target), None if mode == "ar" else str(draft), mode, device="cuda", max_batch=2) as engine:
                completions = engine.decode(PROMPTS, params)
                print(f"{mode}: {engine.footprint.rounds}")
            assert not any(completion.degraded for completion in completions), "the draft failed"
            tokens[eager] = [completion.token_ids for completion in completions]
    assert tokens["0"] == tokens["1"], f"graphs gave {tokens['0']}, eager rounds {tokens['1']}"


def main() -> None:
    case = sys.argv[1]
    conditional() if case == "conditional" else decode(case)
    print(f"{case}: good")


if __name__ == "__main__":
    main()
