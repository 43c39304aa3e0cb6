"""`distill`: from a target's name to a draft that the engine loads. The steps, in order, each in a file of its own:

chats (the target makes up the data) → training (its hidden states, then the student) → report (on chats held out) → export.

What a run needs to go on, if it is cut short, lies in the folder `run` beside the draft: run.json, chats.jsonl, hidden.bin, checkpoint.pt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ssd.distill import chats as data
from ssd.distill.export import MadeFrom, write_draft
from ssd.distill.openings import OWN
from ssd.distill.report import Worth, agreements, worth
from ssd.distill.student import build, frequent_ids, outer_layers, output_rows, weights_of
from ssd.distill.training import Schedule, Status, Texts, train
from ssd.engine import Engine
from ssd.errors import SsdError
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.quantise import dequantise, quantise
from ssd.models.tokenizer import Tokenizer
from ssd.models.weights import LM_HEAD, load_checkpoint, read_config
from ssd.options import within

CONTEXT = 1024  # tokens of a chat at most
DATA_SHARE = 0.4  # of a time budget, for the chats and the target's hidden states
ENOUGH_HELD_OUT = 24  # chats, for a figure on the way

Stage = Callable[[str], Callable[[float], None]]


@dataclass(frozen=True)
class Recipe:
    """How a draft is made.

    layers: of the target's shape. from_layers: the target's layers they start from (None: its outermost). vocab: ids the draft can
    propose. weights: "int8" or "bfloat16", as the draft is stored and runs on a CPU. tokens: of all answers the target makes up.
    answer_tokens: of one, at most. epochs: over the data. learning_rate: at its highest. batch_tokens: a step. time_budget: minutes
    for everything, about (None: as long as it takes); up to two fifths are spent on the data. threads: None: all cores. seed: of the data's
    and the training's order.

    Raises SsdError for a value outside its range.
    """

    layers: int = 4
    from_layers: Sequence[int] | None = None
    vocab: int = 8192
    weights: str = "int8"
    tokens: int = 574_000
    answer_tokens: int = 192
    epochs: float = 6.0
    learning_rate: float = 3e-3
    batch_tokens: int = 2048
    time_budget: float | None = None
    device: str = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        within("layers", self.layers, 1, 1024, whole=True)
        within("vocab", self.vocab, 1, 2**24, whole=True)
        within("tokens", self.tokens, 1, 10**12, whole=True)
        within("answer_tokens", self.answer_tokens, 2, CONTEXT // 2, whole=True)
        within("epochs", self.epochs, 0, 1e6)
        within("learning_rate", self.learning_rate, 0, 1)
        within("batch_tokens", self.batch_tokens, 1, 2**24, whole=True)
        if self.time_budget is not None:
            within("time_budget", self.time_budget, 0.01, 1e6)
        if self.weights not in ("int8", "bfloat16"):
            raise SsdError(f"weights is {self.weights!r}; it can be 'int8' or 'bfloat16'.")
        if self.from_layers is not None and len(self.from_layers) != self.layers:
            raise SsdError(f"from_layers names {len(self.from_layers)} layers, and layers is {self.layers}; name as many.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise SsdError(f"device is {self.device!r}; it can be 'auto', 'cpu' or 'cuda'.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SsdError("device is 'cuda', and torch finds no GPU; use 'cpu'.")


def distill(
    target: str,
    out: Path,
    recipe: Recipe,
    prompts: Sequence[str] = (),
    exclude: Sequence[str] = (),
    resume: bool = False,
    stage: Stage = lambda name: lambda fraction: None,
    status: Callable[[Status], None] = lambda status: None,
) -> dict[str, Worth]:
    """Make a draft for `target` in the folder `out`, and return what it is worth on chats held out, by domain.

    prompts: a user's own messages; they are answered too. exclude: texts that no chat may share 13 words in a row with. resume: go on
    with the run in `out`, which must have been begun with the same target, layers, vocab and seed. stage: called with the name of each
    step, returns what is called with the fraction of it that is done. status: called behind each step of the training.
    Raises SsdError, CheckpointError.
    """
    began = time.monotonic()
    run = out / "run"
    if run.exists() and not resume:
        raise SsdError(f"{out} holds a run already; go on with it with --resume, or choose another folder.")
    if resume and not run.exists():
        raise SsdError(f"{out} holds no run to go on with; leave --resume out.")
    device = torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
    path = registry.resolve(target)
    config = read_config(path)
    layers = _layers(recipe, target, config)
    checkpoint_file = run / "checkpoint.pt"
    goes_on = checkpoint_file.exists()
    seconds = recipe.time_budget * 60 if recipe.time_budget is not None else None
    in_time = _until(began + seconds * DATA_SHARE * 0.7 if seconds is not None else None)

    if resume:
        _check_begun_as(run / "run.json", target, layers, recipe)
    chats, tokenizer = _chats(target, config, layers, recipe, run, prompts, None if goes_on else in_time, stage)
    kept = list(range(len(chats)))
    if exclude:
        kept = [i for i in kept if not data.overlaps(chats[i], exclude, tokenizer)]
    held_out = [place for place, i in enumerate(kept) if i % data.HELD_OUT_EVERY == 0]
    trained = [place for place, i in enumerate(kept) if i % data.HELD_OUT_EVERY]
    chats = [chats[i] for i in kept]
    if not trained or not any(chats[i].greedy for i in held_out):
        raise SsdError(f"{run} has {len(chats)} chats, too few to train on; give more tokens, or more time.")

    tensors = load_checkpoint(path, torch.bfloat16).tensors
    texts = Texts(chats, run / "hidden.bin", config.hidden_size)
    if not texts.filled:
        teacher = build(config, tensors, range(config.num_layers), torch.bfloat16, device)
        texts.fill(teacher, device, recipe.batch_tokens, stage("The target's hidden states"))
        del teacher
    student = build(config, tensors, layers, torch.float32, device)
    draft_vocab = frequent_ids(chats, recipe.vocab, tokenizer.vocab_size)
    head = output_rows(tensors)[draft_vocab.long()].to(device, torch.bfloat16)

    def evaluate() -> float:
        some = [i for i in held_out if chats[i].greedy][:ENOUGH_HELD_OUT]
        return float(torch.cat(agreements(student, head, draft_vocab, texts, some)).float().mean())

    left = None
    if seconds is not None:  # training that goes on has its own share, whatever is left of this run
        of_its_own = seconds * (1 - DATA_SHARE)
        left = of_its_own if goes_on else max(seconds - (time.monotonic() - began), of_its_own / 2)
    schedule = Schedule(recipe.epochs, left, seconds, recipe.learning_rate, recipe.batch_tokens, recipe.seed)
    with _threads(recipe.threads):
        steps = train(student, head, texts, trained, schedule, checkpoint_file, evaluate, status)
        if recipe.weights == "int8":  # what is reported is what is written
            for matrix in (*(p.data for p in student.body.parameters() if p.dim() == 2), head):
                matrix.copy_(dequantise(*quantise(matrix)))
        found = worth(student, head, draft_vocab, texts, held_out)

    learnt = [chats[i] for i in trained]
    own = sum(chat.domain == OWN for chat in learnt)
    made_from = MadeFrom(target, layers, len(learnt), own, sum(len(chat.answer) for chat in learnt), steps)
    weights = weights_of(student) | ({} if config.tie_embeddings else {LM_HEAD: head.cpu()})
    write_draft(out, replace(config, num_layers=len(layers)), weights, draft_vocab, recipe, made_from, found)
    return found


def _layers(recipe: Recipe, target: str, config: ModelConfig) -> list[int]:
    """Of the target, that the student starts from. Raises SsdError."""
    if recipe.from_layers is None:
        return outer_layers(recipe.layers, config.num_layers)
    for layer in recipe.from_layers:
        if not 0 <= layer < config.num_layers:
            raise SsdError(f"from_layers has {layer}; {target!r} has layers 0 to {config.num_layers - 1}.")
    return list(recipe.from_layers)


def _check_begun_as(file: Path, target: str, layers: Sequence[int], recipe: Recipe) -> None:
    """Raise SsdError unless the run that goes on is of the same target and student."""
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SsdError(f"{file.parent} holds no run to go on with; choose another folder, or delete it.") from None
    for name, now in _begun_as(target, layers, recipe).items():
        if begun.get(name) != now:
            raise SsdError(f"this run was begun with {name} {begun.get(name)}, and now it is {now}; say the same again.")


def _begun_as(target: str, layers: Sequence[int], recipe: Recipe) -> dict[str, Any]:
    return {"target": target, "layers": list(layers), "vocab": recipe.vocab, "seed": recipe.seed}


def _chats(
    target: str,
    config: ModelConfig,
    layers: Sequence[int],
    recipe: Recipe,
    run: Path,
    own: Sequence[str],
    go_on: Callable[[], bool] | None,
    stage: Stage,
) -> tuple[list[data.Chat], Tokenizer]:
    """The chats of this run, and of what they are made. go_on: whether to make more; None: those there are will do."""
    context, loading = min(config.max_position, CONTEXT), stage("Loading the target")
    with Engine(
        target, None, "ar", max_batch=data.BATCH, max_context=context, threads=recipe.threads, progress=loading
    ) as engine:
        tokenizer = engine.tokenizer
        if tokenizer is None:
            raise SsdError(f"{target!r} has no tokenizer, and without one it cannot make up chats; give a chat model.")
        tokenizer.user_turn("")  # or there is no chat template: said before anything is written
        run.mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text(json.dumps(_begun_as(target, layers, recipe)) + "\n", encoding="utf-8")
        file = run / "chats.jsonl"
        if go_on is not None:
            progress = stage("The target makes up chats")
            data.synthesise(engine, tokenizer, file, recipe.tokens, recipe.answer_tokens, own, recipe.seed, go_on, progress)
    return data.read(file), tokenizer


def _until(deadline: float | None) -> Callable[[], bool]:
    return lambda: deadline is None or time.monotonic() < deadline


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
