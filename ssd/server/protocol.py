"""The bodies that the server takes: OpenAI's fields, and those of ours. Any other field is refused by its name (bodies.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssd.models.prompts import Prompt, PromptForm
from ssd.options import SamplingParams

MAX_CHOICES, MAX_STOPS, MAX_TOP_LOGPROBS = 128, 16, 20

# Known fields that the server does not support, and the values by which a client asks for nothing.
OFF: Mapping[str, Sequence[Any]] = {
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": (),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (),
    "best_of": (1,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "structured_outputs": (),
    "echo": (False,),
    "raw": (),
}

# The fields of more than one type, in words.
WANTED: Mapping[str | int, str] = {
    "stop": f"a string, or a list of up to {MAX_STOPS} strings",
    "prompt": "a text, a list of token ids, or a list of those",
    "content": "a text, or a list of text parts",
    "tool_choice": "'none' or 'auto': this server does not force tool calls",
}


class Body(BaseModel):
    """What all bodies share: no unknown fields, and no conversions such as from "1" to 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_speculation: bool = False  # ours: a chunk for each round, which says where its tokens came from


class Message(BaseModel):
    """A message of a chat. Further keys are the template's business."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[Any] | None = None


class Sampling(Body):
    """The fields that both kinds of generation take. A temperature that is left out is OpenAI's default, 1."""

    model: str
    temperature: float = 1.0
    top_p: float = SamplingParams.top_p
    top_k: int = SamplingParams.top_k
    min_p: float = SamplingParams.min_p
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: str | list[str] = Field([], max_length=MAX_STOPS)
    seed: int | None = SamplingParams.seed
    ignore_eos: bool = SamplingParams.ignore_eos
    stream: bool = False
    stream_options: StreamOptions | None = None
    cache_salt: str | None = SamplingParams.cache_salt
    mode: Literal["ar"] | None = None  # "ar": decoded token by token, to compare with the engine's mode
    user: str = ""  # whom the client asks for; nothing here depends on it

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream=true; leave it out, or stream.")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def include_speculation(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_speculation

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the output, and its value."""
        raise NotImplementedError

    @property
    def reported_logprobs(self) -> int:
        """Number of likeliest tokens to compute for each token; 0 for none."""
        raise NotImplementedError

    def choices(self) -> list[SamplingParams]:
        """The parameters of each of the n choices. A choice adds its index to the given seed. Raises SsdError."""
        one = SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_new_tokens=self.token_limit[1],
            stop=tuple([self.stop] if isinstance(self.stop, str) else self.stop),
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            cache_salt=self.cache_salt,
            logprobs=self.reported_logprobs,
        )
        seeds = [one.seed if one.seed is None else (one.seed + i + 2**63) % 2**64 - 2**63 for i in range(self.n)]
        return [replace(one, seed=seed) for seed in seeds]


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["none", "auto"] = "auto"
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fields_that_need_or_exclude_each_other(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true; set it, or leave top_logprobs out.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; give one of the two.")
        return self

    @property
    def token_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def reported_logprobs(self) -> int:
        return max(1, self.top_logprobs) if self.logprobs else 0

    @property
    def prompts(self) -> list[Prompt]:
        return [[message.model_dump(exclude_unset=True) for message in self.messages]]

    @property
    def form(self) -> PromptForm:
        tools = self.tools if self.tool_choice == "auto" else []
        return {"tools": tools, "chat_template_kwargs": self.chat_template_kwargs}


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = 16  # OpenAI's default
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False

    @model_validator(mode="after")
    def _prompt_is_not_empty_and_echo_has_no_logprobs(self) -> Self:
        if not self.prompt:
            raise ValueError("the prompt is empty; give at least one token.")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported by this server; leave one of the two out.")
        return self

    @property
    def token_limit(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens

    @property
    def reported_logprobs(self) -> int:
        return 0 if self.logprobs is None else max(1, self.logprobs)

    @property
    def prompts(self) -> list[Prompt]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return list(self.prompt) if several else [self.prompt]  # type: ignore[arg-type, list-item]

    @property
    def form(self) -> PromptForm:
        return {"raw": True}


class TokenizeBody(Body):
    """POST /tokenize: a text, or messages in the model's chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[dict[str, Any]] = []
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages, one of the two.")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]
