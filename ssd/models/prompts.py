"""The kinds of prompts, and their token ids. User input is checked here; SsdError says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from ssd.errors import SsdError
from ssd.models.chat import Message, Tool
from ssd.models.tokenizer import Tokenizer

Prompt = str | Sequence[Message] | Sequence[int]
"""A text, a chat as messages with "role" and "content", or token ids."""


class PromptForm(TypedDict, total=False):
    """How prompts become token ids: the keyword arguments of `Engine.decode` and `Engine.stream`.

    raw: encodes a str as it is, without the model's chat template. tools: functions that the model may ask for, as JSON schemas
    or as functions with type hints and a docstring. chat_template_kwargs: variables for the chat template, such as
    {"enable_thinking": False}.
    """

    raw: bool
    tools: Sequence[Tool] | None
    chat_template_kwargs: Mapping[str, Any] | None


_PROMPT_KINDS = "a string, a list of messages with 'role' and 'content', or a list of token ids"


def is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt, and not a batch of them. Raises SsdError for an empty batch and for any other type."""
    if isinstance(prompts, str):
        return True
    if not isinstance(prompts, Sequence):
        raise SsdError(f"the prompt is a {type(prompts).__name__}; it can be {_PROMPT_KINDS}, or a list of those.")
    if not prompts:
        raise SsdError(f"there is no prompt; give {_PROMPT_KINDS}, or a list of those.")
    return isinstance(prompts[0], (int, np.integer, Mapping))


def token_ids(prompt: Prompt, tokenizer: Tokenizer | None, vocabulary: int, **form: Unpack[PromptForm]) -> list[int]:
    """The ids of one prompt. A str is one user message in the model's chat template; with raw=True it is encoded as it is.

    vocabulary: number of the model's ids. Raises SsdError for an empty prompt, an id outside the vocabulary, or another type.
    """
    if _is_ids(prompt):
        _refuse_template_arguments("a prompt of token ids", form)
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
    else:
        ids = _encoded(prompt, tokenizer, form)
    if not ids:
        raise SsdError("the prompt is empty; give at least one token.")
    for token in ids:
        if not 0 <= token < vocabulary:
            raise SsdError(f"the prompt has token id {token}; the target has ids 0 to {vocabulary - 1}.")
    return ids


def _refuse_template_arguments(prompt: str, form: PromptForm) -> None:
    given = [name for name in ("tools", "chat_template_kwargs") if form.get(name)]
    if given:
        raise SsdError(f"{prompt} has no chat template for {' and '.join(given)}; leave this out, or give messages.")


def _is_ids(prompt: object) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and all(isinstance(token, (int, np.integer)) and not isinstance(token, bool) for token in prompt)
    )


def _encoded(prompt: Prompt, tokenizer: Tokenizer | None, form: PromptForm) -> list[int]:
    if isinstance(prompt, str) and not prompt:
        return []
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence) or not all(_is_message(message) for message in messages):
        raise SsdError(f"the prompt {_short(prompt)} cannot be used; a prompt can be {_PROMPT_KINDS}.")
    for number, message in enumerate(messages, 1):
        _check_content(message, f"message {number} of the prompt")  # type: ignore[arg-type]
    if tokenizer is None:
        raise SsdError("the target has no tokenizer; give prompts as lists of token ids.")
    try:
        if isinstance(prompt, str) and form.get("raw"):
            _refuse_template_arguments("a prompt with raw=True", form)
            return tokenizer.encode(prompt)
        return tokenizer.chat(messages, form.get("tools"), form.get("chat_template_kwargs"))  # type: ignore[arg-type]
    except UnicodeEncodeError:
        raise SsdError(f"the prompt {_short(prompt)} holds half of a surrogate pair; give valid Unicode.") from None


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str)


def _check_content(message: Message, where: str) -> None:
    """Raise SsdError unless the content is text, or text parts, or is left out beside tool calls."""
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise SsdError(f"{where} has no content; give it a text, a list of text parts, or tool_calls.")
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, Sequence):
        raise SsdError(f"the content of {where} is a {type(content).__name__}; it can be a text or a list of text parts.")
    for part in content:
        if not _is_text_part(part):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise SsdError(f"{where} has a part of type {kind!r}; only parts of type 'text' with a text can be used.")


def _is_text_part(part: object) -> bool:
    """A plain string, or an OpenAI text part."""
    if isinstance(part, Mapping):
        return part.get("type") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
