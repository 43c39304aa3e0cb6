"""What a student is worth, on chats it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssd.distill.student import Decoder
from ssd.distill.training import Texts

LOOKAHEADS = range(1, 9)
SHOWN = (1, 2, 3, 4, 6, 8)  # of them, in a table


@dataclass
class Worth:
    """On the greedy answers of one domain. agreement: the share of tokens that are the student's likeliest; tokens_per_round: by
    lookahead K, what greedy speculative decoding of these very texts commits a round: of its K proposals those before the first
    that differs, and one more."""

    answers: int
    tokens: int
    agreement: float
    tokens_per_round: dict[int, float] = field(default_factory=dict)


def agreements(student: Decoder, head: Tensor, draft_vocab: Tensor, texts: Texts, of: Sequence[int]) -> list[Tensor]:
    """For each of these chats, [answer tokens] bool: is it what the student, fed the chat up to there, finds likeliest?"""
    found = []
    for i in of:
        start, ids = len(texts.chats[i].prompt), texts.ids[i]
        with torch.inference_mode():
            with torch.autocast(head.device.type, torch.bfloat16):
                hidden = student(ids[None, :-1].to(head.device))[0, start - 1 :]
            best = (hidden.float() @ head.float().T).argmax(dim=-1).cpu()  # float32, as the engine's logits
        found.append(draft_vocab.long()[best] == ids[start:])
    return found


def tokens_per_round(agreed: Sequence[Tensor], lookahead: int) -> float:
    """agreed: [tokens] bool for each text."""
    rounds = tokens = 0
    for text in (each.tolist()[1:] for each in agreed):  # the first token comes with the prompt
        place = 0
        while place < len(text):
            run = next((n for n, same in enumerate(text[place : place + lookahead]) if not same), lookahead)
            place += run + 1
            rounds += 1
        tokens += len(text)
    return tokens / max(1, rounds)


def worth(student: Decoder, head: Tensor, draft_vocab: Tensor, texts: Texts, of: Sequence[int]) -> dict[str, Worth]:
    """By domain, and "all"."""
    greedy = [i for i in of if texts.chats[i].greedy and texts.chats[i].answer]
    agreed = agreements(student, head, draft_vocab, texts, greedy)
    domains = sorted({texts.chats[i].domain for i in greedy})
    found = {}
    for domain in [*domains, "all"]:
        own = [each for i, each in zip(greedy, agreed, strict=True) if domain in (texts.chats[i].domain, "all")]
        same = torch.cat(own) if own else torch.zeros(0)
        found[domain] = Worth(
            answers=len(own),
            tokens=len(same),
            agreement=float(same.float().mean()) if len(same) else 0.0,
            tokens_per_round={k: tokens_per_round(own, k) for k in LOOKAHEADS},
        )
    return found
