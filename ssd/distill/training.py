"""Training: the student's next-token distributions are drawn to the target's, on the chats that the target wrote.

The target's hidden states are computed once, into a file; from them come its distributions over the student's vocabulary, a
matrix product away, and what the student's last hidden state is drawn to.
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

from ssd.distill.chats import Chat, Progress
from ssd.distill.student import Decoder
from ssd.errors import SsdError

PROMPT_WEIGHT = 0.1  # of a prompt's token, against 1 of an answer's
HIDDEN_WEIGHT = 0.1  # of the hidden states' term
WARM_UP_STEPS = 60
CHECKPOINT_EVERY = 120.0  # seconds
LEAST_RATE = 0.02  # of the learning rate, at the end
ROWS_AT_ONCE = 512  # of logits: with 8192 columns they stay in a CPU's cache


class Texts:
    """Chats as one run of rows, a row a token, and the target's hidden state for each.

    hidden: [rows, d] bfloat16, a file on disk.
    """

    def __init__(self, chats: Sequence[Chat], hidden_file: Path, hidden_size: int) -> None:
        self.chats = chats
        self.ids = [torch.tensor(chat.prompt + chat.answer) for chat in chats]
        self.first = torch.tensor([0, *map(len, self.ids)]).cumsum(0).tolist()
        self._file = hidden_file
        rows = self.first[-1]
        size = rows * hidden_size * 2
        whole = hidden_file.exists() and hidden_file.stat().st_size == size
        self.filled = whole and self._mark.exists() and self._mark.read_text() == self._content
        if not self.filled:
            self._mark.unlink(missing_ok=True)
            hidden_file.unlink(missing_ok=True)
            if (free := shutil.disk_usage(hidden_file.parent).free) < size:
                raise SsdError(
                    f"the target's hidden states take {size / 1e9:.1f} GB in {hidden_file.parent}, and {free / 1e9:.1f} GB are free; "
                    "make room, or lower --tokens."
                )
        self.hidden = torch.from_file(str(hidden_file), shared=True, size=rows * hidden_size, dtype=torch.bfloat16)
        self.hidden = self.hidden.view(rows, hidden_size)

    @property
    def _mark(self) -> Path:
        """Beside a file that is whole: what it is of."""
        return self._file.with_suffix(".done")

    @property
    def _content(self) -> str:
        return f"{len(self.ids)} chats, {self.first[-1]} tokens"

    @property
    def tokens(self) -> int:
        return int(self.first[-1])

    def fill(self, target: Decoder, device: torch.device, batch_tokens: int, progress: Progress) -> None:
        """Run the target over all chats."""
        by_length = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        done = 0
        for batch in _cut(by_length, self.ids, batch_tokens):
            with torch.inference_mode():
                hidden = target(self.padded(batch).to(device)).to("cpu", torch.bfloat16)
            for row, i in enumerate(batch):
                self.hidden[self.first[i] : self.first[i + 1]] = hidden[row, : len(self.ids[i])]
                done += len(self.ids[i])
            progress(done / self.tokens)
        self._mark.write_text(self._content)

    def padded(self, batch: Sequence[int]) -> Tensor:
        """[b, T] int64, padded with 0."""
        return torch.nn.utils.rnn.pad_sequence([self.ids[i] for i in batch], batch_first=True)

    def batches(self, of: Sequence[int], batch_tokens: int, chance: random.Random) -> list[list[int]]:
        """All of these chats in random order, cut into batches of chats of like length, themselves in random order."""
        order = list(of)
        chance.shuffle(order)
        pool = 2048
        batches = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lambda i: len(self.ids[i]))
            batches += list(_cut(alike, self.ids, batch_tokens))
        chance.shuffle(batches)
        return batches

    def rows(self, batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a batch is trained: chat in the batch [R], position in it [R], row of `hidden` [R], weight [R]; every token but the
        last of each chat, which nothing follows."""
        chat, position, row, weight = [], [], [], []
        for place, i in enumerate(batch):
            count = len(self.ids[i]) - 1
            chat.append(torch.full((count,), place))
            position.append(torch.arange(count))
            row.append(self.first[i] + position[-1])
            answer = len(self.chats[i].prompt) - 1  # the prompt's last token predicts the answer's first
            weight.append(torch.where(position[-1] < answer, PROMPT_WEIGHT, 1.0))
        return torch.cat(chat), torch.cat(position), torch.cat(row), torch.cat(weight)


def _cut(order: Sequence[int], ids: Sequence[Tensor], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of so many padded tokens at most, of one chat at least."""
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
    """sum of weight · KL(target ‖ student) over rows, with its gradient found on the way: no logits are kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, head: Tensor, weight: Tensor) -> Tensor:
        """student, target: [R, d] hidden states; head: [Vd, d], both models'; weight: [R]."""
        gradient = torch.empty_like(student)
        total = torch.zeros((), device=student.device)
        for first in range(0, len(student), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            q = torch.log_softmax((student[rows].to(head.dtype) @ head.T).float(), dim=-1)
            p = torch.log_softmax((target[rows].to(head.dtype) @ head.T).float(), dim=-1)
            p_exp = p.exp()
            total += (weight[rows] * (p_exp * p.sub_(q)).sum(dim=-1)).sum()
            slope = q.exp_().sub_(p_exp).mul_(weight[rows, None])  # of the student's logits
            gradient[rows] = (slope.to(head.dtype) @ head).to(student.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None


def loss_of(student: Tensor, target: Tensor, head: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of rows and its first part, nats a token: the weighted mean of KL(target ‖ student) over the student's vocabulary,
    plus a little of the hidden states' relative squared distance. student, target: [R, d]; head: [Vd, d]; weight: [R]."""
    mass = weight.sum()
    kl: Tensor = _KL.apply(student, target, head, weight) / mass  # type: ignore[no-untyped-call]
    apart = (student.float() - target.float()).square().mean(dim=-1) / target.float().square().mean(dim=-1).clamp_min(1e-6)
    return kl + HIDDEN_WEIGHT * (weight * apart).sum() / mass, kl.detach()


@dataclass
class Status:
    """Where training is. fraction: of the schedule; tokens_per_s: rows trained a second in this run; kl: nats a token, averaged over
    the last steps; agreement: on held-out answers when last looked at."""

    step: int
    fraction: float
    tokens_per_s: float
    kl: float
    agreement: float | None


@dataclass
class Schedule:
    """How long and how fast. epochs: over all chats, unless `seconds` are over before. budget: the seconds for everything that they
    were taken from; a run that goes on with the same budget keeps its `seconds`."""

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
    of: Sequence[int],
    schedule: Schedule,
    checkpoint: Path,
    evaluate: Callable[[], float],
    report: Callable[[Status], None],
) -> int:
    """Train the student on these chats and return the steps taken, those of earlier runs among them.

    head: [Vd, d], the target's output rows that the student has. checkpoint: where this run goes on if the file is there, and where it
    saves itself. evaluate: agreement on held-out answers. Raises SsdError for a checkpoint of another student.
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
    first_step, began, saved, looked = step, time.monotonic(), time.monotonic(), 0.0
    steps_an_epoch = len(texts.batches(of, schedule.batch_tokens, random.Random(schedule.seed)))
    last = max(1, round(schedule.epochs * steps_an_epoch))
    rows_done, kl_mean, agreement = 0, 0.0, None

    def fraction() -> float:
        by_time = (before + time.monotonic() - began) / schedule.seconds if schedule.seconds is not None else 0.0
        return max(step / last, by_time)

    for batch in islice(_endless(texts, of, schedule, steps_an_epoch, step), max(0, last - step)):
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
        if fraction() >= looked + 0.1:
            agreement, looked = evaluate(), fraction()
        report(Status(step, fraction(), rows_done / (now - began), kl_mean, agreement))
    _save(checkpoint, student, optimizer, schedule, step, before + time.monotonic() - began)
    return step


def _endless(texts: Texts, of: Sequence[int], schedule: Schedule, steps_an_epoch: int, step: int) -> Iterator[list[int]]:
    """Batches epoch by epoch, from this step on; an epoch's order depends on nothing but the seed and its number."""
    epoch, skipped = divmod(step, steps_an_epoch)
    while True:
        batches = texts.batches(of, schedule.batch_tokens, random.Random(f"{schedule.seed}, {epoch}"))
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
    """(step, seconds spent, the schedule's seconds, and its budget)."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        student.body.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["spent"], state["seconds"], state["budget"]
    except Exception as error:  # torch raises its own and pickle's
        raise SsdError(f"the checkpoint {file} is not of this student; choose another --out, or delete it.") from error
