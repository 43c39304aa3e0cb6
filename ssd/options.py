"""The options of an engine, of its speculation and of a request: the only list of them.

A value is checked once, here. A refusal is one sentence with the value, the limit and the remedy (`SsdError`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, Signature, cleandoc
from typing import Any, Literal, TypeVar

from ssd.errors import SsdError
from ssd.fields import build, check, describe, documented, numbers, one_of, option, options_of, within

ModeName = Literal["ar", "sd", "ssd", "auto"]
DtypeName = Literal["auto", "bfloat16", "float32"]
WeightsName = Literal["auto", "bf16", "int8"]
FallbackName = Literal["auto", "neural", "ngram"]
FanOut = str | Sequence[int]
T = TypeVar("T")

MAX_LOOKAHEAD = 63  # a verification has at most 64 nodes, and the last committed token is one
MAX_BUDGET = 256  # branch rows that share one read of the draft's weights

# Headings of the command line's help, in this order.
MODELS, SPECULATION, SAMPLING, MACHINE = "Models", "Speculation", "Sampling", "Machine"

SEEDS = (-(2**63), 2**63 - 1)
NEW_TOKENS = 256  # tokens to generate where max_new_tokens is left out and the context has room for them


@documented
@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded.

    A token is drawn after top_k, top_p and min_p have cut the distribution, in this order. Raises SsdError for a value outside
    its limits.
    """

    temperature: float = option(
        0.0, help="Sampling temperature; 0 is greedy decoding.", panel=SAMPLING, short="-t", limits=(0, 100)
    )
    top_k: int = option(0, help="Number of likeliest tokens to keep; 0 keeps all.", panel=SAMPLING, limits=(0, 2**31 - 1))
    top_p: float = option(
        1.0,
        help="Probability that the kept tokens reach together, likeliest first; 1 keeps all.",
        panel=SAMPLING,
        limits=(0, 1),
    )
    min_p: float = option(
        0.0,
        help="Smallest probability of a kept token, as a fraction of the likeliest token's; 0 keeps all.",
        panel=SAMPLING,
        limits=(0, 1),
    )
    max_new_tokens: int | None = option(
        None,
        help=f"Largest number of tokens to generate; unless given, {NEW_TOKENS}, or fewer where the context has less room.",
        panel=SAMPLING,
        short="-n",
        limits=(1, 2**31 - 1),
    )
    stop: tuple[str, ...] = option((), help="Strings that end the text and are left out of it.", panel=SAMPLING)
    ignore_eos: bool = option(False, help="Decoding past end-of-sequence tokens.", panel=SAMPLING)
    seed: int | None = option(
        None,
        help="Random seed of the request; unless given, drawn from the engine's seed and a counter of its requests without one.",
        panel=SAMPLING,
        limits=SEEDS,
    )
    cache_salt: str | None = option(
        None,
        help="Name of a group of requests that share cached prompts with nobody else; all without one are a group.",
        panel=SAMPLING,
    )
    logprobs: int = option(
        0,
        help="Number of likeliest tokens whose log-probabilities are reported with each token's own; 0 reports none.",
        panel=SAMPLING,
        limits=(0, 100),
    )

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise SsdError(f"stop is {self.stop!r}; it must be one or more strings that are not empty.")
        object.__setattr__(self, "stop", tuple(stop))
        check(self)
        if not isinstance(self.cache_salt, str | None):
            raise SsdError(f"cache_salt is {self.cache_salt!r}; it must be a string, or None.")
        if 0 < self.temperature < 0.01:
            raise SsdError(f"temperature is {self.temperature!r}; use 0 for greedy decoding, or at least 0.01.")
        if self.top_p == 0:
            raise SsdError("top_p is 0, which keeps no token; use a number above 0, or temperature=0 for greedy decoding.")


@documented
@dataclass(frozen=True)
class SpeculationOptions:
    """How a speculation is made (arXiv 2603.03251).

    The levels of `tree` replace `lookahead`. Raises SsdError for a value outside its limits.
    """

    lookahead: int = option(
        4, help="Number of draft tokens per round (K).", panel=SPECULATION, short="-k", limits=(1, MAX_LOOKAHEAD)
    )
    budget: int = option(
        8, help="Number of branches prepared per round and sequence (B).", panel=SPECULATION, short="-b", limits=(1, MAX_BUDGET)
    )
    fan_out: FanOut = option(
        "measured",
        help="Shares of the budget by accepted count: 'measured' (the best for the text so far), 'geometric' (Theorem 12), 'uniform', "
        "or lookahead + 1 numbers that sum to the budget.",
        panel=SPECULATION,
        metavar="NAME|N,N,..",
        parse=numbers("a name, or whole numbers", "4,2,1,1,0", or_name=True),
    )
    fallback: FallbackName = option(
        "auto",
        help="Source of the proposal after a miss: 'neural' (the draft model), 'ngram' (earlier text), or 'auto' (the cheaper one, as "
        "measured).",
        panel=SPECULATION,
    )
    saguaro_c: float = option(
        1.0,
        help="Factor on the probability of the draft's likeliest tokens; below 1, fewer acceptances and more hits (Definition 14).",
        panel=SPECULATION,
        limits=(0.01, 1),
    )
    saguaro_f: int | None = option(
        None,
        help="Number of likeliest tokens that saguaro_c scales; budget // (lookahead + 1) + 1 unless given.",
        panel=SPECULATION,
        limits=(1, 2**24 - 1),
    )
    tree: Sequence[int] | None = option(
        None,
        help="Children per node of a drafted tree, level by level, for mode 'sd'; a chain of lookahead tokens unless given.",
        panel=SPECULATION,
        metavar="N,N,..",
        parse=numbers("children per node, level by level,", "3,2,1,1"),
    )

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.fan_out, str):
            one_of("fan_out", self.fan_out, ("measured", "geometric", "uniform"))
        else:
            self._check_explicit_fan_out(self.fan_out)
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
            raise SsdError(f"tree is {tree!r}; it must be the children per node, level by level, for example (3, 2, 1, 1).")
        nodes = _nodes(tree)
        if nodes > MAX_LOOKAHEAD + 1:
            raise SsdError(
                f"tree {tuple(tree)} has {nodes} nodes; a verification takes at most {MAX_LOOKAHEAD + 1}, so use fewer children or levels."
            )

    @property
    def nodes(self) -> int:
        """Rows of a verification: the last committed token and the proposed tokens."""
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


@documented
@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine; `speculation_options` are those of its speculation.

    Raises SsdError for a value outside its limits.
    """

    target: str = option(
        "smollm2-135m",
        help="Target model: a known model, a Hugging Face directory, a .gguf file or a hub id.",
        panel=MODELS,
        short="-m",
    )
    draft: str | None = option(
        "auto",
        help="Draft model: a model like the target, 'self:N' (the target's first N layers), 'ngram' (earlier text, no model), none "
        "(no draft), or 'auto' (the target's known draft, if any).",
        panel=MODELS,
        parse=lambda flag, text: None if text.lower() == "none" else text,
    )
    mode: ModeName = option(
        "auto",
        help="Decoding mode: 'ar' (autoregressive), 'sd' (speculative), 'ssd' (speculative speculative), or 'auto'.",
        panel=SPECULATION,
    )
    dtype: DtypeName = option(
        "auto",
        help="Data type of both models: 'bfloat16', 'float32', or 'auto' (bfloat16 where the device computes in it).",
        panel=MACHINE,
    )
    weights: WeightsName = option(
        "auto",
        help="Format of both models' matrices: 'bf16', 'int8' (half the bytes, rounded), or 'auto' (as the checkpoint stores "
        "them).",
        panel=MACHINE,
    )
    device: str = option("auto", help="Device of the target: 'cpu' (also 'auto'), 'cuda' or 'cuda:N'.", panel=MACHINE)
    max_batch: int = option(8, help="Largest number of sequences that run at once.", panel=MACHINE, limits=(1, 4096))
    max_context: int | None = option(
        None,
        help="Longest sequence in tokens, prompt and output; the model's own limit unless given.",
        panel=MACHINE,
        limits=(2, 2**24),
    )
    prefix_caching: bool = option(
        True, help="Keeping the K/V of ended sequences, for prompts that begin like them.", panel=MACHINE
    )
    gpu_memory_utilization: float = option(
        0.9, help="Fraction of GPU memory for weights and K/V.", panel=MACHINE, limits=(0.01, 1)
    )
    draft_device: str | None = option(
        None, help="Device of the draft, for example 'cuda:1'; the target's unless given.", panel=MACHINE
    )
    draft_sms: int | None = option(
        None,
        help="Number of multiprocessors for the draft on a GPU that it shares with the target; all unless given.",
        panel=MACHINE,
        limits=(1, 1024),
    )
    threads: int | None = option(
        None,
        help="Number of CPU threads of the target; all cores unless given, less the draft's in mode 'ssd'.",
        panel=MACHINE,
        limits=(1, 1024),
    )
    draft_threads: int | None = option(
        None, help="Number of CPU threads of the draft in mode 'ssd'; 1 unless given.", panel=MACHINE, limits=(1, 1024)
    )
    pace: tuple[float, float] | None = option(
        None,
        help="Shortest time of a forward pass of the target and of the draft, in milliseconds, as if each had hardware of its own.",
        panel=MACHINE,
        metavar="VERIFY,DRAFT",
        parse=numbers("two numbers of milliseconds", "200,24", number=float, count=2),
    )
    seed: int = option(0, help="Random seed.", panel=SAMPLING, limits=SEEDS)
    speculation_options: SpeculationOptions = SpeculationOptions()

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.draft, str | None):
            raise SsdError(f"draft is {self.draft!r}; it can be a model, 'self:N', 'ngram', 'auto' or None.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise SsdError(f"device is {self.device!r}; it can be 'auto', 'cpu', 'cuda' or 'cuda:N'.")
        if self.draft_device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.draft_device):
            raise SsdError(f"draft_device is {self.draft_device!r}; it can be 'cpu', 'cuda', 'cuda:N' or None.")
        if self.draft_device is not None and self.draft == "ngram":
            raise SsdError("draft_device needs a draft model, and draft='ngram' is none; leave it out.")
        if self.pace is not None:
            if not isinstance(self.pace, Sequence) or len(self.pace) != 2:
                raise SsdError(f"pace is {self.pace!r}; it must be two numbers of milliseconds: (verify, draft).")
            for milliseconds in self.pace:
                within("pace", milliseconds, 0, 1e6)

    @classmethod
    def of(cls, target: str, **options: Any) -> EngineOptions:
        """From the keyword arguments of `ssd.Engine`, which do not separate `speculation_options` from the others.

        Raises SsdError for an option that is not known or has a value outside its limits.
        """
        return build(cls, {"target": str(target), **options})

    def autoregressive(self) -> EngineOptions:
        """The same for mode "ar": no draft, and nothing that only a draft has."""
        return replace(
            self,
            mode="ar",
            draft=None,
            draft_device=None,
            draft_sms=None,
            draft_threads=None,
            speculation_options=SpeculationOptions(),
        )


def engine_signature() -> Signature:
    """The parameters of `ssd.Engine`: every option with its default."""
    parameters = []
    for each in options_of(EngineOptions).values():
        first = each.name in ("target", "draft", "mode")
        kind = Parameter.POSITIONAL_OR_KEYWORD if first else Parameter.KEYWORD_ONLY
        default = Parameter.empty if each.name == "target" else each.default
        parameters.append(Parameter(each.name, kind, default=default, annotation=each.type))
    progress = Parameter("progress", Parameter.KEYWORD_ONLY, default=None, annotation=Callable[[float], None] | None)
    return Signature([*parameters, progress])


def options_doc() -> str:
    """A line for each option of `ssd.Engine`: "name (default): help"."""
    return describe(options_of(EngineOptions).values(), required=("target",))


def lists_options(engine: type[T]) -> type[T]:
    """A class decorator for `ssd.Engine`: every option is in its signature and in its docstring."""
    engine.__doc__ = f"{cleandoc(engine.__doc__ or '')}\n\n{options_doc()}\n"
    engine.__signature__ = engine_signature()  # type: ignore[attr-defined]
    return engine
