"""Training: the student learns the target's next-token distributions, on the chats that the target wrote.

The target's hidden states are computed once and stored in a file. They serve twice: a matrix product gives the target's
distributions over the student's vocabulary, and the student's last hidden states are pulled towards them.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd.distill.chats import Chat
from ssd.distill.student import Decoder
from ssd.errors import SsdError
from ssd.models.pair import OnProgress

PROMPT_WEIGHT = 0.1  # loss weight of a prompt token; an answer token has 1
HIDDEN_WEIGHT = 0.1  # weight of the hidden states' term in the loss
WARM_UP_STEPS = 60
CHECKPOINT_EVERY = 120.0  # seconds
LEAST_RATE = 0.02  # the final learning rate, as a fraction of the peak
ROWS_AT_ONCE = 512  # rows of logits: with 8192 columns they stay in a CPU's cache


class Texts:
    """All chats as consecutive rows, one row per token, with the target's hidden state of each.

    ids: each chat's tokens. first: the first row of each chat, and the number of rows at the end. hidden: [rows, d] bfloat16,
    mapped from a file. filled: whether that file is complete.
    """

    def __init__(self, chats: Sequence[Chat], hidden_file: Path, hidden_size: int) -> None:
        self.chats = chats
        self.ids = [torch.tensor(chat.prompt + chat.answer) for chat in chats]
        self.first = torch.tensor([0, *map(len, self.ids)]).cumsum(0).tolist()
        self._file = hidden_file
        rows = self.first[-1]
        size = rows * hidden_size * 2
        whole = hidden_file.exists() and hidden_file.stat().st_size == size
        self.filled = whole and self._done_file.exists() and self._done_file.read_text() == self._content
        if not self.filled:
            self._done_file.unlink(missing_ok=True)
            hidden_file.unlink(missing_ok=True)
            if (free := shutil.disk_usage(hidden_file.parent).free) < size:
                raise SsdError(
                    f"the target's hidden states take {size / 1e9:.1f} GB in {hidden_file.parent}, and {free / 1e9:.1f} GB are free; "
                    "make room, or lower --tokens."
                )
        self.hidden = torch.from_file(str(hidden_file), shared=True, size=rows * hidden_size, dtype=torch.bfloat16)
        self.hidden = self.hidden.view(rows, hidden_size)

    @property
    def _done_file(self) -> Path:
        """A small file beside a complete `hidden` file that says which chats it is for."""
        return self._file.with_suffix(".done")

    @property
    def _content(self) -> str:
        return f"{len(self.ids)} chats, {self.first[-1]} tokens"

    @property
    def tokens(self) -> int:
        return int(self.first[-1])

    def fill(self, target: Decoder, device: torch.device, batch_tokens: int, progress: OnProgress) -> None:
        """Run the target over all chats and store its hidden states."""
        by_length = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        done = 0
        for batch in _cut(by_length, self.ids, batch_tokens):
            with torch.inference_mode():
                hidden = target(self.padded(batch).to(device)).to("cpu", torch.bfloat16)
            for row, i in enumerate(batch):
                self.hidden[self.first[i] : self.first[i + 1]] = hidden[row, : len(self.ids[i])]
                done += len(self.ids[i])
            progress(done / self.tokens)
        self._done_file.write_text(self._content)

    def padded(self, batch: Sequence[int]) -> Tensor:
        """The ids of a batch of chats: [b, T] int64, padded with 0."""
        return torch.nn.utils.rnn.pad_sequence([self.ids[i] for i in batch], batch_first=True)

    def batches(self, indices: Sequence[int], batch_tokens: int, rng: random.Random) -> list[list[int]]:
        """The chats of these indices in batches of similar length. Both the chats and the batches are shuffled."""
        order = list(indices)
        rng.shuffle(order)
        pool = 2048
        batches = []
        for start in range(0, len(order), pool):
            by_length = sorted(order[start : start + pool], key=lambda i: len(self.ids[i]))
            batches += list(_cut(by_length, self.ids, batch_tokens))
        rng.shuffle(batches)
        return batches

    def rows(self, batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of a batch that are trained: every token except the last of each chat, which has no next token.

        Returns the chat's index in the batch, the position in the chat, the row of `hidden` and the loss weight, each [R].
        """
        chat, position, row, weight = [], [], [], []
        for index, i in enumerate(batch):
            count = len(self.ids[i]) - 1
            chat.append(torch.full((count,), index))
            position.append(torch.arange(count))
            row.append(self.first[i] + position[-1])
            answer = len(self.chats[i].prompt) - 1  # the prompt's last token predicts the answer's first
            weight.append(torch.where(position[-1] < answer, PROMPT_WEIGHT, 1.0))
        return torch.cat(chat), torch.cat(position), torch.cat(row), torch.cat(weight)


def _cut(order: Sequence[int], ids: Sequence[Tensor], batch_tokens: int) -> Iterator[list[int]]:
    """Cut chats into batches of at most `batch_tokens` padded tokens, and at least one chat."""
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, len(ids[i]))
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], len(ids[i])
        batch.append(i)
    if batch:
        yield batch


class _KL(torch.autograd.Function):
    """The sum of weight · KL(target ‖ student) over rows. The forward pass computes the gradient too, so no logits are kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, head: Tensor, weight: Tensor) -> Tensor:
        """student, target: [R, d] hidden states; head: [Vd, d], shared by both models; weight: [R]."""
        gradient = torch.empty_like(student)
        total = torch.zeros((), device=student.device)
        for first in range(0, len(student), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            q = torch.log_softmax((student[rows].to(head.dtype) @ head.T).float(), dim=-1)
            p = torch.log_softmax((target[rows].to(head.dtype) @ head.T).float(), dim=-1)
            p_exp = p.exp()
            total += (weight[rows] * (p_exp * p.sub_(q)).sum(dim=-1)).sum()
            slope = q.exp_().sub_(p_exp).mul_(weight[rows, None])  # the gradient at the student's logits
            gradient[rows] = (slope.to(head.dtype) @ head).to(student.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None


def loss_of(student: Tensor, target: Tensor, head: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its KL part in nats per token. The loss is the weighted mean of KL(target ‖ student) over the student's
    vocabulary, plus HIDDEN_WEIGHT times the relative squared distance of the hidden states. student, target: [R, d]; head: [Vd,
    d]; weight: [R]."""
    mass = weight.sum()
    kl: Tensor = _KL.apply(student, target, head, weight) / mass  # type: ignore[no-untyped-call]
    apart = (student.float() - target.float()).square().mean(dim=-1) / target.float().square().mean(dim=-1).clamp_min(1e-6)
    return kl + HIDDEN_WEIGHT * (weight * apart).sum() / mass, kl.detach()


@dataclass
class Status:
    """The state of the training. fraction: the fraction of the schedule that is done. tokens_per_s: rows trained per second in
    this run. kl: nats per token, averaged over the last steps. agreement: on held-out answers at the last evaluation; None
    before it."""

    step: int
    fraction: float
    tokens_per_s: float
    kl: float
    agreement: float | None


@dataclass
class Schedule:
    """The length and speed of the training. epochs: passes over all chats. seconds: time limit, which may end training earlier.
    budget: the time budget of the whole run, in seconds, from which `seconds` was computed. A run resumed with the same budget
    keeps its first `seconds`."""

    epochs: float
    seconds: float | None
    budget: float | None
    learning_rate: float
    batch_tokens: int
    seed: int


def train(
    student: Decoder,
    head: Tensor,
    texts: Texts,
    indices: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    evaluate: Callable[[], float],
    report: Callable[[Status], None],
) -> int:
    """Train the student on the chats of these indices. Returns the number of steps, including those of earlier runs.

    head: [Vd, d], the target's output rows for the student's vocabulary. checkpoint: the file to save to, and to resume from if
    it exists. evaluate: returns the agreement on held-out answers. report: called after each step. Raises SsdError for a
    checkpoint of another student.
    """
    device = head.device
    parameters = list(student.body.parameters())
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), foreach=True
    )
    step, before = 0, 0.0
    if checkpoint.exists():
        step, before, seconds, budget = _load(checkpoint, student, optimizer)
        if budget == schedule.budget:
            schedule = replace(schedule, seconds=seconds)
    first_step, began, saved, evaluated = step, time.monotonic(), time.monotonic(), 0.0
    steps_an_epoch = len(texts.batches(indices, schedule.batch_tokens, random.Random(schedule.seed)))
    last = max(1, round(schedule.epochs * steps_an_epoch))
    rows_done, kl_mean, agreement = 0, 0.0, None

    def fraction() -> float:
        by_time = (before + time.monotonic() - began) / schedule.seconds if schedule.seconds is not None else 0.0
        return max(step / last, by_time)

    for batch in islice(_endless(texts, indices, schedule, steps_an_epoch, step), max(0, last - step)):
        if (done := fraction()) >= 1:
            break
        rate = schedule.learning_rate * min(1.0, (step + 1) / WARM_UP_STEPS)
        rate *= LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        chat, position, row, weight = texts.rows(batch)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = student(texts.padded(batch).to(device))
        loss, kl = loss_of(hidden[chat, position], texts.hidden[row].to(device), head, weight.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        step += 1
        rows_done += len(row)
        blend = max(0.02, 1 / (step - first_step))
        kl_mean += blend * (float(kl) - kl_mean)
        now = time.monotonic()
        if now - saved > CHECKPOINT_EVERY:
            _save(checkpoint, student, optimizer, schedule, step, before + now - began)
            saved = now
        if fraction() >= evaluated + 0.1:
            agreement, evaluated = evaluate(), fraction()
        report(Status(step, fraction(), rows_done / (now - began), kl_mean, agreement))
    _save(checkpoint, student, optimizer, schedule, step, before + time.monotonic() - began)
    return step


def _endless(texts: Texts, indices: Sequence[int], schedule: Schedule, steps_an_epoch: int, step: int) -> Iterator[list[int]]:
    """Batches, epoch after epoch, from this step on. An epoch's order depends only on the seed and the epoch's number."""
    epoch, skipped = divmod(step, steps_an_epoch)
    while True:
        batches = texts.batches(indices, schedule.batch_tokens, random.Random(f"{schedule.seed}, {epoch}"))
        yield from batches[skipped:steps_an_epoch]
        epoch, skipped = epoch + 1, 0


def _save(file: Path, student: Decoder, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, spent: float) -> None:
    state = {
        "student": student.body.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent": spent,
        "seconds": schedule.seconds,
        "budget": schedule.budget,
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _load(file: Path, student: Decoder, optimizer: torch.optim.Optimizer) -> tuple[int, float, float | None, float | None]:
    """Restore student and optimizer. Returns (step, seconds spent, the schedule's seconds, the schedule's budget)."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        student.body.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["spent"], state["seconds"], state["budget"]
    except Exception as error:  # torch raises several types, and pickle's too
        raise SsdError(f"the checkpoint {file} belongs to another student; choose another --out, or delete it.") from error
