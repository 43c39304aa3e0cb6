"""The training data: chats that the target writes by itself.

The target gets its chat template up to the first words of a user's message, writes the rest of the message, and then answers
it. So a draft can be made for any target with a chat template, without other data, and it learns the kind of text that the
target will write. (The method of Magpie, arXiv 2406.08464, with openings that spread the chats over several domains.)
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from ssd.distill.openings import OWN, SHARES, opening
from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.models.pair import OnProgress
from ssd.models.tokenizer import Tokenizer
from ssd.options import SamplingParams
from ssd.requests import Completion

HELD_OUT_EVERY = 40  # one chat in so many is held out for the report

BATCH = 32  # sequences decoded at once: enough to keep a CPU busy
CHATS_A_CALL = 256
MESSAGE_TOKENS = 112
SAMPLED_SHARE = 0.15  # fraction of sampled answers; the others are greedy
MESSAGE: dict[str, Any] = {"temperature": 0.9, "min_p": 0.05}  # min_p costs one pass over the logits, top_p several
SAMPLED: dict[str, Any] = {"temperature": 0.8, "min_p": 0.05}


@dataclass
class Chat:
    """One message and its answer. prompt: ids up to the start of the answer. answer: ids that the target wrote after the
    prompt. greedy: whether the answer was decoded greedily."""

    domain: str
    message: str
    prompt: list[int]
    answer: list[int]
    greedy: bool


def synthesise(
    engine: Engine,
    tokenizer: Tokenizer,
    file: Path,
    tokens: int,
    answer_tokens: int,
    user_messages: Sequence[str],
    seed: int,
    in_time: Callable[[], bool],
    progress: OnProgress,
) -> None:
    """Append chats to `file`, one JSON object a line, until its answers have `tokens` tokens or `in_time` returns False.

    user_messages: a user's own messages; they are answered first. answer_tokens: longest answer. Chats that are in the file
    already are kept and counted, so an interrupted run continues. At least one batch is made, even if there is no time left.
    Raises SsdError if the target has no chat template, or if its context is too small for a chat.
    """
    longest = len(tokenizer.user_turn("")) + MESSAGE_TOKENS + 2 * answer_tokens  # with room for a long opening
    if longest > engine.max_context:
        raise SsdError(
            f"a chat with answers of {answer_tokens} tokens needs a context of {longest}, and the target's is {engine.max_context}; "
            "lower answer_tokens."
        )
    stored = read(file) if file.exists() else []
    _drop_partial_line(file)
    seen, written = {chat.message for chat in stored}, sum(len(chat.answer) for chat in stored)
    pending = [message for message in dict.fromkeys(user_messages) if message not in seen]
    rng = random.Random(f"{seed}, {len(stored)}")
    at_once = BATCH if not stored else CHATS_A_CALL  # a small first call, so that progress shows soon
    while (pending or written < tokens) and (at_once == BATCH or in_time()):
        if pending:
            messages, pending = [(OWN, message) for message in pending[:at_once]], pending[at_once:]
        else:
            missing = -(-(tokens - written) // answer_tokens)
            drawn = _messages(engine, tokenizer, min(at_once, max(BATCH, missing)), rng)
            messages = [pair for pair in drawn if pair[1] not in seen]
        at_once = CHATS_A_CALL
        seen.update(message for _, message in messages)
        chats = _answers(engine, tokenizer, messages, answer_tokens, rng)
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(chat), ensure_ascii=False) + "\n" for chat in chats)
        written += sum(len(chat.answer) for chat in chats)
        progress(min(1.0, written / tokens))


def _messages(engine: Engine, tokenizer: Tokenizer, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """User messages that the target writes, each as (domain, message)."""
    domains = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    openings = [opening(domain, rng) for domain in domains]
    end = tokenizer.turn_end()
    stop = (end,) if end else ()
    params = [SamplingParams(**MESSAGE, max_new_tokens=MESSAGE_TOKENS, stop=stop, seed=rng.getrandbits(62)) for _ in openings]
    turns = [tokenizer.user_turn(text) for text in openings]
    completions = _decoded(engine, turns, params)
    messages = []
    for first_words, turn, completion in zip(openings, turns, completions, strict=True):
        # Decode together with the turn's last token, so that a space between the two is kept. Stop at the first special token.
        continuation = list(takewhile(tokenizer.is_visible, completion.token_ids))
        more = tokenizer.decode([turn[-1], *continuation])[len(tokenizer.decode(turn[-1:])) :]
        messages.append(first_words + (more.partition(end)[0] if end else more))
    return [(domain, message) for domain, message in zip(domains, messages, strict=True) if message.strip()]


def _answers(
    engine: Engine, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]], answer_tokens: int, rng: random.Random
) -> list[Chat]:
    chats, params = [], []
    for domain, message in messages:
        prompt = tokenizer.chat([{"role": "user", "content": message}])
        if len(prompt) + answer_tokens > engine.max_context:
            if domain == OWN:
                warnings.warn(f"a prompt of {len(prompt)} tokens is too long to learn from: {message[:40]!r}..", stacklevel=2)
            continue
        greedy = rng.random() >= SAMPLED_SHARE
        chats.append(Chat(domain, message, prompt, [], greedy))
        sampling: dict[str, Any] = {} if greedy else SAMPLED
        params.append(SamplingParams(**sampling, max_new_tokens=answer_tokens, seed=rng.getrandbits(62)))
    for chat, completion in zip(chats, _decoded(engine, [chat.prompt for chat in chats], params), strict=True):
        chat.answer = completion.token_ids
    return chats


def _decoded(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> list[Completion]:
    """The completions of any number of prompts. Raises SsdError for one that the target could not finish."""
    completions = engine.decode(prompts, params) if prompts else []
    for completion in completions:
        if completion.error is not None:
            raise SsdError(completion.error)
    return completions


def read(file: Path) -> list[Chat]:
    """The chats in a file that `synthesise` wrote. Raises SsdError for any other file, and for a file without chats."""
    try:
        *lines, _ = file.read_text(encoding="utf-8").split("\n")  # after the last end of line: nothing, or an unfinished line
        chats = [Chat(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise SsdError(f"{file} is not a file of chats ({one_line(error)}); delete it to make it again.") from None
    if not chats:
        raise SsdError(f"{file} has no chats; delete it to make it again.")
    return chats


def _drop_partial_line(file: Path) -> None:
    """Remove an unfinished last line, so that the next chat starts on a new line."""
    if file.exists():
        text = file.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def overlaps(chat: Chat, texts: Iterable[str], tokenizer: Tokenizer, words: int = 13) -> bool:
    """Whether the chat's message or answer shares this many words in a row with any of the texts."""
    in_texts = _all_grams(tuple(texts), words)
    return not in_texts.isdisjoint(_grams(chat.message + "\n" + tokenizer.decode(chat.answer), words))


@lru_cache(maxsize=1)
def _all_grams(texts: tuple[str, ...], words: int) -> frozenset[tuple[str, ...]]:
    return frozenset(gram for text in texts for gram in _grams(text, words))


def _grams(text: str, words: int) -> set[tuple[str, ...]]:
    run = re.findall(r"\w+", text.lower())
    return {tuple(run[i : i + words]) for i in range(len(run) - words + 1)}
