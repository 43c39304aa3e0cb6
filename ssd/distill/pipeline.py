"""`distill`: from a target's name to a draft that the engine loads. Each step has a file of its own:

chats (the target writes the data) → training (the target's hidden states, then the student) → report (held-out chats) → export.

The folder `run` beside the draft holds the files from which an interrupted run resumes: run.json, chats.jsonl, hidden.bin and
checkpoint.pt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssd.distill import chats as data
from ssd.distill.export import Provenance, write_draft
from ssd.distill.openings import OWN
from ssd.distill.recipe import CONTEXT, Recipe
from ssd.distill.report import HeldOutScore, agreements, score
from ssd.distill.student import build, frequent_ids, outer_layers, output_rows, weights_of
from ssd.distill.training import Schedule, Status, Texts, train
from ssd.engine import Engine
from ssd.errors import SsdError
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.pair import OnProgress
from ssd.models.quantise import dequantise, quantise
from ssd.models.tokenizer import Tokenizer
from ssd.models.weights import LM_HEAD, load_checkpoint, read_config

DATA_SHARE = 0.4  # fraction of a time budget for the chats and the target's hidden states
ENOUGH_HELD_OUT = 24  # number of held-out chats for the agreement shown during training

Stage = Callable[[str], OnProgress]
"""Called with the name of a step that begins; returns the callback for its progress."""


def distill(
    target: str,
    out: Path,
    recipe: Recipe,
    prompts: Sequence[str] = (),
    exclude: Sequence[str] = (),
    resume: bool = False,
    stage: Stage = lambda name: lambda fraction: None,
    status: Callable[[Status], None] = lambda status: None,
) -> dict[str, HeldOutScore]:
    """Make a draft for `target` in the folder `out`, and return its scores on held-out chats, by domain.

    prompts: a user's own messages; the target answers them too. exclude: texts; a chat that shares 13 words in a row with one
    of them is left out. resume: continue the run in `out`, which must have been started with the same target, layers, vocab and
    seed. stage: called with the name of each step; it returns the callback for the fraction of that step that is done. status:
    called after each training step. Raises SsdError, CheckpointError.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise SsdError("device is 'cuda', and torch finds no GPU; use 'cpu'.")
    began = time.monotonic()
    run = out / "run"
    if run.exists() and not resume:
        raise SsdError(f"{out} holds a run already; continue it with --resume, or choose another folder.")
    if resume and not run.exists():
        raise SsdError(f"{out} holds no run to continue; leave --resume out.")
    device = torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
    path = registry.resolve(target)
    config = read_config(path)
    layers = _layers(recipe, target, config)
    checkpoint_file = run / "checkpoint.pt"
    training_began = checkpoint_file.exists()
    seconds = recipe.time_budget * 60 if recipe.time_budget is not None else None
    in_time = _until(began + seconds * DATA_SHARE * 0.7 if seconds is not None else None)

    if resume:
        _check_same_run(run / "run.json", target, layers, recipe)
    chats, tokenizer = _chats(target, config, layers, recipe, run, prompts, None if training_began else in_time, stage)
    kept = list(range(len(chats)))
    if exclude:
        kept = [i for i in kept if not data.overlaps(chats[i], exclude, tokenizer)]
    held_out = [index for index, i in enumerate(kept) if i % data.HELD_OUT_EVERY == 0]
    trained = [index for index, i in enumerate(kept) if i % data.HELD_OUT_EVERY]
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

    seconds_to_train = None
    if seconds is not None:  # resumed training gets its whole share again, however much of this run is left
        share = seconds * (1 - DATA_SHARE)
        seconds_to_train = share if training_began else max(seconds - (time.monotonic() - began), share / 2)
    schedule = Schedule(
        epochs=recipe.epochs,
        seconds=seconds_to_train,
        budget=seconds,
        learning_rate=recipe.learning_rate,
        batch_tokens=recipe.batch_tokens,
        seed=recipe.seed,
    )
    with _threads(recipe.threads):
        steps = train(student, head, texts, trained, schedule, checkpoint_file, evaluate, status)
        if recipe.weights == "int8":  # round before scoring, so that the report is about the weights that are written
            for matrix in (*(p.data for p in student.body.parameters() if p.dim() == 2), head):
                matrix.copy_(dequantise(*quantise(matrix)))
        scores = score(student, head, draft_vocab, texts, held_out)

    learnt = [chats[i] for i in trained]
    provenance = Provenance(
        target=target,
        layers=layers,
        chats=len(learnt),
        own=sum(chat.domain == OWN for chat in learnt),
        answer_tokens=sum(len(chat.answer) for chat in learnt),
        steps=steps,
    )
    weights = weights_of(student) | ({} if config.tie_embeddings else {LM_HEAD: head.cpu()})
    write_draft(out, replace(config, num_layers=len(layers)), weights, draft_vocab, recipe, provenance, scores)
    return scores


def _layers(recipe: Recipe, target: str, config: ModelConfig) -> list[int]:
    """The target's layers that the student starts from. Raises SsdError."""
    if recipe.from_layers is None:
        return outer_layers(recipe.layers, config.num_layers)
    for layer in recipe.from_layers:
        if not 0 <= layer < config.num_layers:
            raise SsdError(f"from_layers has {layer}; {target!r} has layers 0 to {config.num_layers - 1}.")
    return list(recipe.from_layers)


def _check_same_run(file: Path, target: str, layers: Sequence[int], recipe: Recipe) -> None:
    """Raise SsdError unless the run to resume has the same target and student."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SsdError(f"{file.parent} holds no run to continue; choose another folder, or delete it.") from None
    for name, now in _identity(target, layers, recipe).items():
        if before.get(name) != now:
            raise SsdError(
                f"this run was started with {name} {before.get(name)}, and now it is {now}; give the first value again."
            )


def _identity(target: str, layers: Sequence[int], recipe: Recipe) -> dict[str, Any]:
    """The settings that must stay the same when a run is resumed."""
    return {"target": target, "layers": list(layers), "vocab": recipe.vocab, "seed": recipe.seed}


def _chats(
    target: str,
    config: ModelConfig,
    layers: Sequence[int],
    recipe: Recipe,
    run: Path,
    prompts: Sequence[str],
    in_time: Callable[[], bool] | None,
    stage: Stage,
) -> tuple[list[data.Chat], Tokenizer]:
    """The chats of this run and the target's tokenizer. in_time: whether there is time for more chats; None: make no more."""
    context, loading = min(config.max_position, CONTEXT), stage("Loading the target")
    with Engine(
        target, None, "ar", max_batch=data.BATCH, max_context=context, threads=recipe.threads, progress=loading
    ) as engine:
        tokenizer = engine.tokenizer
        if tokenizer is None:
            raise SsdError(f"{target!r} has no tokenizer, and without one it cannot make up chats; give a chat model.")
        tokenizer.user_turn("")  # raises here, before anything is written, if there is no chat template
        run.mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text(json.dumps(_identity(target, layers, recipe)) + "\n", encoding="utf-8")
        file = run / "chats.jsonl"
        if in_time is not None:
            data.synthesise(
                engine,
                tokenizer,
                file,
                tokens=recipe.tokens,
                answer_tokens=recipe.answer_tokens,
                user_messages=prompts,
                seed=recipe.seed,
                in_time=in_time,
                progress=stage("The target makes up chats"),
            )
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
