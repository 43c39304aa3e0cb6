"""What a user may ask for: the engine's settings, the speculation's, and a request's. Validated once, here.

Everything refused is refused with one sentence that names the value, the limit and what to do (`SsdError`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ssd.errors import SsdError

Mode = Literal["ar", "sd", "ssd"]
ModeName = Literal["ar", "sd", "ssd", "auto"]
DtypeName = Literal["auto", "bfloat16", "float32"]
FanOut = str | Sequence[int]

MAX_LOOKAHEAD = 63  # a verification has at most 64 nodes, the last committed token among them
MAX_BUDGET = 256  # branch rows that share one read of the draft's weights


def _one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise SsdError(f"{name} is {value!r}; it can be {', '.join(map(repr, allowed))}.")


def _within(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
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
        _within("temperature", self.temperature, 0, 100)
        if 0 < self.temperature < 0.01:
            raise SsdError(f"temperature is {self.temperature!r}; use 0 for greedy decoding, or at least 0.01.")
        _within("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        _within("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise SsdError("top_p is 0, which keeps no token; use a number above 0, or temperature=0 for greedy decoding.")
        _within("min_p", self.min_p, 0, 1)
        _within("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1, whole=True)
        _within("logprobs", self.logprobs, 0, 100, whole=True)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)


@dataclass(frozen=True)
class SpeculationConfig:
    """How a speculation is made (arXiv 2603.03251).

    lookahead: K, draft tokens a round. budget: B, branches prepared a round and sequence. fan_out: how the budget is shared among
    accepted counts: "geometric" (Theorem 12) or an explicit list of K + 1 numbers that sum to B. fallback: what a miss gets:
    "neural", the draft drafting then; "auto" means that until n-gram is built. saguaro_c, saguaro_f, tree: not built yet.
    """

    lookahead: int = 4
    budget: int = 8
    fan_out: FanOut = "geometric"
    fallback: str = "auto"
    saguaro_c: float = 1.0
    saguaro_f: int | None = None
    tree: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _within("lookahead", self.lookahead, 1, MAX_LOOKAHEAD, whole=True)
        _within("budget", self.budget, 1, MAX_BUDGET, whole=True)
        if isinstance(self.fan_out, str):
            if self.fan_out in ("measured", "uniform"):
                raise SsdError(
                    f"fan_out={self.fan_out!r} is not built yet; use 'geometric' or a list of {self.lookahead + 1} numbers."
                )
            _one_of("fan_out", self.fan_out, ("geometric",))
        else:
            self._check_explicit_fan_out(self.fan_out)
        if self.fallback == "ngram":
            raise SsdError("fallback='ngram' is not built yet; use 'neural' or 'auto'.")
        _one_of("fallback", self.fallback, ("auto", "neural"))
        if self.saguaro_c != 1 or self.saguaro_f is not None:
            raise SsdError(
                "Saguaro sampling (saguaro_c other than 1, saguaro_f) is not built into the engine yet; leave it out."
            )
        if self.tree is not None:
            raise SsdError("tree speculation is not built into the engine yet; leave tree out.")

    def _check_explicit_fan_out(self, fan_out: Sequence[int]) -> None:
        fits = isinstance(fan_out, Sequence) and len(fan_out) == self.lookahead + 1
        if not fits or not all(isinstance(n, int) and n >= 0 for n in fan_out) or sum(fan_out) != self.budget:
            raise SsdError(
                f"fan_out is {fan_out!r}; it must be 'geometric' or {self.lookahead + 1} numbers (lookahead + 1) that sum to "
                f"budget={self.budget}, for example {[self.budget] + [0] * self.lookahead}."
            )


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
        if self.device not in ("auto", "cpu"):
            raise SsdError(f"device is {self.device!r}; the engine runs on 'cpu' only, its CUDA rounds are not built yet.")
        if self.draft_device not in (None, "cpu") or self.draft_sms is not None:
            raise SsdError("draft_device and draft_sms place the draft on CUDA, which is not built yet; leave them out.")
        if not isinstance(self.draft, str | None):
            raise SsdError(f"draft is {self.draft!r}; it can be a model, 'self:N', 'auto' or None.")
        if self.draft == "ngram":
            raise SsdError("draft='ngram' is not built yet; name a draft model, 'self:N' or None.")
        _within("max_batch", self.max_batch, 1, 4096, whole=True)
        if self.max_context is not None:
            _within("max_context", self.max_context, 2, 2**24, whole=True)
        _within("gpu_memory_utilization", self.gpu_memory_utilization, 0.01, 1)
        for name in ("threads", "draft_threads"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 1, 1024, whole=True)
        if self.pace is not None:
            if not isinstance(self.pace, Sequence) or len(self.pace) != 2:
                raise SsdError(f"pace is {self.pace!r}; it must be two numbers of milliseconds: (verify, draft).")
            for milliseconds in self.pace:
                _within("pace", milliseconds, 0, 1e6)
        _within("seed", self.seed, -(2**63), 2**63 - 1, whole=True)

    def resolve_mode(self, has_draft: bool) -> Mode:
        """What runs: "auto" is "sd" with a draft and "ar" without one, until the engine measures.

        Raises SsdError for "sd" or "ssd" without a draft.
        """
        if self.mode == "auto":
            return "sd" if has_draft else "ar"
        if self.mode != "ar" and not has_draft:
            raise SsdError(
                f"mode={self.mode!r} needs a draft and {self.target!r} has none; name one with draft=, for example 'self:2', "
                "or use mode='ar'."
            )
        return self.mode
