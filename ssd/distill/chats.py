"""The data: chats that the target makes up by itself.

The target is given its chat template's system part and an opened user turn with the first words of a message, invents the rest of
the message, and then answers it. So a draft can be made for any target that has a chat template, from nothing else, and it learns
the very text that the target will write. (The method of Magpie, arXiv 2406.08464, with openings that spread the domains.)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd.config import SamplingParams
from ssd.distill.openings import OWN, SHARES, opening
from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.models.tokenizer import Tokenizer

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
    a run that was cut short goes on where it was. Raises SsdError where the target has no chat template.
    """
    done = read(file) if file.exists() else []
    seen, count = {chat.message for chat in done}, sum(len(chat.answer) for chat in done)
    mine = [message for message in dict.fromkeys(own) if message not in seen]
    chance = random.Random(f"{seed}, {len(done)}")
    while mine or (count < tokens and go_on()):
        if mine:
            messages, mine = [(OWN, message) for message in mine[:CHATS_A_CALL]], mine[CHATS_A_CALL:]
        else:
            missing = -(-(tokens - count) // answer_tokens)
            drawn = _messages(engine, tokenizer, min(CHATS_A_CALL, max(BATCH, missing)), chance)
            messages = [pair for pair in drawn if pair[1] not in seen]
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
    params = [SamplingParams(**MESSAGE, max_new_tokens=MESSAGE_TOKENS, seed=chance.getrandbits(62)) for _ in openings]
    completions = engine.decode([tokenizer.user_turn(text) for text in openings], params)
    messages = [begun + completion.text for begun, completion in zip(openings, completions, strict=True)]
    return [(domain, message) for domain, message in zip(domains, messages, strict=True) if message.strip()]


def _answers(
    engine: Engine, tokenizer: Tokenizer, messages: Iterable[tuple[str, str]], answer_tokens: int, chance: random.Random
) -> list[Chat]:
    chats, params = [], []
    for domain, message in messages:
        prompt = tokenizer.chat([{"role": "user", "content": message}])
        if len(prompt) + answer_tokens > engine.max_context:
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
        chats = [Chat(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise SsdError(f"{file} is not a file of chats ({one_line(error)}); delete it to make it again.") from None
    if not chats:
        raise SsdError(f"{file} has no chats; delete it to make it again.")
    return chats


def without_overlap(chats: Iterable[Chat], texts: Iterable[str], tokenizer: Tokenizer, words: int = 13) -> Iterator[Chat]:
    """The chats that share no run of so many words with any of the texts, in message or answer: no benchmark among them."""
    known = {gram for text in texts for gram in _grams(text, words)}
    for chat in chats:
        if known.isdisjoint(_grams(chat.message + "\n" + tokenizer.decode(chat.answer), words)):
            yield chat


def _grams(text: str, words: int) -> set[tuple[str, ...]]:
    run = re.findall(r"\w+", text.lower())
    return {tuple(run[i : i + words]) for i in range(len(run) - words + 1)}
