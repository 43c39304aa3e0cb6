"""Log-probabilities in OpenAI's two forms: that of chats, and that of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssd.models.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no infinity

Rows = Sequence[dict[int, float]]
"""For each token a dict from id to log-probability, as `Completion.logprobs` has it."""


def token_text(tokenizer: Tokenizer | None, token_id: int) -> str:
    """A token as a text: a special token by its name; "token_id:N" without a tokenizer."""
    if tokenizer is None:
        return f"token_id:{token_id}"
    if tokenizer.is_visible(token_id):
        return tokenizer.decode([token_id])
    return tokenizer.token_of(token_id) or ""


def chat_logprobs(tokenizer: Tokenizer | None, token_ids: Sequence[int], rows: Rows, top: int) -> dict[str, Any]:
    """top: number of likeliest tokens to list with each token."""

    def entry(token_id: int, value: float) -> dict[str, Any]:
        text = token_text(tokenizer, token_id)
        broken = "\N{REPLACEMENT CHARACTER}" in text  # a part of a character has no text of its own
        return {"token": text, "logprob": max(value, LEAST), "bytes": None if broken else list(text.encode())}

    return {
        "content": [
            entry(token, row[token]) | {"top_logprobs": [entry(*likely) for likely in _likeliest(row, top)]}
            for token, row in zip(token_ids, rows, strict=True)
        ],
        "refusal": None,
    }


def text_logprobs(
    tokenizer: Tokenizer | None, token_ids: Sequence[int], rows: Rows, top: int, offset: int
) -> tuple[dict[str, Any], int]:
    """offset: number of characters before these tokens. Returns the object, and the offset after them."""
    tokens = [token_text(tokenizer, token) for token in token_ids]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    likeliest = [
        {token_text(tokenizer, token): max(value, LEAST) for token, value in _likeliest(row, top)} if top else None
        for row in rows
    ]
    own = [max(row[token], LEAST) for token, row in zip(token_ids, rows, strict=True)]
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": likeliest, "text_offset": offsets}, offset


def _likeliest(row: dict[int, float], top: int) -> list[tuple[int, float]]:
    return sorted(row.items(), key=lambda item: -item[1])[:top]
