"""The data: chats that the target makes up by itself.

The target is given its chat template's system part and an opened user turn with the first words of a message, invents the rest of
the message, and then answers it. So a draft can be made for any target that has a chat template, from nothing else, and it learns
the very text that the target will write. (The method of Magpie, arXiv 2406.08464, with openings that spread the domains.)
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
from ssd.models.tokenizer import Tokenizer
from ssd.options import SamplingParams

Progress = Callable[[float], None]

HELD_OUT_EVERY = 40  # a chat of so many is kept for the report

BATCH = 32  # sequences decoded at once: by then a CPU computes all the time
CHATS_A_CALL = 256
MESSAGE_TOKENS = 112
SAMPLED_SHARE = 0.15  # of the answers; the others are greedy
MESSAGE: dict[str, Any] = {"temperature": 0.9, "min_p": 0.05}  # min_p costs one pass over the logits, top_p several
SAMPLED: dict[str, Any] = {"temperature": 0.8, "min_p": 0.05}


@dataclass
class Chat:
    """One exchange. prompt: ids up to where the assistant answers; answer: the ids the target wrote behind it."""

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
    own: Sequence[str],
    seed: int,
    go_on: Callable[[], bool],
    progress: Progress,
) -> None:
    """Append chats to `file`, one JSON object a line, until all answers in it have `tokens` tokens, or `go_on` says no.

    own: a user's messages, answered first. answer_tokens: of an answer at most. What is in the file already is kept and counted:
    a run that was cut short goes on where it was. However short the time, one batch is made. Raises SsdError where the target has no
    chat template, or a context too small for a chat.
    """
    longest = len(tokenizer.user_turn("")) + MESSAGE_TOKENS + 2 * answer_tokens  # and room for a long opening
    if longest > engine.max_context:
        raise SsdError(
            f"a chat with answers of {answer_tokens} tokens needs a context of {longest}, and the target's is {engine.max_context}; "
            "lower answer_tokens."
        )
    done = read(file) if file.exists() else []
    _end_with_a_line(file)
    seen, count = {chat.message for chat in done}, sum(len(chat.answer) for chat in done)
    mine = [message for message in dict.fromkeys(own) if message not in seen]
    chance = random.Random(f"{seed}, {len(done)}")
    at_once = BATCH if not done else CHATS_A_CALL  # the first progress comes soon
    while (mine or count < tokens) and (at_once == BATCH or go_on()):
        if mine:
            messages, mine = [(OWN, message) for message in mine[:at_once]], mine[at_once:]
        else:
            missing = -(-(tokens - count) // answer_tokens)
            drawn = _messages(engine, tokenizer, min(at_once, max(BATCH, missing)), chance)
            messages = [pair for pair in drawn if pair[1] not in seen]
        at_once = CHATS_A_CALL
        seen.update(message for _, message in messages)
        chats = _answers(engine, tokenizer, messages, answer_tokens, chance)
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(chat), ensure_ascii=False) + "\n" for chat in chats)
        count += sum(len(chat.answer) for chat in chats)
        progress(min(1.0, count / tokens))


def _messages(engine: Engine, tokenizer: Tokenizer, count: int, chance: random.Random) -> list[tuple[str, str]]:
    """Messages of a user as the target imagines them, with their domains."""
    domains = chance.choices(list(SHARES), list(SHARES.values()), k=count)
    openings = [opening(domain, chance) for domain in domains]
    end = tokenizer.turn_end()
    stop = (end,) if end else ()
    params = [
        SamplingParams(**MESSAGE, max_new_tokens=MESSAGE_TOKENS, stop=stop, seed=chance.getrandbits(62)) for _ in openings
    ]
    turns = [tokenizer.user_turn(text) for text in openings]
    completions = engine.decode(turns, params)
    messages = []
    for begun, turn, completion in zip(openings, turns, completions, strict=True):
        # Behind the turn's own last token, so that a space between the two is kept; up to the first special token.
        said = list(takewhile(tokenizer.is_visible, completion.token_ids))
        more = tokenizer.decode([turn[-1], *said])[len(tokenizer.decode(turn[-1:])) :]
        messages.append(begun + (more.partition(end)[0] if end else more))
    return [(domain, message) for domain, message in zip(domains, messages, strict=True) if message.strip()]


def _answers(
    engine: Engine, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]], answer_tokens: int, chance: random.Random
) -> list[Chat]:
    chats, params = [], []
    for domain, message in messages:
        prompt = tokenizer.chat([{"role": "user", "content": message}])
        if len(prompt) + answer_tokens > engine.max_context:
            if domain == OWN:
                warnings.warn(f"a prompt of {len(prompt)} tokens is too long to learn from: {message[:40]!r}..", stacklevel=2)
            continue
        greedy = chance.random() >= SAMPLED_SHARE
        chats.append(Chat(domain, message, prompt, [], greedy))
        drawn: dict[str, Any] = {} if greedy else SAMPLED
        params.append(SamplingParams(**drawn, max_new_tokens=answer_tokens, seed=chance.getrandbits(62)))
    for chat, completion in zip(chats, engine.decode([chat.prompt for chat in chats], params) if chats else (), strict=True):
        chat.answer = completion.token_ids
    return chats


def read(file: Path) -> list[Chat]:
    """The chats of a file that `synthesise` wrote. Raises SsdError for another file, and for one without chats."""
    try:
        *lines, _ = file.read_text(encoding="utf-8").split("\n")  # behind the last end of line: nothing, or what was cut short
        chats = [Chat(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise SsdError(f"{file} is not a file of chats ({one_line(error)}); delete it to make it again.") from None
    if not chats:
        raise SsdError(f"{file} has no chats; delete it to make it again.")
    return chats


def _end_with_a_line(file: Path) -> None:
    """Take away a last line that was cut short, so that what is appended begins on its own."""
    if file.exists():
        text = file.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def overlaps(chat: Chat, texts: Iterable[str], tokenizer: Tokenizer, words: int = 13) -> bool:
    """Whether the chat shares a run of so many words with any of the texts, in message or answer."""
    known = _all_grams(tuple(texts), words)
    return not known.isdisjoint(_grams(chat.message + "\n" + tokenizer.decode(chat.answer), words))


@lru_cache(maxsize=1)
def _all_grams(texts: tuple[str, ...], words: int) -> frozenset[tuple[str, ...]]:
    return frozenset(gram for text in texts for gram in _grams(text, words))


def _grams(text: str, words: int) -> set[tuple[str, ...]]:
    run = re.findall(r"\w+", text.lower())
    return {tuple(run[i : i + words]) for i in range(len(run) - words + 1)}
