"""The prompts, models and options that decode.py and rounds.py share, and prompt files for all scripts.

--target and --draft take every model that `Engine` takes, and the models of common/models.py, such as bigram:SHAPE and
bigram-draft:SHAPE. --prompts names a JSON-lines file and the field of its prompts; `chat` stands for a few
questions, and `random` for random token ids.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.models import Models, ids_of, is_made, random_ids
from common.options import add_flags
from common.results import RESULTS, settings_of
from ssd import Completion, Engine, SamplingParams
from ssd.bench import machine
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


@dataclass(frozen=True)
class PromptFile:
    """A JSON-lines file, and the field of its lines that holds a prompt: a text, or a list whose first text is taken."""

    path: Path
    field: str

    @classmethod
    def parse(cls, option: str) -> PromptFile:
        """From FILE.jsonl:FIELD."""
        path, _, field = option.rpartition(":")
        if not path:
            raise SystemExit(f"--prompts is {option!r}; it must be FILE.jsonl:FIELD.")
        return cls(Path(path), field)

    def prompts(self, limit: int) -> list[str]:
        """The first prompts of the file, at most `limit`."""
        rows = [json.loads(line)[self.field] for line in self.path.read_text(encoding="utf-8").splitlines()[:limit]]
        return [row[0] if isinstance(row, list) else row for row in rows]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """name: the default name of the result file."""
    parser.add_argument("--prompts", required=True, metavar="FILE.jsonl:FIELD|chat|random", help="prompts to decode")
    parser.add_argument("--limit", type=int, default=8, help="number of prompts")
    parser.add_argument("--modes", default="ar,sd,ssd", help="decoding modes, separated by commas")
    parser.add_argument("--batch", type=int, default=1, help="number of sequences that run at once")
    add_flags(
        parser, "target", "draft", "device", "draft_device", "draft_sms", "dtype", "weights", "threads", "lookahead", "budget"
    )
    add_flags(parser, "ignore_eos", max_new_tokens=128)
    parser.add_argument("--name", default=name, help="name of the result file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")


@dataclass
class Workload:
    """Prompts, and the models that decode them."""

    args: argparse.Namespace
    prompts: list[Prompt]
    models: Models

    @property
    def modes(self) -> list[str]:
        return str(self.args.modes).split(",")

    @property
    def on_gpu(self) -> bool:
        return str(self.args.device).startswith("cuda")

    def engine(self, mode: str) -> Engine:
        """An engine in this mode. All engines of a workload share their models' weights."""
        a = self.args
        engine = self.models.engine(
            mode, lookahead=a.lookahead, budget=a.budget, draft_sms=a.draft_sms, max_batch=a.batch, threads=a.threads
        )
        if engine.mode != mode:
            raise SystemExit(f"the engine for mode {mode} runs in mode {engine.mode}; nothing was measured.")
        return engine

    def decode(self, engine: Engine, params: SamplingParams) -> list[Completion]:
        """Decode all prompts, --batch at a time."""
        if self.args.batch > 1:
            completions = engine.decode(self.prompts, params)
        else:
            completions = [engine.decode(prompt, params) for prompt in self.prompts]
        check_complete(completions)
        return completions

    def describe(self) -> dict[str, Any]:
        """The machine and the settings, as a result records them, without the names of local folders."""
        settings = settings_of(self.args, "peer", "results")
        settings["target"], settings["draft"] = (Path(name).name for name in (self.args.target, self.args.draft))
        file = _file(self.args.prompts)
        settings["prompts"] = file.path.name if file else self.args.prompts
        settings["prompts_sha256"] = file.sha256 if file else None
        settings["limit"] = len(self.prompts)
        return {"machine": machine.describe_gpu() if self.on_gpu else machine.describe(), "settings": settings}


def check_complete(completions: Sequence[Completion]) -> None:
    """Exit if the draft failed, because the rest of such a decode ran in mode ar, or if the target could not finish."""
    if any(completion.degraded for completion in completions):
        raise SystemExit("the draft failed; nothing was measured.")
    for completion in completions:
        if completion.error is not None:
            raise SystemExit(f"{completion.error.removesuffix('.')}; nothing was measured.")


def prepared(args: argparse.Namespace) -> Workload:
    """The workload of the options; models are loaded when the first engine is made."""
    models = Models(
        args.target,
        args.draft,
        {"dtype": args.dtype, "weights": args.weights, "device": args.device, "draft_device": args.draft_device},
    )
    if args.prompts == "random":
        return Workload(args, random_ids(args.limit, RANDOM_LENGTH), models)
    file = _file(args.prompts)
    texts = file.prompts(args.limit) if file else list(CHAT[: args.limit])
    return Workload(args, ids_of(texts) if is_made(args.target) else texts, models)


def _file(option: str) -> PromptFile | None:
    return None if option in ("chat", "random") else PromptFile.parse(option)


def free() -> None:
    """Free the GPU memory of engines that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
