"""A request's life on the host: its prompt is checked, it waits, its tokens become text, and it ends as a `Completion`.

`InputProcessor` turns the user's input into `Request`s; the core (ssd/serving/core.py) runs them; `Stream` hands out their
text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssd.decoding.stats import SequenceStats, Stats
from ssd.errors import SsdError
from ssd.fields import check_known
from ssd.models.pair import Target
from ssd.models.prompts import Prompt, PromptForm, token_ids
from ssd.models.tokenizer import TextStream
from ssd.options import NEW_TOKENS, SamplingParams

Params = SamplingParams | Sequence[SamplingParams] | None
FinishReason = Literal["eos", "length", "stop", "aborted", "error"]


@dataclass(frozen=True)
class Completion:
    """A finished request.

    token_ids: the generated tokens, with the end-of-sequence token. finish_reason: "eos", "length" or "stop"; "aborted" if its
    stream was closed while another thread read it; "error" if the target's logits for the next token have NaN, +inf or no
    finite number. error: one sentence that says so; None for any other reason. logprobs: for each token a dict from id to
    log-probability, with the token and the likeliest ids; None unless the parameters ask for it. degraded: whether the draft
    failed, so that decoding went on without it.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    error: str | None
    logprobs: list[dict[int, float]] | None
    degraded: bool
    stats: Stats


class Stream:
    """An iterator over pieces of text. `completion` is set at the end. `close` aborts the request."""

    def __init__(self, request: Request, pieces: Generator[str | Completion], abort: Callable[[], None]) -> None:
        self._request = request
        self._pieces = pieces
        self._abort = abort
        self.completion: Completion | None = None

    @property
    def origins(self) -> list[tuple[str, int]]:
        """Where each token so far came from, "target", "draft" or "cache", and its number of characters.

        The pieces may still lack the text of the last ones.
        """
        origins = [origin for round in self._request.stats.committed for origin in round.origins]
        ends = [0, *self._request.text_ends]
        return [(origin, after - before) for origin, (before, after) in zip(origins, itertools.pairwise(ends), strict=False)]

    def close(self) -> None:
        self._abort()
        with suppress(ValueError):  # another thread is reading; it gets the aborted completion
            self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._abort()

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, Completion):
                self.completion = piece
            else:
                yield piece


@dataclass(eq=False)
class Request:
    """One prompt in the engine. The scheduler sets its slot and pages; the core appends the tokens that rounds commit."""

    prompt: list[int]
    params: SamplingParams
    max_new_tokens: int  # where the parameters leave it out: chosen by `InputProcessor`
    seed: int
    text_stream: TextStream | None  # None if the target has no tokenizer
    stats: SequenceStats = field(default_factory=SequenceStats)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    text: str = ""
    text_ends: list[int] = field(default_factory=list)  # for each token, the length of the text with it
    finish_reason: FinishReason | None = None
    error: str | None = None  # of the completion, with finish_reason "error"
    raised: BaseException | None = None  # instead of a completion, with finish_reason "error"
    degraded: bool = False
    slot: int = -1
    pages: np.ndarray | None = None  # [pages] int32, while it has a slot
    page_keys: list[bytes] = field(default_factory=list)  # of its first full pages, see ssd/kv/prefix.py
    stored: int = 0  # until it runs: number of tokens whose K/V the target has
    draft_stored: int = 0  # until it runs: the same of the draft
    draft_reach: int = 0  # number of its first tokens that the draft stores at most; 0 without a draft model

    @property
    def max_length(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    @property
    def tokens(self) -> list[int]:
        """The prompt, and the tokens that rounds have committed."""
        return self.prompt + self.token_ids

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.prompt) + len(self.token_ids)

    @property
    def resumes(self) -> bool:
        """Whether it has run before: its next token is for a round to decide."""
        return bool(self.token_ids)

    @property
    def to_store(self) -> int:
        """Number of tokens whose K/V must be stored before it runs. A round stores the last token of one that resumes."""
        return self.length - self.resumes

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def grown_beyond(self, count: int) -> bool:
        """Whether it has more than `count` tokens, or has ended."""
        return self.finished or len(self.token_ids) > count

    def append(self, ids: list[int]) -> FinishReason | None:
        """Append committed tokens. Returns "stop" at the one that completes a stop string, and drops the rest."""
        for token in ids:
            self.token_ids.append(token)
            stopped = self.text_stream is not None and self._append_text(self.text_stream.push([token]))
            self.text_ends.append(len(self.text))
            if stopped:
                return "stop"
        return None

    def append_logprobs(self, logits: Tensor, first: int) -> None:
        """Append the log-probabilities of token_ids[first:]. logits: [tokens, V] float32, the target's, unprocessed."""
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = logprobs.topk(min(self.params.logprobs, logprobs.shape[-1]), dim=-1)
        for token, row, top, top_values in zip(self.token_ids[first:], logprobs, ids.tolist(), values.tolist(), strict=True):
            self.logprobs.append({token: float(row[token]), **dict(zip(top, top_values, strict=True))})

    def flush(self) -> FinishReason | None:
        """Append the text that waited for more tokens. Returns "stop" if it completes a stop string."""
        stopped = self.text_stream is not None and self._append_text(self.text_stream.flush())
        self.text_ends[-1:] = [len(self.text)] * bool(self.text_ends)
        return "stop" if stopped else None

    def lack_next_token(self) -> FinishReason:
        """Note that the target's logits for the next token are not finite. Returns "error"."""
        self.error = (
            f"the target's logits for output token {len(self.token_ids) + 1} have NaN, +inf or no finite number; "
            "check the target's weights, or use another target."
        )
        return "error"

    def fail(self, error: BaseException) -> None:
        self.raised = error
        self.finish_reason = "error"

    def _append_text(self, piece: str) -> bool:
        """Append text up to the first stop string. Returns whether there is one."""
        text = self.text + piece
        found = [index for index in map(text.find, self.params.stop) if index >= 0]
        self.text = text[: min(found)] if found else text  # at once: a client on another thread may be reading it
        return bool(found)

    def certain_text(self) -> str:
        """The text so far, except an ending that may become a stop string."""
        if self.finished:
            return self.text
        text, held = self.text, 0
        for stop in self.params.stop:
            held = max([held, *(k for k in range(1, len(stop)) if text.endswith(stop[:k]))])
        return text[: len(text) - held]

    def completion(self, mode: str) -> Completion:
        """The result of the finished request. Raises the error that ended the request, if any. mode: the engine's."""
        if self.raised is not None:
            raise self.raised
        return Completion(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason or "",
            error=self.error,
            logprobs=self.logprobs if self.params.logprobs else None,
            degraded=self.degraded,
            stats=self.stats.summary(mode, len(self.token_ids)),
        )


class InputProcessor:
    """Turns prompts and parameters into requests, and refuses bad ones. seed: the engine's, for requests without one."""

    def __init__(self, target: Target, max_context: int, seed: int) -> None:
        self._target = target
        self._max_context = max_context
        self._seed = seed
        self._unseeded = itertools.count()

    def requests(
        self, prompts: Sequence[Prompt], params: Params, form: PromptForm, check: Callable[[Request], None]
    ) -> list[Request]:
        """One request for each prompt, in order. check: raises SsdError for a request that cannot run.

        params: one for all prompts, or a list with one for each. Raises SsdError, which names the prompt if there are several.
        """
        check_known(form, PromptForm.__annotations__)
        params_of = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        for given in params_of:
            if not isinstance(given, SamplingParams):
                raise SsdError(f"params is {given!r}; it must be SamplingParams, or a list of them.")
        if len(params_of) != len(prompts):
            raise SsdError(f"there are {len(prompts)} prompts and {len(params_of)} params; give one for all, or one for each.")
        requests = []
        for index, (prompt, given) in enumerate(zip(prompts, params_of, strict=True)):
            try:
                requests.append(self._request(prompt, given, form))
                check(requests[-1])
            except SsdError as error:
                raise SsdError(f"prompt {index} of {len(prompts)}: {error}" if len(prompts) > 1 else str(error)) from None
        for request in requests:
            if request.params.seed is None:
                request.seed = self._next_seed()
        return requests

    def _request(self, prompt: Prompt, params: SamplingParams, form: PromptForm) -> Request:
        target = self._target
        ids = token_ids(prompt, target.tokenizer, target.model.vocab_size, **form)
        if params.stop and target.tokenizer is None:
            raise SsdError(f"stop strings need text, and {target.name!r} has no tokenizer; leave stop out.")
        max_new_tokens = self._max_new_tokens(len(ids), params.max_new_tokens)
        text_stream = TextStream(target.tokenizer) if target.tokenizer is not None else None
        return Request(ids, params, max_new_tokens, params.seed or 0, text_stream)  # `requests` draws a seed if there is none

    def _max_new_tokens(self, prompt_tokens: int, given: int | None) -> int:
        """The given number, or the default one as far as the context has room. Raises SsdError if there is too little room."""
        room = self._max_context - prompt_tokens
        if given is None and room < 1:
            raise SsdError(
                f"the prompt's {prompt_tokens} tokens leave no room in the context of {self._max_context}; "
                "shorten it or raise max_context as far as the model goes."
            )
        if given is not None and given > room:
            raise SsdError(
                f"the prompt's {prompt_tokens} tokens and max_new_tokens={given} are over the context of {self._max_context}; "
                "shorten one of them or raise max_context as far as the model goes."
            )
        return min(NEW_TOKENS, room) if given is None else given

    def _next_seed(self) -> int:
        """A seed from the engine's seed and a counter: calls differ, and the same requests in the same order repeat."""
        generated = np.random.SeedSequence([self._seed % 2**64, next(self._unseeded)]).generate_state(1, np.uint64)
        return int(generated[0] >> np.uint64(1))
