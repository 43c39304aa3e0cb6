"""The kinds of prompts, and their token ids. User input is checked here; SsdError says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ssd.errors import SsdError
from ssd.models.tokenizer import Tokenizer

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]
"""A text, a chat as messages with "role" and "content", or token ids."""

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


def token_ids(prompt: Prompt, tokenizer: Tokenizer | None, vocabulary: int, *, raw: bool) -> list[int]:
    """The ids of one prompt. A str is one user message in the model's chat template; with raw=True it is encoded as it is.

    vocabulary: number of the model's ids. Raises SsdError for an empty prompt, an id outside the vocabulary, or another type.
    """
    ids = _given_ids(prompt) if _is_ids(prompt) else _encoded(prompt, tokenizer, raw)
    if not ids:
        raise SsdError("the prompt is empty; give at least one token.")
    for token in ids:
        if not 0 <= token < vocabulary:
            raise SsdError(f"the prompt has token id {token}; the target has ids 0 to {vocabulary - 1}.")
    return ids


def _is_ids(prompt: object) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and all(isinstance(token, (int, np.integer)) and not isinstance(token, bool) for token in prompt)
    )


def _given_ids(prompt: Prompt) -> list[int]:
    return [int(token) for token in prompt]  # type: ignore[arg-type]


def _encoded(prompt: Prompt, tokenizer: Tokenizer | None, raw: bool) -> list[int]:
    if isinstance(prompt, str) and not prompt:
        return []
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence) or not all(_is_message(message) for message in messages):
        raise SsdError(f"the prompt {_short(prompt)} cannot be used; a prompt can be {_PROMPT_KINDS}.")
    if tokenizer is None:
        raise SsdError("the target has no tokenizer; give prompts as lists of token ids.")
    for message in messages:
        try:
            message["content"].encode()  # type: ignore[index]
        except UnicodeEncodeError:
            raise SsdError(f"the prompt {_short(prompt)} holds half of a surrogate pair; give valid Unicode.") from None
    return tokenizer.encode(prompt) if raw and isinstance(prompt, str) else tokenizer.chat(messages)  # type: ignore[arg-type]


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + ".."
