"""What decode.py and rounds.py decode, and with what: their common options.

--target and --draft take what `Engine` does, and models that no file has (shapes.py): random:SHAPE, inflated:SHAPE and, as the draft
of one, inflated-draft:SHAPE. --prompts is a file and the field of its prompts, `chat` for a few questions, or `random`: ids that say
nothing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import shapes
import torch

from ssd import Completion, Engine, SamplingParams
from ssd.models.prompts import Prompt

RANDOM_LENGTH = 64  # tokens of a random prompt
CHAT = (
    "Write a Python function that returns the n-th Fibonacci number, and explain how fast it is.",
    "A train leaves at 9:40 and arrives at 13:05 after two stops of ten minutes. How long does it move?",
    "Explain to a child why the sky is blue and the sunset is red.",
    "List five things to check before a long walk in the mountains, and say why each matters.",
    "Sort these words by length and then by the alphabet: pear, fig, banana, apple, kiwi, plum.",
    "What is the difference between a process and a thread? Give an example of when to use which.",
    "Summarise in three sentences how a bill becomes a law in a parliament.",
    "Write a short letter to a neighbour who plays the drums at night.",
)


def prompts_of(path: Path, field: str, limit: int) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [row[field][0] if isinstance(row[field], list) else row[field] for row in rows]


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """name: of the result file."""
    parser.add_argument("--prompts", required=True, metavar="FILE.jsonl:FIELD|chat|random")
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="auto", help="'auto' for the target's own")
    parser.add_argument("--modes", default="ar,sd,ssd")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--draft-device")
    parser.add_argument("--draft-sms", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="for every mode; without it each mode's own default")
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--name", default=name, help="of the result file")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of the result file")


@dataclass
class Workload:
    """prompts, and engines for them by mode."""

    args: argparse.Namespace
    prompts: list[Prompt]

    @property
    def modes(self) -> list[str]:
        return str(self.args.modes).split(",")

    @property
    def on_gpu(self) -> bool:
        return str(self.args.device).startswith("cuda")

    def engine(self, mode: str) -> Engine:
        a = self.args
        engine = Engine(
            a.target, None if mode == "ar" else a.draft, mode, lookahead=a.lookahead, budget=a.budget, dtype=a.dtype, device=a.device,
            draft_device=a.draft_device, draft_sms=a.draft_sms, max_batch=a.batch, threads=a.threads,
        )  # fmt: skip
        if engine.mode != mode:
            raise SystemExit(f"the engine asked for in mode {mode} runs in mode {engine.mode}")
        return engine

    def decode(self, engine: Engine, params: SamplingParams) -> list[Completion]:
        """All prompts, `batch` at a time."""
        if self.args.batch > 1:
            completions = engine.decode(self.prompts, params)
        else:
            completions = [engine.decode(prompt, params) for prompt in self.prompts]
        check_not_degraded(completions)
        return completions

    def describe(self) -> dict[str, Any]:
        """The machine and the settings, as a result file has them: nothing of this machine's folders."""
        settings = {k: v for k, v in vars(self.args).items() if k not in ("name", "prompts", "peer", "results")}
        settings["target"], settings["draft"] = (Path(name).name for name in (self.args.target, self.args.draft))
        path, _, _ = self.args.prompts.rpartition(":")
        if path:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            settings |= {"prompts": Path(path).name, "prompts_sha256": digest}
        else:
            settings |= {"prompts": self.args.prompts, "prompts_sha256": None}
        settings["limit"] = len(self.prompts)
        return {"machine": machine.describe_gpu() if self.on_gpu else machine.describe(), "settings": settings}


def check_not_degraded(completions: Sequence[Completion]) -> None:
    """A draft that failed makes any mode ar, which is not what was to be measured."""
    if any(completion.degraded for completion in completions):
        raise SystemExit("the draft failed; nothing was measured")


@contextmanager
def prepared(args: argparse.Namespace) -> Iterator[Workload]:
    """Within it models without files can be loaded, and engines of one target share its weights."""
    made = shapes.is_made(args.target)
    if args.prompts == "random":
        prompts: list[Any] = shapes.random_ids(args.limit, RANDOM_LENGTH)
    else:
        path, _, field = args.prompts.rpartition(":")
        texts = prompts_of(Path(path), field, args.limit) if path else list(CHAT[: args.limit])
        prompts = shapes.ids_of(texts) if made else texts
    with shapes.engines(args.device):
        yield Workload(args, prompts)


def free() -> None:
    """Give back what an engine that is gone had of a GPU's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
