"""How a completion ends: over 3,000 cases of stop strings, end-of-sequence tokens and max_new_tokens, in every mode.

The oracle cuts the tokens of a decode without stops: of "ar" for greedy decoding, of the same mode and seed for sampling.
Counts are those of the reports, round by round, as far as the completion kept their tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import pytest
from safetensors.torch import save_file

import tiny
from engine.cases import FIXED, PADDED, VOCABULARY, MakeCaptured, MakeEngine, Models, as_asked, random_prompts
from ssd import Completion, Engine, SamplingParams
from ssd.decoding.round import SlotReport
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.models.tokenizer import Tokenizer
from ssd.requests import Request

EOS = (0, 1, 2)  # the special tokens of the vocabulary: they have no text
LIKELY = (148, 272, 59)  # tokens whose logits the special tokens get, and a little more
CONTEXT, LOOKAHEAD = 48, 4
PROMPTS = random_prompts((3, 9, 1, 14))
STRIDE, PERIOD = 41, 7  # of the repeating target's texts
PERIODIC_PROMPTS = [
    [first + STRIDE * ((n + start) % PERIOD) for n in range(PERIOD + 1)] for first, start in ((0, 1), (1, 3), (5, 0), (2, 6))
]
LIMITS = (None, *range(1, 10))
MODES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ar": ("ar", None, {}),
    "sd": ("sd", "draft", {}),
    "sd, tree": ("sd", "draft", {"tree": (2, 2, 1)}),
    "ar, repeating": ("ar", None, {}),
    "sd, n-gram, repeating": ("sd", "ngram", {}),
    "ssd": ("ssd", "draft", FIXED),
    "ssd, n-gram": ("ssd", "draft", FIXED | {"fallback": "ngram"}),
    "ssd, auto": ("ssd", "draft", {"fallback": "auto"}),  # measures, so its rounds differ from run to run
}
DRAWS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_p": 0.95}}


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A target with a tokenizer whose greedy texts often come to an end-of-sequence token, and its draft."""
    root = tmp_path_factory.mktemp("endings")
    target, draft = root / "target", root / "draft"
    tensors = tiny.write_model(target, tokenizer=VOCABULARY, vocab_size=PADDED, eos_token_id=list(EOS))
    head = tensors["lm_head.weight"]
    head[list(EOS)] = 1.02 * head[list(LIKELY)]
    save_file(tensors, target / "model.safetensors")
    tiny.write_draft_of(target, draft, noise=0.05)
    return Models(str(target), str(draft), "", "")


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A target whose greedy texts have a period, so that n-grams are accepted. Token i is followed by i + STRIDE."""
    path = tmp_path_factory.mktemp("repeating")
    tensors = tiny.write_model(path, tokenizer=VOCABULARY, vocab_size=PADDED, eos_token_id=list(EOS))
    for name, weight in tensors.items():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()
    head, embeddings = tensors["lm_head.weight"].zero_(), tensors["model.embed_tokens.weight"]
    for token in range(len(VOCABULARY)):
        head[token] = embeddings[(token - STRIDE) % (STRIDE * PERIOD)] / 6
    save_file(tensors, path / "model.safetensors")
    return str(path)


@pytest.fixture(scope="module")
def engines(ending: Models, repeating: str) -> Iterator[dict[str, Engine]]:
    """An engine for each of MODES."""
    options = {"dtype": "float32", "threads": 1, "max_batch": 16, "max_context": CONTEXT, "lookahead": LOOKAHEAD}
    built = {
        name: Engine(
            repeating if "repeating" in name else ending.target, draft and ending.draft_named(draft), mode, **options | own
        )
        for name, (mode, draft, own) in MODES.items()
    }
    yield built
    for each in built.values():
        each.close()


# The oracle -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unstopped:
    """A decode that went on to its limit. Only `Tokenizer.decode` makes its text."""

    ids: list[int]
    tokenizer: Tokenizer

    @cached_property
    def certain(self) -> list[str]:
        """The text after each number of tokens, without an incomplete character at its end."""
        texts = [""]
        for n in range(1, len(self.ids) + 1):
            text = self.tokenizer.decode(self.ids[:n])
            texts.append(texts[-1] if text.endswith("\N{REPLACEMENT CHARACTER}") else text)
        return texts

    def stop_at(self, n: int, tokens: int = 1) -> str | None:
        """A string that the text does not have before its n-th token: that of the last `tokens` tokens, or a longer one.

        None if the n-th token completes no character.
        """
        start = len(self.certain[max(0, n - tokens)])
        whole = self.certain[n]
        found = [whole[i:] for i in range(start, -1, -1) if whole[i:] and whole[i:] not in self.certain[n - 1]]
        return found[0] if found else None

    def cut(self, params: SamplingParams) -> tuple[list[int], str, str]:
        """The token ids, text and reason of a completion that ends as these parameters say."""
        for n, token in enumerate(self.ids, 1):
            ends = token in EOS and not params.ignore_eos
            texts = [self.certain[n]]
            if ends or n == len(self.ids):
                texts.append(self.tokenizer.decode(self.ids[:n]))  # an incomplete character is shown at the end
            for text in texts:
                if found := [text.index(stop) for stop in params.stop if stop in text]:
                    return self.ids[:n], text[: min(found)], "stop"
            if len(texts) == 2:
                return self.ids[:n], texts[1], "eos" if ends else "length"
        raise AssertionError("an unstopped decode has at least one token")


@dataclass(frozen=True)
class Case:
    prompt: int
    params: SamplingParams


def cases_of(prompt: int, unstopped: dict[int | None, Unstopped], draws: dict[str, Any]) -> list[Case]:
    """Every way to end the decode of one prompt. unstopped: by max_new_tokens."""
    whole, cases = unstopped[None], []

    def case(limit: int | None, *stop: str | None, ignore_eos: bool = False) -> None:
        if None not in stop:
            own = {"max_new_tokens": limit, "stop": stop, "ignore_eos": ignore_eos, "logprobs": len(cases) % 3}
            cases.append(Case(prompt, SamplingParams(**own, **draws)))  # type: ignore[arg-type]

    for ignore_eos in (False, True):
        case(None, ignore_eos=ignore_eos)
    for n in range(1, 13):  # at every place of a round, and with the first token
        case(None, whole.stop_at(n), ignore_eos=bool(n % 2))
    for n in (4, 6, 7, 8, 9):  # across rounds
        case(None, whole.stop_at(n, tokens=4), ignore_eos=True)
    for n in (3, 5, 8):  # a stop string that another one begins with
        if (short := whole.stop_at(n)) and (more := whole.certain[-1].partition(short)[2][:2]):
            case(None, short, short + more)
            case(None, short + more, short)
            case(None, short + "never", short[:-1] + "never", ignore_eos=True)
    first_eos = next((n for n, token in enumerate(whole.ids, 1) if token in EOS), None)
    for n in range(first_eos - 2, first_eos + 3) if first_eos else ():  # in the round of an end-of-sequence token
        if 1 <= n < len(whole.ids):
            case(None, whole.stop_at(n))
            case(None, whole.stop_at(n), ignore_eos=True)
    for limit in LIMITS[1:]:
        assert limit is not None
        case(limit)
        case(limit, ignore_eos=True)
        case(limit, unstopped[limit].stop_at(limit), ignore_eos=True)  # with the last token
        case(limit, unstopped[limit].stop_at(max(1, limit - 1)))
        case(limit, whole.stop_at(limit + 1))  # one too late, unless the decodes differ
    return cases


# The counts -------------------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """The requests of a decode, in order, and the reports of their rounds."""

    requests: list[Request] = field(default_factory=list)
    reports: dict[Request, list[SlotReport]] = field(default_factory=dict)

    def watch(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        add, run_round = engine.core.add, engine.core.loop.round

        def watched_add(request: Request) -> None:
            self.requests.append(request)
            self.reports[request] = []
            add(request)

        def watched_round(n: int) -> Any:
            running = dict(engine.core.scheduler.running)
            result = run_round(n)
            for slot, request in running.items():
                self.reports[request].append(result.verification.slots[slot])
            return result

        patch.setattr(engine.core, "add", watched_add)
        patch.setattr(engine.core.loop, "round", watched_round)


@dataclass(frozen=True)
class Kept:
    """What a completion kept of a round."""

    report: SlotReport
    decided: list[int]  # the committed tokens, with the bonus token
    tokens: int

    @property
    def accepted(self) -> int:
        return min(self.report.accepted, self.tokens)


def kept_of(request: Request, reports: Sequence[SlotReport], tokens: int) -> list[Kept]:
    """tokens: number of tokens of the completion."""
    rounds, stored, left = [], len(request.prompt), tokens - 1  # the first token is the prefill's
    for report in reports:
        if left > 0:  # otherwise the prefill ended the request when this round had begun
            rounds.append(Kept(report, report.newest[stored - report.length :], min(report.length - stored, left)))
            stored, left = report.length, left - rounds[-1].tokens
    assert left == 0
    return rounds


def check_counts(completion: Completion, rounds: Sequence[Kept], mode: str) -> None:
    """The stats are those of the kept tokens; only the last round may have been cut, and its bonus token with it."""
    stats = completion.stats
    assert all(each.tokens >= 1 and each.accepted <= each.report.proposed for each in rounds)
    assert all(each.tokens == len(each.decided) == each.accepted + 1 for each in rounds[:-1])
    accepted, bonus = [each.accepted for each in rounds], [each.tokens - each.accepted for each in rounds]
    assert set(bonus) <= {0, 1} and 0 not in bonus[:-1]
    assert len(completion.token_ids) - 1 == sum(accepted) + sum(bonus)
    proposed = [each.report.proposed for each in rounds]
    assert stats.rounds == len(rounds)
    assert stats.mean_acceptance_length == ((len(completion.token_ids) - 1) / len(rounds) if rounds else None)
    assert stats.accepted_per_round == (sum(accepted) / len(rounds) if rounds else 0)
    assert stats.acceptance_rate == (sum(accepted) / sum(proposed) if sum(proposed) else None)
    assert stats.accepted_at == [sum(k > i for k in accepted) for i in range(max(accepted, default=0))]
    assert stats.proposed_counts == dict(sorted(Counter(proposed).items()))
    hits = {k: [0, 0] for k in sorted(set(accepted[:-1]))} if mode == "ssd" else {}
    for before, each in pairwise(rounds) if mode == "ssd" else ():
        hits[before.accepted][0] += each.report.hit
        hits[before.accepted][1] += 1
    assert stats.hits_per_k == {k: (hit, look_ups) for k, (hit, look_ups) in hits.items()}
    assert sum(stats.rank_counts.values()) == (max(0, len(rounds) - 1) if mode == "ssd" else 0)


# The sweep --------------------------------------------------------------------------------------------------------------------


def reference_of(name: str) -> tuple[str, list[list[int]]]:
    """The autoregressive mode with the same target, and the prompts."""
    return ("ar, repeating", PERIODIC_PROMPTS) if "repeating" in name else ("ar", PROMPTS)


def unstopped_decodes(engine: Engine, prompts: list[list[int]], draws: dict[str, Any]) -> list[dict[int | None, Unstopped]]:
    """The decodes of every prompt that only their limits end, by limit. A sampled decode depends on its limit near its end."""
    asked = [(prompt, limit) for prompt in range(len(prompts)) for limit in LIMITS]
    params = [SamplingParams(max_new_tokens=limit, ignore_eos=True, seed=prompt, **draws) for prompt, limit in asked]
    found = engine.decode([prompts[prompt] for prompt, _ in asked], params)
    assert engine.tokenizer is not None
    decodes: list[dict[int | None, Unstopped]] = [{} for _ in prompts]
    for (prompt, limit), completion in zip(asked, found, strict=True):
        assert len(completion.token_ids) == (limit or CONTEXT - len(prompts[prompt]))
        decodes[prompt][limit] = Unstopped(completion.token_ids, engine.tokenizer)
    return decodes


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("name", MODES)
def test_every_ending_is_the_one_that_the_parameters_ask_for(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, name: str, draws: str
) -> None:
    """Ids, text, reason and counts of each completion."""
    engine, mode = engines[name], MODES[name][0]
    reference, prompts = reference_of(name)
    decodes = unstopped_decodes(engines[reference] if draws == "greedy" else engine, prompts, DRAWS[draws])
    cases = [case for n, each in enumerate(decodes) for case in cases_of(n, each, DRAWS[draws] | {"seed": n})]
    assert len(cases) > 150
    cut: set[tuple[str, int]] = set()
    spanned = 0
    watched = Watched()
    watched.watch(engine, monkeypatch)
    found = as_asked(engine.decode([prompts[case.prompt] for case in cases], [case.params for case in cases]), mode)
    for case, completion, request in zip(cases, found, watched.requests, strict=True):
        rounds = kept_of(request, watched.reports[request], len(completion.token_ids))
        unstopped = decodes[case.prompt][case.params.max_new_tokens]
        if (name, draws) == ("ssd, auto", "sampled"):  # no other decode has the same tokens for sure
            unstopped = replace(unstopped, ids=[completion.token_ids[0], *(token for each in rounds for token in each.decided)])
        assert (completion.token_ids, completion.text, completion.finish_reason) == unstopped.cut(case.params), case
        check_counts(completion, rounds, mode)
        if case.params.logprobs:
            assert all(token in each for token, each in zip(completion.token_ids, completion.logprobs or (), strict=True))
        if rounds and rounds[-1].tokens == rounds[-1].accepted:  # its bonus token was cut
            cut.add((completion.finish_reason, rounds[-1].tokens))
        if completion.finish_reason == "stop" and rounds:
            before = unstopped.certain[len(completion.token_ids) - rounds[-1].tokens]
            spanned += len(completion.text) < len(before)
    assert spanned > 3
    if mode != "ar":
        assert {("stop", 1), ("stop", 2)} < cut and "eos" in {reason for reason, _ in cut}


@pytest.mark.parametrize("name", MODES)
def test_a_stream_gives_the_text_of_every_ending(engines: dict[str, Engine], name: str) -> None:
    """No piece is taken back, and none is missing: the pieces make up the text, whatever ends it."""
    engine, (reference, prompts) = engines[name], reference_of(name)
    decodes = unstopped_decodes(engines[reference], prompts, {})
    cases = [case for n, each in enumerate(decodes) for case in cases_of(n, each, {})[::4]]
    streams = [engine.stream(prompts[case.prompt], case.params) for case in cases]
    for case, stream in zip(cases, streams, strict=True):
        ids, text, reason = decodes[case.prompt][case.params.max_new_tokens].cut(case.params)
        assert "".join(stream) == text, case
        assert stream.completion is not None
        assert (stream.completion.token_ids, stream.completion.text, stream.completion.finish_reason) == (ids, text, reason)


def test_the_round_that_ends_a_request_teaches_nothing(ending: Models, engine: MakeEngine, captured: MakeCaptured) -> None:
    """Eagerly, and with two rounds in flight after a stop string: R rounds of a completion have R − 1 outcomes."""
    options = {"target": ending.target, "max_context": CONTEXT, "max_batch": 3, "fallback": "neural"}
    params = {"ignore_eos": True, "max_new_tokens": 30}
    whole = engine(**options).decode(PROMPTS, SamplingParams(**params))
    stops = [SamplingParams(**params, stop=(completion.text[7:10],)) for completion in whole]
    engines = [
        engine("ssd", ending.draft, **options),
        *(captured("ssd", seed, ending.draft, **options)[0] for seed in range(2)),
    ]
    for one in engines:
        found = one.decode(PROMPTS, stops)
        assert {completion.finish_reason for completion in found} == {"stop"}
        assert isinstance(one.core.loop, SpeculativeSpeculative)
        cache, outcomes = one.core.loop.cache, sum(completion.stats.rounds - 1 for completion in found)
        assert cache.measured is not None
        assert (cache.measured.observations, cache.fallback.look_ups) == (outcomes, outcomes)
