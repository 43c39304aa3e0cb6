"""Requests in, tokens out.

An Engine loads a target and its draft once, keeps the device-resident tables, and runs rounds (ssd/decoding) until every request
is finished: the host admits, reads what a round committed, matches stop strings and retires, and never decides a token.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, overload

import numpy as np
import torch

from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.errors import CheckpointError, SsdError
from ssd.models import registry
from ssd.models.pair import Draft, Progress, load_draft, load_target
from ssd.models.prompts import Prompt, is_single, token_ids
from ssd.models.tokenizer import TextStream, Tokenizer
from ssd.models.transformer import Transformer
from ssd.options import DtypeName, EngineConfig, Fallback, FanOut, ModeName, SamplingParams, SpeculationConfig
from ssd.requests import Completion, Stream
from ssd.runtime.placement import make_executor, memory_for_kv, place
from ssd.runtime.trace import Trace
from ssd.serving.assembly import Assembly, Footprint, Loop
from ssd.serving.scheduler import Request

Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass
class UnderWay:
    """A prefill or a round that was begun, and whose each of its rows is: the slots' of a round, row 0 of a prefill."""

    rows: list[tuple[int, Request]]
    begun: Round | Verification

    @property
    def round(self) -> Round | None:
        return self.begun if isinstance(self.begun, Round) else None

    @property
    def verification(self) -> Verification:
        return self.begun.verification if isinstance(self.begun, Round) else self.begun


class Engine:
    """A target, its draft, and everything their rounds need.

    target: a known model ("smollm2-135m"), a Hugging Face directory, a .gguf file or a hub id. draft: "auto" (the known draft of that
    target, or none), a model like the target, "self:N" (the target's first N layers), "ngram" (no model: what followed before), or
    None. mode: "ar", "sd", "ssd", or "auto".
    lookahead, budget, fan_out, fallback, saguaro_c, saguaro_f, tree: see `SpeculationConfig`. dtype: "bfloat16", "float32", or "auto":
    bfloat16 where the device computes in it. device: "cpu" (also "auto"), or a GPU, "cuda" or "cuda:N". max_batch: sequences running
    at once. max_context: tokens of a sequence, prompt and output (None: what the model was trained for). gpu_memory_utilization: of all
    of a GPU's memory, for weights and K/V. draft_device: a device for the draft (None: the target's, whose tables it shares).
    draft_sms: multiprocessors of a shared GPU that the draft may use (None: all). threads, draft_threads: of the target and of SSD's
    draft (None: all cores, one of them the draft's in "ssd"). pace: (verify_ms, draft_ms), the least time of a forward pass of each
    model. seed: of requests that bring none. progress: called with the fraction done of loading the target and, on a GPU, recording
    rounds.

    Raises SsdError (bad arguments) and CheckpointError (a model that cannot be used).
    """

    def __init__(
        self,
        target: str,
        draft: str | None = "auto",
        mode: ModeName = "auto",
        lookahead: int = 4,
        budget: int = 8,
        fan_out: FanOut = "measured",
        fallback: Fallback = "auto",
        saguaro_c: float = 1.0,
        saguaro_f: int | None = None,
        tree: Sequence[int] | None = None,
        dtype: DtypeName = "auto",
        device: str = "auto",
        max_batch: int = 8,
        max_context: int | None = None,
        gpu_memory_utilization: float = 0.9,
        draft_device: str | None = None,
        draft_sms: int | None = None,
        threads: int | None = None,
        draft_threads: int | None = None,
        pace: tuple[float, float] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.config = EngineConfig(
            target=str(target),
            draft=draft,
            mode=mode,
            dtype=dtype,
            device=device,
            max_batch=max_batch,
            max_context=max_context,
            gpu_memory_utilization=gpu_memory_utilization,
            draft_device=draft_device,
            draft_sms=draft_sms,
            threads=threads,
            draft_threads=draft_threads,
            pace=pace,
            seed=seed,
        )
        self.speculation_config = SpeculationConfig(
            lookahead=lookahead,
            budget=budget,
            fan_out=fan_out,
            fallback=fallback,
            saguaro_c=saguaro_c,
            saguaro_f=saguaro_f,
            tree=tree,
        )
        draft_name = registry.draft_named(draft, self.config.target)
        asked_mode = self.config.resolve_mode(draft_name is not None, tree)
        progress = progress or (lambda fraction: None)

        placement = place(self.config)
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._draft_threads = draft_threads or 1
        self._closed = False
        self.trace = Trace()
        self._executor = make_executor(self.trace, self.config, placement, self._draft_threads)
        loading = 0.8 if self._executor.prepared else 1.0  # of the progress; the rest is recording
        with _fits(f"the weights of {self.config.target!r}", "free some, or choose a smaller model"):
            self._target = load_target(
                self.config.target,
                placement.dtype,
                placement.target,
                lambda context: self._positions(max_context or context),
                lambda fraction: progress(loading * fraction),
            )
        self.max_context = max_context or self._target.context
        if self.max_context > self._target.context:
            raise SsdError(
                f"max_context is {max_context}; {self.config.target!r} was trained for {self._target.context} tokens, use at most that."
            )
        name = draft_name if asked_mode != "ar" else None
        model = self._load_draft(name, placement.draft) if name not in (None, "ngram") else None
        with _fits(f"K/V for gpu_memory_utilization={gpu_memory_utilization:g}", "lower it"):
            self._assembly = Assembly(
                self.config,
                self.speculation_config,
                placement,
                self._target,
                model,
                asked_mode,
                self.max_context,
                self._executor,
            )
        self._scheduler = self._assembly.scheduler
        self._pages = self._assembly.pages
        self._loop = self._build_loop(name, model)
        self._under_way: deque[UnderWay] = deque()
        self._prepare(lambda fraction: progress(loading + (1 - loading) * fraction))

    # Public ------------------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """The mode in use: "ar", "sd" or "ssd"."""
        return self._loop.mode

    @property
    def threads(self) -> int:
        """Intra-op threads of the target: all cores, but those that SSD's draft has for itself."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.config.threads or (max(1, cores - self._draft_threads) if self.mode == "ssd" else cores)

    @property
    def footprint(self) -> Footprint:
        """What this engine takes, and how it runs."""
        return self._assembly.footprint(self._loop, self.threads)

    @property
    def target_model(self) -> Transformer:
        return self._target.model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The target's, or None where its checkpoint has none."""
        return self._target.tokenizer

    @overload
    def decode(self, prompts: Prompt, params: Params = None, *, raw: bool = False) -> Completion: ...  # type: ignore[overload-overlap]
    @overload
    def decode(self, prompts: Sequence[Prompt], params: Params = None, *, raw: bool = False) -> list[Completion]: ...
    def decode(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, raw: bool = False
    ) -> Completion | list[Completion]:
        """Decode one prompt, or a list of them together.

        prompts: a str (one user message in the model's chat template, or as it is with raw=True), a list of {"role", "content"}
        messages, or a list of token ids; a list of those is a batch. params: for all, or one for each.
        Returns a `Completion`, or a list of them in order. Raises SsdError before anything runs.
        """
        single = is_single(prompts)
        batch: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[list-item, arg-type]
        requests = self._requests(batch, params, raw)
        for _ in self._run(requests):
            pass
        completions = [self._completion(request) for request in requests]
        return completions[0] if single else completions

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, raw: bool = False) -> Stream:
        """Decode one prompt, yielding pieces of its text as they are certain. Raises SsdError before anything runs."""
        (request,) = self._requests([prompt], params, raw)

        def pieces() -> Generator[str | Completion]:
            shown = 0
            with closing(self._run([request])) as rounds:
                for _ in rounds:
                    text = request.certain_text()
                    if len(text) > shown:
                        yield text[shown:]
                        shown = len(text)
            yield self._completion(request)

        return Stream(pieces())

    def close(self) -> None:
        """Stop the draft's thread. The engine cannot be used afterwards."""
        self._closed = True
        self._executor.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Building ----------------------------------------------------------------------------------------------------------------

    def _positions(self, context: int) -> int:
        """Rotary positions: padding rows and branches behind the last tokens reach a little beyond the context."""
        return context + 2 * (self.speculation_config.lookahead + 1)

    def _load_draft(self, name: str, device: torch.device) -> Draft | None:
        try:
            draft = load_draft(name, self._target, self._positions(self.max_context), device)
        except (CheckpointError, MemoryError, RuntimeError) as error:
            self._warn_of_draft(error)
            return None
        if device != self._target.model.device:
            try:
                memory_for_kv(self.config, device)
            except SsdError as error:
                self._warn_of_draft(error)
                return None
        return draft

    def _build_loop(self, name: str | None, draft: Draft | None) -> Loop:
        if name == "ngram":
            return self._assembly.with_ngrams()
        if draft is not None:
            try:
                return self._assembly.with_draft()
            except (MemoryError, RuntimeError) as error:
                self._warn_of_draft(error)
        return self._assembly.autoregressive()

    def _prepare(self, progress: Progress) -> None:
        """Run what is to be recorded, over slots that are free: a first time, and to record it. What only requests that sample need, and
        the other fallback of "auto", is recorded when it is first asked for."""
        self._executor.settle()  # tables that were allocated are there
        with torch.inference_mode():
            for i, n in enumerate(sizes := self._executor.prepared):
                self._round(n)
                self._round(n)
                progress((i + 1) / len(sizes))
        self._executor.settle()

    # Running -----------------------------------------------------------------------------------------------------------------

    def _requests(self, prompts: Sequence[Prompt], params: Params, raw: bool) -> list[Request]:
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        for own in each:
            if not isinstance(own, SamplingParams):
                raise SsdError(f"params is {own!r}; it must be SamplingParams, or a list of them.")
        if len(each) != len(prompts):
            raise SsdError(f"there are {len(prompts)} prompts and {len(each)} params; give one for all, or one for each.")
        requests = []
        for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            try:
                requests.append(self._request(prompt, own, index, raw))
            except SsdError as error:
                raise SsdError(f"prompt {index} of {len(prompts)}: {error}" if len(prompts) > 1 else str(error)) from None
        return requests

    def _request(self, prompt: Prompt, params: SamplingParams, index: int, raw: bool) -> Request:
        ids = token_ids(prompt, self._target.tokenizer, self._target.model.vocab_size, raw=raw)
        if params.stop and self._target.tokenizer is None:
            raise SsdError(f"stop strings need text, and {self.config.target!r} has no tokenizer; leave stop out.")
        if len(ids) + params.max_new_tokens > self.max_context:
            raise SsdError(
                f"the prompt's {len(ids)} tokens and max_new_tokens={params.max_new_tokens} are over the context of {self.max_context}; "
                "shorten one of them or raise max_context as far as the model goes."
            )
        seed = params.seed if params.seed is not None else _seed_of(self.config.seed, index)
        stream = TextStream(self._target.tokenizer) if self._target.tokenizer is not None else None
        request = Request(ids, params, seed, stream)
        if self._scheduler.pages_for(request) > self._pages.capacity:
            raise SsdError(
                f"the prompt and its output need {self._scheduler.pages_for(request)} pages of K/V and memory holds "
                f"{self._pages.capacity}; lower max_new_tokens, or {self._assembly.more_memory}."
            )
        return request

    def _run(self, requests: Sequence[Request]) -> Generator[None]:
        """Run rounds until all are finished; yields whenever a request has grown."""
        if self._closed:
            raise SsdError("this engine is closed; make another one.")
        if not self._lock.acquire(blocking=False):
            raise SsdError(
                "this engine is already decoding; finish or close that stream first, or batch the prompts in one call."
            )
        try:
            for request in requests:
                self._scheduler.add(request)
            while self._scheduler.busy:
                if self._closed:
                    raise SsdError("this engine was closed before the stream was finished; make another one.")
                with self._on_target_threads():
                    self._step()
                yield
        finally:
            self._under_way.clear()
            try:
                for request in requests:
                    self._release(request)
            finally:
                self._lock.release()

    def _step(self) -> None:
        """Admit what fits, begin one round of all that runs, and read what earlier ones left."""
        while (request := self._scheduler.admit()) is not None:
            self._begin([(0, request)], self._admit(request))
            self._read(at_most=self._executor.in_flight)
        if self._scheduler.running:
            running = list(self._scheduler.running.items())
            with self.trace.named("round"):
                self._begin(running, self._round(self._scheduler.batch))
        wants_logits = any(request.params.logprobs for request in self._scheduler.running.values())
        self._read(at_most=0 if wants_logits or not self._scheduler.running else self._executor.in_flight)

    def _begin(self, rows: list[tuple[int, Request]], begun: Round | Verification) -> None:
        self._under_way.append(UnderWay(rows, begun))

    def _read(self, at_most: int) -> None:
        """Read what the oldest rounds left, until at most so many are under way."""
        while len(self._under_way) > at_most:
            self._take(self._under_way.popleft())

    def _take(self, under_way: UnderWay) -> None:
        """What a prefill or a round left: its tokens to their requests, its times to the stats. A request that had ended before, seen or
        not, has no part in it."""
        verification, round = under_way.verification, under_way.round
        grown = []
        for row, request in under_way.rows:
            report = verification.slots[row]
            committed = report.length + 1 - len(request.prompt) - len(request.token_ids)
            if request.finish_reason is None and committed > 0:
                grown.append((row, request, report, committed))
        if round is not None:
            reports = [report for _, _, report, _ in grown]
            missed = not all(report.hit for report in reports)
            try:
                self._loop.learn(round, reports)
            except DraftFailed as failure:
                self._go_on_without_draft(failure.__cause__)
                round.forget_draft()
        for row, request, report, committed in grown:
            if round is None:
                request.stats.started()
            else:
                accepted = min(report.accepted, committed)
                request.stats.add(
                    round, accepted=accepted, proposed=report.proposed, hit=report.hit, missed=missed, rank=round.rank(row)
                )
            self._collect(request, verification, row, report, committed)

    def _admit(self, request: Request) -> Verification:
        row = request.slot, len(request.prompt), request.params.temperature > 0
        try:
            return self._loop.admit(*row)
        except DraftFailed as failure:
            self._go_on_without_draft(failure.__cause__)
            begun = failure.begun
            return begun if isinstance(begun, Verification) else self._loop.admit(*row)

    def _round(self, n: int) -> Round:
        try:
            return self._loop.round(n)
        except DraftFailed as failure:
            self._go_on_without_draft(failure.__cause__)
            if not isinstance(failure.begun, Round):
                return self._loop.round(n)
            failure.begun.forget_draft()
            return failure.begun

    def _release(self, request: Request) -> None:
        """Let a request's slot and pages go, or forget that it waits."""
        runs = request.pages is not None
        self._scheduler.release(request)
        if runs:
            try:
                self._loop.retire(request.slot)
            except DraftFailed as failure:
                self._go_on_without_draft(failure.__cause__)

    def _go_on_without_draft(self, error: BaseException | None) -> None:
        self._warn_of_draft(error)
        for under_way in self._under_way:
            if under_way.round is not None:
                under_way.round.forget_draft()
        self._executor.close()
        self._loop = self._assembly.autoregressive()
        self._executor.settle()  # its tables are there before its rounds are

    def _warn_of_draft(self, error: BaseException | None) -> None:
        self._failure = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"the draft failed ({self._failure}); decoding goes on without it, token by token", RuntimeWarning, stacklevel=2
        )

    def _collect(self, request: Request, verification: Verification, row: int, report: SlotReport, committed: int) -> None:
        """Take what was committed, and retire the request if that ends it."""
        taken = len(request.token_ids)
        request.take(report.newest[-committed:])
        if request.params.logprobs:
            output, new = verification.output, request.token_ids[taken:]
            rows = output.path[row, : len(new)].long()
            request.logprobs += _logprobs(output.logits[row, rows], new, request.params.logprobs)
        request.degraded |= self._failure is not None
        if request.finish_reason is None and report.done:
            ended = request.token_ids[-1] in self._target.model.config.eos_token_ids and not request.params.ignore_eos
            request.finish("eos" if ended else "length")
        if request.finish_reason is not None:
            self._release(request)

    def _completion(self, request: Request) -> Completion:
        return Completion(
            text=request.text,
            token_ids=request.token_ids,
            finish_reason=request.finish_reason or "",
            logprobs=request.logprobs if request.params.logprobs else None,
            degraded=request.degraded,
            stats=request.stats.summary(self.mode, len(request.token_ids)),
        )

    @contextmanager
    def _on_target_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)


@overload
def decode(prompts: Prompt, target: str = ..., *, raw: bool = ..., **options: Any) -> Completion: ...
@overload
def decode(prompts: Sequence[Prompt], target: str = ..., *, raw: bool = ..., **options: Any) -> list[Completion]: ...
def decode(
    prompts: Prompt | Sequence[Prompt], target: str = "smollm2-135m", *, raw: bool = False, **options: Any
) -> Completion | list[Completion]:
    """Decode with an engine that is loaded at the first call and kept for the next ones with the same options.

    options: `SamplingParams` fields and `Engine` arguments; `seed` is the request's. Returns what `Engine.decode` returns.
    """
    sampling = {k: v for k, v in options.items() if k in SamplingParams.__dataclass_fields__}
    known = [*SamplingParams.__dataclass_fields__, *list(signature(Engine).parameters)[1:]]
    for name in options:
        if name not in known:
            raise SsdError(f"the option {name!r} is not known; it can be {', '.join(known)}.")
    engine_options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k not in sampling}
    return _cached_engine(target, tuple(sorted(engine_options.items()))).decode(prompts, SamplingParams(**sampling), raw=raw)


@lru_cache(maxsize=1)
def _cached_engine(target: str, options: tuple[tuple[str, Any], ...]) -> Engine:
    return Engine(target, **dict(options))


@contextmanager
def _fits(what: str, otherwise: str) -> Iterator[None]:
    """Say in a sentence that something finds no room on a GPU."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise SsdError(f"there is no room in the GPU's memory for {what}; {otherwise}.") from None


def _seed_of(engine_seed: int, index: int) -> int:
    """The seed of a request that brings none: from the engine's and its place in the call."""
    words = np.random.SeedSequence([engine_seed % 2**64, index]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _logprobs(logits: torch.Tensor, tokens: list[int], count: int) -> list[dict[int, float]]:
    """logits: [tokens, V]. For each token its own log-probability and the `count` largest, by id."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
    rows = zip(tokens, logprobs, ids.tolist(), values.tolist(), strict=True)
    return [{token: float(row[token]), **dict(zip(top, top_values, strict=True))} for token, row, top, top_values in rows]
