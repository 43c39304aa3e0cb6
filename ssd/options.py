"""What a user may ask for: the engine's settings, the speculation's, and a request's. Validated once, here.

Everything refused is refused with one sentence that names the value, the limit and what to do (`SsdError`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ssd.errors import SsdError

Mode = Literal["ar", "sd", "ssd"]
ModeName = Literal["ar", "sd", "ssd", "auto"]
DtypeName = Literal["auto", "bfloat16", "float32"]
FanOut = str | Sequence[int]
Fallback = Literal["auto", "neural", "ngram"]

MAX_LOOKAHEAD = 63  # a verification has at most 64 nodes, the last committed token among them
MAX_BUDGET = 256  # branch rows that share one read of the draft's weights


def _one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise SsdError(f"{name} is {value!r}; it can be {', '.join(map(repr, allowed))}.")


def within(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    """Raise SsdError unless the setting is a number in this range."""
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        limit = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise SsdError(f"{name} is {value!r}; it must be {kind} {limit}.")


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded.

    temperature: 0 is greedy. top_k: keep the k likeliest (0: all). top_p: then the likeliest that reach this probability (1: all).
    min_p: then those at least this fraction of the likeliest (0: all). max_new_tokens: tokens generated at most.
    stop: strings that end the text and are left out of it. ignore_eos: go on behind an end-of-sequence token.
    seed: of this request's randomness (None: from the engine's seed and the request's place in the call).
    logprobs: report each token's log-probability under the unprocessed distribution, and the n likeliest (0: none).

    Raises SsdError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise SsdError(f"stop is {self.stop!r}; it must be one or more strings that are not empty.")
        object.__setattr__(self, "stop", tuple(stop))
        within("temperature", self.temperature, 0, 100)
        if 0 < self.temperature < 0.01:
            raise SsdError(f"temperature is {self.temperature!r}; use 0 for greedy decoding, or at least 0.01.")
        within("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        within("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise SsdError("top_p is 0, which keeps no token; use a number above 0, or temperature=0 for greedy decoding.")
        within("min_p", self.min_p, 0, 1)
        within("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1, whole=True)
        within("logprobs", self.logprobs, 0, 100, whole=True)
        if self.seed is not None:
            within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)


@dataclass(frozen=True)
class SpeculationConfig:
    """How a speculation is made (arXiv 2603.03251).

    lookahead: K, draft tokens a round. budget: B, branches prepared a round and sequence. fan_out: how the budget is shared among
    accepted counts: "measured" (the best for what was seen so far), "geometric" (Theorem 12), "uniform", or an explicit list of K + 1
    numbers that sum to B. fallback: what a miss gets: "neural", the draft drafting then; "ngram", what followed the same words
    before; "auto", the cheaper one as measured. saguaro_c, saguaro_f: a draft that samples draws its top F tokens with their
    probability times C (Definition 14): fewer acceptances, more hits; F is budget // (lookahead + 1) + 1 unless given. tree: draft a
    tree with so many children a node, level by level, instead of a chain; its levels take lookahead's place.
    """

    lookahead: int = 4
    budget: int = 8
    fan_out: FanOut = "measured"
    fallback: Fallback = "auto"
    saguaro_c: float = 1.0
    saguaro_f: int | None = None
    tree: Sequence[int] | None = None

    def __post_init__(self) -> None:
        within("lookahead", self.lookahead, 1, MAX_LOOKAHEAD, whole=True)
        within("budget", self.budget, 1, MAX_BUDGET, whole=True)
        if isinstance(self.fan_out, str):
            _one_of("fan_out", self.fan_out, ("measured", "geometric", "uniform"))
        else:
            self._check_explicit_fan_out(self.fan_out)
        _one_of("fallback", self.fallback, get_args(Fallback))
        within("saguaro_c", self.saguaro_c, 0.01, 1)
        if self.saguaro_f is not None:
            within("saguaro_f", self.saguaro_f, 1, 2**24 - 1, whole=True)
        if self.tree is not None:
            self._check_tree(self.tree)
            object.__setattr__(self, "lookahead", len(self.tree))

    def _check_explicit_fan_out(self, fan_out: Sequence[int]) -> None:
        fits = isinstance(fan_out, Sequence) and len(fan_out) == self.lookahead + 1
        if not fits or not all(isinstance(n, int) and n >= 0 for n in fan_out) or sum(fan_out) != self.budget:
            raise SsdError(
                f"fan_out is {fan_out!r}; it must be 'measured', 'geometric', 'uniform' or {self.lookahead + 1} numbers (lookahead + 1) "
                f"that sum to budget={self.budget}, for example {[self.budget] + [0] * self.lookahead}."
            )

    def _check_tree(self, tree: Sequence[int]) -> None:
        whole = isinstance(tree, Sequence) and not isinstance(tree, str) and len(tree) > 0
        if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in tree):
            raise SsdError(f"tree is {tree!r}; it must be children a node, level by level, for example (3, 2, 1, 1).")
        nodes = _nodes(tree)
        if nodes > MAX_LOOKAHEAD + 1:
            raise SsdError(
                f"tree {tuple(tree)} has {nodes} nodes; a verification takes at most {MAX_LOOKAHEAD + 1}, have fewer children or levels."
            )

    @property
    def nodes(self) -> int:
        """Rows of a verification: of a chain, the last committed token and the tokens proposed behind it."""
        return _nodes(self.tree) if self.tree is not None else self.lookahead + 1

    @property
    def top_f(self) -> int:
        """F of Saguaro sampling."""
        return self.saguaro_f or self.budget // (self.lookahead + 1) + 1


def _nodes(tree: Sequence[int]) -> int:
    nodes, width = 1, 1
    for children in tree:
        width *= children
        nodes += width
    return nodes


@dataclass(frozen=True)
class EngineConfig:
    """Where and how the engine runs; see `ssd.Engine` for the meaning of each."""

    target: str
    draft: str | None = "auto"
    mode: ModeName = "auto"
    dtype: DtypeName = "auto"
    device: str = "auto"
    max_batch: int = 8
    max_context: int | None = None
    gpu_memory_utilization: float = 0.9
    draft_device: str | None = None
    draft_sms: int | None = None
    threads: int | None = None
    draft_threads: int | None = None
    pace: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, get_args(ModeName))
        _one_of("dtype", self.dtype, get_args(DtypeName))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise SsdError(f"device is {self.device!r}; it can be 'auto', 'cpu', 'cuda' or 'cuda:N'.")
        if self.draft_device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.draft_device):
            raise SsdError(f"draft_device is {self.draft_device!r}; it can be 'cpu', 'cuda', 'cuda:N' or None.")
        if self.draft_device is not None and self.draft == "ngram":
            raise SsdError("draft_device is for a draft model, and draft='ngram' is none; leave it out.")
        if self.draft_sms is not None:
            within("draft_sms", self.draft_sms, 1, 1024, whole=True)
        if not isinstance(self.draft, str | None):
            raise SsdError(f"draft is {self.draft!r}; it can be a model, 'self:N', 'ngram', 'auto' or None.")
        within("max_batch", self.max_batch, 1, 4096, whole=True)
        if self.max_context is not None:
            within("max_context", self.max_context, 2, 2**24, whole=True)
        within("gpu_memory_utilization", self.gpu_memory_utilization, 0.01, 1)
        for name in ("threads", "draft_threads"):
            if getattr(self, name) is not None:
                within(name, getattr(self, name), 1, 1024, whole=True)
        if self.pace is not None:
            if not isinstance(self.pace, Sequence) or len(self.pace) != 2:
                raise SsdError(f"pace is {self.pace!r}; it must be two numbers of milliseconds: (verify, draft).")
            for milliseconds in self.pace:
                within("pace", milliseconds, 0, 1e6)
        within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)

    def resolve_mode(self, has_draft: bool, tree: Sequence[int] | None = None) -> Mode:
        """What runs: "auto" is "sd" with a draft and "ar" without one, until the engine measures.

        Raises SsdError for "sd" or "ssd" without a draft, and for a draft or tree that the mode cannot use.
        """
        if self.mode == "ssd" and self.draft == "ngram":
            raise SsdError(
                "mode='ssd' needs a draft model, and draft='ngram' is none; use mode='sd', or fallback='ngram' with a model."
            )
        if tree is not None and (self.mode in ("ar", "ssd") or self.draft == "ngram"):
            with_it = f"mode={self.mode!r}" if self.draft != "ngram" else "draft='ngram'"
            raise SsdError(
                f"tree works with mode='sd' and a draft model, not with {with_it}: an outcome of ssd names no node of a tree."
            )
        if tree is not None and self.mode == "auto" and not has_draft:
            raise SsdError(
                f"tree needs a draft and {self.target!r} has none; name one with draft=, for example 'self:2', or leave tree out."
            )
        if self.mode == "auto":
            return "sd" if has_draft else "ar"
        if self.mode != "ar" and not has_draft:
            raise SsdError(
                f"mode={self.mode!r} needs a draft and {self.target!r} has none; name one with draft=, for example 'self:2', "
                "or use mode='ar'."
            )
        return self.mode
