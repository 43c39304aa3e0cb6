"""A short decode of a tiny pair on the GPU, greedy and sampled, with graphs. test_sanitizer.py runs it under
compute-sanitizer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tiny
from gpu.test_engine import SIZES
from ssd import Engine, SamplingParams


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target, draft = Path(folder) / "target", Path(folder) / "draft"
        tiny.write_model(target, **SIZES)
        tiny.write_draft_of(target, draft, noise=0.07)
        params = [SamplingParams(max_new_tokens=8), SamplingParams(max_new_tokens=8, temperature=1.0, seed=1)]
        for mode in ("sd", "ssd"):
            with Engine(str(target), str(draft), mode, device="cuda", max_batch=2) as engine:
                found = engine.decode([[1, 2, 3], [4] * 20], params)
            assert not any(completion.degraded for completion in found)
    print("all of it was run: a decode in each mode")


if __name__ == "__main__":
    main()
