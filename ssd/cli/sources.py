"""Where the answers of a chat come from: an engine of this process, or a server with OpenAI's interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from ssd.errors import SsdError, one_line
from ssd.fields import one_of
from ssd.options import ModeName, SamplingParams
from ssd.server.options import KEY_VARIABLE

if TYPE_CHECKING:
    from ssd.decoding.stats import Committed
    from ssd.engine import Engine
    from ssd.server.async_engine import AsyncEngine

Message = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """The new part of an answer.

    committed: the round that it came from; None where that is not known. characters: the number of characters of each of the
    round's tokens. Their text may come in a later piece. finish_reason: of the whole answer, in its last piece. tokens: number
    of tokens of the whole answer, where the rounds are not known.
    """

    text: str = ""
    committed: Committed | None = None
    characters: tuple[int, ...] = ()
    finish_reason: str | None = None
    tokens: int | None = None


@dataclass
class Reply:
    """An answer as far as it has come. seconds: from its first tokens to its last. first_s: seconds until its first tokens."""

    text: str = ""
    rounds: list[Committed] = field(default_factory=list)  # the first is the prompt's own pass
    finish_reason: str | None = None
    first_s: float | None = None
    seconds: float = 0.0
    _tokens: int = 0

    def add(self, piece: Piece, seconds: float) -> None:
        """seconds: since the request."""
        self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        if piece.committed is not None:
            self.rounds.append(piece.committed)
        self._tokens = piece.tokens or self._tokens
        if piece.text or piece.committed is not None:
            self.first_s = seconds if self.first_s is None else self.first_s
            self.seconds = seconds - self.first_s

    @property
    def tokens(self) -> int:
        return sum(round.tokens for round in self.rounds) or self._tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Without the first token, which is the prompt's."""
        return (self.tokens - 1) / self.seconds if self.seconds > 0 and self.tokens > 1 else None

    @property
    def tokens_per_round(self) -> float | None:
        later = self.rounds[1:]
        return sum(round.tokens for round in later) / len(later) if later else None

    @property
    def acceptance_rate(self) -> float | None:
        proposed = sum(round.proposed for round in self.rounds)
        return sum(round.accepted for round in self.rounds) / proposed if proposed else None

    @property
    def hit_rate(self) -> float | None:
        hits = [round.hit for round in self.rounds if round.hit is not None]
        return sum(hits) / len(hits) if hits else None


class Source(ABC):
    """Answers a conversation. name: the model's. mode: the decoding mode in use."""

    name: str
    mode: str

    async def connect(self) -> None:  # noqa: B027 (an engine needs none)
        """Get ready to answer. Raises SsdError."""

    @abstractmethod
    def answer(self, messages: list[Message]) -> AsyncGenerator[Piece]:
        """The answer to the last message, piece by piece. Closing it ends the request. Raises SsdError."""

    @abstractmethod
    def choose(self, mode: str) -> None:
        """Answer in another mode from now on. Raises SsdError."""

    @abstractmethod
    async def close(self) -> None: ...


class EngineSource(Source):
    """Answers of an engine. Further modes get an engine each, over the same weights, when they are first chosen."""

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self._engine = engine
        self._params = params
        self._engines: dict[str, AsyncEngine] = {}
        self.name = engine.options.target
        self._run(engine)

    async def answer(self, messages: list[Message]) -> AsyncGenerator[Piece]:
        (reader,) = await self._engines[self.mode].start([messages], [self._params], by_round=True)
        with reader:
            async for chunk in reader:
                completion = chunk.completion
                if completion is not None and completion.error is not None:
                    raise SsdError(completion.error)
                reason = completion.finish_reason if completion is not None else None
                yield Piece(chunk.text, chunk.committed, chunk.characters, reason)

    def choose(self, mode: str) -> None:
        from ssd.engine import Engine

        one_of("mode", mode, ("ar", "sd", "ssd"))
        if mode not in self._engines:
            first = self._engine
            options = first.options.autoregressive() if mode == "ar" else replace(first.options, mode=cast(ModeName, mode))
            self._run(Engine.of(first.target, first.draft, options))
        self.mode = mode

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()

    def _run(self, engine: Engine) -> None:
        from ssd.server.async_engine import AsyncEngine

        self.mode = engine.mode
        self._engines[engine.mode] = AsyncEngine(engine)


class ServerSource(Source):
    """Answers of a server with OpenAI's interface. Servers of ssd say where tokens came from, and decode in mode "ar" too.

    url: its address, with or without "/v1". model: one of its models; None takes the first that it lists.
    """

    def __init__(self, url: str, model: str | None, params: SamplingParams) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise SsdError("`ssd chat --url` needs openai, which is not installed; pip install 'ssd-decode[chat]'.") from None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SsdError(f"url is {url!r}; it must be an address such as 'http://127.0.0.1:8000'.")
        self._url = url if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        self._client = openai.AsyncOpenAI(base_url=self._url, api_key=os.environ.get(KEY_VARIABLE) or "none", max_retries=0)
        self._error, self._unreachable = openai.APIError, openai.APIConnectionError
        self._fields = fields_of(params)
        self._own = False
        self.name = model or ""
        self.mode = "auto"

    async def connect(self) -> None:
        try:
            models = [model async for model in self._client.models.list()]
        except self._error as error:
            raise self._said(error) from None
        if not models:
            raise SsdError(f"the server at {self._url} lists no model; give its name.")
        self.name = self.name or models[0].id
        self._own = getattr(models[0], "owned_by", None) == "ssd"

    async def answer(self, messages: list[Message]) -> AsyncGenerator[Piece]:
        fields: dict[str, Any] = {"messages": messages, "model": self.name, "stream": True}
        fields["stream_options"] = {"include_usage": True, **({"include_speculation": True} if self._own else {})}
        fields["extra_body"] = self._fields | ({"mode": "ar"} if self.mode == "ar" else {})
        lost = SsdError(f"the connection to the server at {self._url} was lost before the answer was complete.")
        try:
            stream = await self._client.chat.completions.create(**fields)
        except self._error as error:
            raise self._said(error) from None
        finished = False
        try:
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices:
                        finished = finished or choice.finish_reason is not None
                        yield _piece(choice)
                    if chunk.usage is not None:
                        yield Piece(tokens=chunk.usage.completion_tokens)
        except self._error as error:
            raise lost if isinstance(error, self._unreachable) else self._said(error) from None
        if not finished:
            raise lost

    def choose(self, mode: str) -> None:
        if not self._own:
            raise SsdError(f"the mode is chosen by the server at {self._url}, which is not one of ssd's.")
        one_of("mode", mode, ("ar", "auto"))
        self.mode = mode

    async def close(self) -> None:
        await self._client.close()

    def _said(self, error: Exception) -> SsdError:
        """An error of the client in one sentence."""
        body = getattr(error, "body", None)
        if isinstance(body, dict) and isinstance(body.get("message"), str):
            return SsdError(body["message"])
        if (status := getattr(error, "status_code", None)) is not None:
            return SsdError(f"the server at {self._url} answered with status {status}; check its address.")
        return SsdError(
            f"the server at {self._url} cannot be reached ({one_line(error.__cause__ or error)}); start it, and send again."
        )


def fields_of(params: SamplingParams) -> dict[str, Any]:
    """The parameters as fields of a request. Those that OpenAI does not have are there only if they were given."""
    fields: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if params.max_new_tokens is not None:
        fields["max_tokens"] = params.max_new_tokens
    if params.stop:
        fields["stop"] = list(params.stop)
    if params.seed is not None:
        fields["seed"] = params.seed
    for name in ("top_k", "min_p", "ignore_eos", "cache_salt"):
        if (value := getattr(params, name)) != getattr(SamplingParams, name):
            fields[name] = value
    return fields


def _piece(choice: Any) -> Piece:
    """A piece of the stream. Some servers send rounds, and some send none."""
    from ssd.decoding.stats import Committed

    committed, characters = None, ()
    if (round := (choice.model_extra or {}).get("speculation")) is not None:
        tokens = round["tokens"]
        committed = Committed(len(tokens), round["accepted"], round["proposed"], round["hit"])
        characters = tuple(token["characters"] for token in tokens)
    return Piece(choice.delta.content or "", committed, characters, choice.finish_reason)
