"""The scores of a student on chats that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssd.distill.student import Decoder
from ssd.distill.training import Texts

LOOKAHEADS = range(1, 9)
SHOWN = (1, 2, 3, 4, 6, 8)  # the lookaheads shown in a table


@dataclass
class HeldOutScore:
    """The score on the held-out greedy answers of one domain. answers, tokens: how many there are. agreement: the fraction of
    their tokens that the student ranks first. tokens_per_round: by lookahead K, the tokens that a round of greedy speculative
    decoding of these texts commits: the proposals before the first wrong one, and one more."""

    answers: int
    tokens: int
    agreement: float
    tokens_per_round: dict[int, float] = field(default_factory=dict)


def agreements(student: Decoder, head: Tensor, draft_vocab: Tensor, texts: Texts, indices: Sequence[int]) -> list[Tensor]:
    """For each chat of these indices, [answer tokens] bool: whether the student, given the chat so far, ranks the token
    first."""
    agreed = []
    for i in indices:
        start, ids = len(texts.chats[i].prompt), texts.ids[i]
        with torch.inference_mode():
            with torch.autocast(head.device.type, torch.bfloat16):
                hidden = student(ids[None, :-1].to(head.device))[0, start - 1 :]
            best = (hidden.float() @ head.float().T).argmax(dim=-1).cpu()  # in float32, like the engine's logits
        agreed.append(draft_vocab.long()[best] == ids[start:])
    return agreed


def tokens_per_round(agreed: Sequence[Tensor], lookahead: int) -> float:
    """Mean tokens that a round of greedy speculative decoding commits. agreed: [tokens] bool for each text."""
    rounds = tokens = 0
    for text in (text.tolist()[1:] for text in agreed):  # the first token comes from the prefill
        position = 0
        while position < len(text):
            accepted = next((n for n, same in enumerate(text[position : position + lookahead]) if not same), lookahead)
            position += accepted + 1
            rounds += 1
        tokens += len(text)
    return tokens / max(1, rounds)


def score(student: Decoder, head: Tensor, draft_vocab: Tensor, texts: Texts, indices: Sequence[int]) -> dict[str, HeldOutScore]:
    """The score on the chats of these indices, by domain, and over all of them as "all"."""
    greedy = [i for i in indices if texts.chats[i].greedy and texts.chats[i].answer]
    agreed = agreements(student, head, draft_vocab, texts, greedy)
    domains = sorted({texts.chats[i].domain for i in greedy})
    scores = {}
    for domain in [*domains, "all"]:
        in_domain = [text for i, text in zip(greedy, agreed, strict=True) if domain in (texts.chats[i].domain, "all")]
        tokens = torch.cat(in_domain) if in_domain else torch.zeros(0)
        scores[domain] = HeldOutScore(
            answers=len(in_domain),
            tokens=len(tokens),
            agreement=float(tokens.float().mean()) if len(tokens) else 0.0,
            tokens_per_round={k: tokens_per_round(in_domain, k) for k in LOOKAHEADS},
        )
    return scores
