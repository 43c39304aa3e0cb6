"""Answers in OpenAI's form: whole, or as the pieces of a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ssd.requests import Completion, Request
from ssd.server.acceptance import speculative_decoding
from ssd.server.errors import NO_RETRY, ApiError
from ssd.server.logprobs import chat_logprobs, text_logprobs
from ssd.server.protocol import ChatBody, CompletionBody
from ssd.server.reader import Chunk
from ssd.server.served import Served

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}

Choice = dict[str, Any]


def finish_reason(completion: Completion) -> str:
    """OpenAI's word for it. Raises ApiError for a completion that did not come to its end."""
    if completion.error is not None:
        raise ApiError(500, completion.error, code="not_finite", headers=NO_RETRY)
    if completion.finish_reason not in FINISH_REASONS:
        raise ApiError(503, "the request was aborted; send it again.", code="aborted")
    return FINISH_REASONS[completion.finish_reason]


class Answer(ABC):
    """The parts of an answer that do not depend on its kind.

    requests: one for each choice. prompt_tokens: number of tokens of all prompts. n: number of choices of each.
    """

    object: str
    piece_object: str
    prefix: str

    def __init__(self, served: Served, requests: Sequence[Request], prompt_tokens: int, n: int) -> None:
        self._served, self._requests = served, requests
        self._tokenizer = served.engine.engine.tokenizer
        self._prompt_tokens = prompt_tokens
        self._n = n
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        self._head["system_fingerprint"] = served.fingerprint

    def whole(self, completions: list[Completion]) -> dict[str, Any]:
        choices = [self.choice(index, completion) for index, completion in enumerate(completions)]
        return {**self._head, "object": self.object, "choices": choices, "usage": self.usage(completions)} | self.metrics()

    def piece(self, choices: list[Choice]) -> dict[str, Any]:
        return {**self._head, "object": self.piece_object, "choices": choices}

    def usage(self, completions: list[Completion]) -> dict[str, Any]:
        """completions: of all choices, in order. A prompt counts once, and its cached tokens are those of its first choice."""
        tokens = sum(len(completion.token_ids) for completion in completions)
        cached = sum(completion.stats.cached_tokens for completion in completions[:: self._n])
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def metrics(self) -> dict[str, Any]:
        """The acceptance of a request that has ended, if the server's options ask for it; null for several choices, and where
        nothing is drafted."""
        level = self._served.options.per_request_spec_decode_metrics
        if level == "none":
            return {}
        spec_tokens = self._served.spec_tokens
        if len(self._requests) > 1 or not spec_tokens:
            return {"metrics": {"speculative_decoding": None}}
        rounds = self._requests[0].stats.committed[1:]
        return {"metrics": {"speculative_decoding": speculative_decoding(rounds, spec_tokens, level)}}

    @staticmethod
    def speculation(chunk: Chunk) -> Choice:
        """The part of a choice that says where the tokens of a round came from; {} unless it was asked for."""
        if (round := chunk.committed) is None:
            return {}
        tokens = [
            {"origin": origin, "characters": count} for origin, count in zip(round.origins, chunk.characters, strict=True)
        ]
        return {"speculation": {"proposed": round.proposed, "accepted": round.accepted, "hit": round.hit, "tokens": tokens}}

    @abstractmethod
    def choice(self, index: int, completion: Completion) -> Choice:
        """A whole choice. Raises ApiError for a completion that ended in an error."""

    @abstractmethod
    def opening(self, index: int) -> Choice | None:
        """The first piece of a choice, before any token."""

    @abstractmethod
    def delta(self, index: int, chunk: Chunk) -> Choice:
        """What a chunk adds to a choice. The last one has its finish_reason. Raises ApiError as `choice` does."""


class ChatAnswer(Answer):
    object, piece_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, served: Served, requests: Sequence[Request], prompt_tokens: int, body: ChatBody) -> None:
        super().__init__(served, requests, prompt_tokens, body.n)
        self._top = body.top_logprobs

    def choice(self, index: int, completion: Completion) -> Choice:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        logprobs = self._logprobs(completion.token_ids, completion.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(completion)}

    def opening(self, index: int) -> Choice:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, chunk: Chunk) -> Choice:
        reason = finish_reason(chunk.completion) if chunk.completion is not None else None
        delta = {"content": chunk.text} if chunk.text else {}
        logprobs = self._logprobs(chunk.token_ids, chunk.logprobs) if chunk.token_ids else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason} | self.speculation(chunk)

    def _logprobs(self, token_ids: list[int], rows: list[dict[int, float]] | None) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, token_ids, rows, self._top) if rows is not None else None


class TextAnswer(Answer):
    """echoed: the text of each choice's prompt; None unless it is echoed."""

    object, piece_object, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(
        self, served: Served, requests: Sequence[Request], prompt_tokens: int, body: CompletionBody, echoed: list[str] | None
    ) -> None:
        super().__init__(served, requests, prompt_tokens, body.n)
        self._top = body.logprobs or 0
        self._echoed = echoed
        self._offsets: dict[int, int] = {}  # characters of the tokens so far, by choice

    def choice(self, index: int, completion: Completion) -> Choice:
        logprobs = self._logprobs(index, completion.token_ids, completion.logprobs)
        text = (self._echoed[index] if self._echoed is not None else "") + completion.text
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(completion)}

    def opening(self, index: int) -> Choice | None:
        if self._echoed is None:
            return None
        return {"index": index, "text": self._echoed[index], "logprobs": None, "finish_reason": None}

    def delta(self, index: int, chunk: Chunk) -> Choice:
        reason = finish_reason(chunk.completion) if chunk.completion is not None else None
        logprobs = self._logprobs(index, chunk.token_ids, chunk.logprobs) if chunk.token_ids else None
        choice = {"index": index, "text": chunk.text, "logprobs": logprobs, "finish_reason": reason}
        return choice | self.speculation(chunk)

    def _logprobs(self, index: int, token_ids: list[int], rows: list[dict[int, float]] | None) -> dict[str, Any] | None:
        if rows is None:
            return None
        offset = self._offsets.get(index, 0)
        logprobs, self._offsets[index] = text_logprobs(self._tokenizer, token_ids, rows, self._top, offset)
        return logprobs
