"""The steps of `distill` one by one: the student is the engine's decoder, the loss is plain torch's, the report counts
rounds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from models.test_transformer import BOUND, FAMILIES, error, random_ids, teacher_forced
from models.test_transformer import build as build_transformer
from ssd import Engine
from ssd.distill import student, training
from ssd.distill.chats import Chat, _answers, overlaps, read
from ssd.distill.openings import OPENINGS, SHARES, opening
from ssd.distill.report import tokens_per_round
from ssd.distill.training import Texts
from ssd.errors import SsdError
from ssd.models.config import ModelConfig
from ssd.models.tokenizer import Tokenizer

CPU = torch.device("cpu")


# The student ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_is_the_decoder_that_the_engine_runs(tmp_path: Path, family: str) -> None:
    tensors = tiny.write_model(tmp_path, num_hidden_layers=4, **FAMILIES[family])
    config, layers = ModelConfig.from_directory(tmp_path), [0, 3]
    decoder = student.build(config, tensors, layers, torch.float32, CPU)
    for name, tensor in student.weights_of(decoder).items():
        source = name.replace("layers.1.", "layers.3.")
        assert torch.equal(tensor, tensors[source]), name
    shared = {name: tensor for name, tensor in tensors.items() if "layers." not in name}
    transformer = build_transformer(replace(config, num_layers=2), shared | student.weights_of(decoder))
    ids = random_ids(config.vocab_size, 200)
    with torch.inference_mode():
        logits = decoder(torch.tensor([ids, ids]))[1] @ student.output_rows(tensors).T
    assert error(logits, teacher_forced(transformer, ids)) <= BOUND


@pytest.mark.parametrize(
    "count,num_layers,layers", [(4, 30, [0, 1, 28, 29]), (3, 30, [0, 1, 29]), (1, 3, [0]), (3, 3, [0, 1, 2])], ids=str
)
def test_a_student_starts_from_the_outermost_layers(count: int, num_layers: int, layers: list[int]) -> None:
    assert student.outer_layers(count, num_layers) == layers


def test_an_answer_that_the_target_cannot_finish_is_not_learned_from(tmp_path: Path) -> None:
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(tmp_path, tokenizer=vocabulary, vocab_size=len(vocabulary))
    tiny.spoil_token(tmp_path, vocabulary.index("z"))
    with Engine(str(tmp_path), None, "ar", dtype="float32", threads=1) as engine:
        assert engine.tokenizer is not None
        messages = [("code", "rain"), ("code", "a zoo")]
        with pytest.raises(SsdError, match="the target's logits for output token 1 "):
            _answers(engine, engine.tokenizer, messages, 4, random.Random(0))


def test_a_students_vocabulary_has_the_most_frequent_ids_of_the_answers() -> None:
    chats = [Chat("code", "", [9, 9, 9, 8], [5, 5, 2], True), Chat("code", "", [8, 8], [5, 7, 2], True)]
    assert student.frequent_ids(chats, 3, 12).tolist() == [2, 5, 7]
    assert student.frequent_ids(chats, 5, 12).tolist() == [2, 5, 7, 8, 9]
    assert student.frequent_ids(chats, 7, 12).tolist() == [0, 1, 2, 5, 7, 8, 9]
    assert student.frequent_ids(chats, 99, 12).tolist() == list(range(12))


# Training ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_equal_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROWS_AT_ONCE", 7)
    torch.manual_seed(0)
    theirs, head, weight = torch.randn(20, 16), torch.randn(50, 16), torch.rand(20)
    ours = torch.randn(20, 16, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    loss, kl = training.loss_of(ours, theirs, head, weight)
    loss.backward()

    p, q = (torch.log_softmax(each @ head.T, dim=-1) for each in (theirs, plain))
    each = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    expected_kl = (weight * each).sum() / weight.sum()
    apart = ((plain - theirs) ** 2).mean(-1) / (theirs**2).mean(-1)
    expected = expected_kl + training.HIDDEN_WEIGHT * (weight * apart).sum() / weight.sum()
    expected.backward()
    torch.testing.assert_close(kl, expected_kl.detach())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    chance = random.Random(0)
    chats = [
        Chat("code", "", list(range(1, chance.randint(2, 9))), list(range(20, 20 + chance.randint(1, 9))), True)
        for _ in range(30)
    ]
    return Texts(chats, tmp_path / "hidden.bin", 4)


def test_every_chat_is_in_one_batch_of_an_epoch(texts: Texts) -> None:
    batches = texts.batches(range(30), 32, random.Random(1))
    assert sorted(i for batch in batches for i in batch) == list(range(30))
    assert all(len(batch) == 1 or len(batch) * max(len(texts.ids[i]) for i in batch) <= 32 for batch in batches)
    assert batches != texts.batches(range(30), 32, random.Random(2))


def test_rows_are_every_token_except_each_chats_last(texts: Texts) -> None:
    """A row has the weight of the token after it, and the hidden state of its own token."""
    batch = [3, 11]
    chat, position, row, weight = texts.rows(batch)
    padded = texts.padded(batch)
    for c, p, r, w in zip(chat.tolist(), position.tolist(), row.tolist(), weight.tolist(), strict=True):
        its_chat = texts.chats[batch[c]]
        assert padded[c, p] == (its_chat.prompt + its_chat.answer)[p]
        assert r == texts.first[batch[c]] + p
        assert w == pytest.approx(1.0 if p + 1 >= len(its_chat.prompt) else training.PROMPT_WEIGHT)
    assert len(row) == sum(len(texts.ids[i]) - 1 for i in batch)


def test_hidden_states_are_computed_once_and_kept_in_a_file(texts: Texts, tmp_path: Path) -> None:
    class Ids:
        """A target whose hidden state is its id, four times over."""

        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            return ids[..., None].expand(*ids.shape, 4).float()

    fractions: list[float] = []
    assert not texts.filled
    texts.fill(Ids(), CPU, 24, fractions.append)  # type: ignore[arg-type]
    assert torch.equal(texts.hidden[:, 2].float(), torch.cat(texts.ids).float())
    assert fractions[-1] == 1
    again = Texts(texts.chats, tmp_path / "hidden.bin", 4)
    assert again.filled and torch.equal(again.hidden, texts.hidden)
    assert not Texts(texts.chats[:-1], tmp_path / "hidden.bin", 4).filled


# Report -----------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=4), st.integers(1, 8))
def test_tokens_per_round_equal_a_replay_of_greedy_rounds(agreed: list[list[bool]], lookahead: int) -> None:
    rounds = tokens = 0
    for text in agreed:
        position = 1
        while position < len(text):
            accepted = 0
            while accepted < lookahead and position + accepted < len(text) and text[position + accepted]:
                accepted += 1
            position += accepted + 1
            rounds += 1
        tokens += len(text) - 1
    assert tokens_per_round([torch.tensor(text) for text in agreed], lookahead) == pytest.approx(tokens / max(1, rounds))


# Chats ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(path, tiny.vocabulary_of_bytes())
    found = Tokenizer.from_directory(path)
    assert found is not None
    return found


def test_a_user_turn_begins_a_chat_with_the_same_message(tokenizer: Tokenizer) -> None:
    begun = tokenizer.user_turn("then the")
    whole = tokenizer.chat([{"role": "user", "content": "then the hen"}])
    assert begun == whole[: len(begun)] and len(begun) > 1


def test_the_end_of_a_user_turn_comes_from_the_template(tokenizer: Tokenizer) -> None:
    assert tokenizer.turn_end() == "<|end|><|assistant|>"


@pytest.mark.parametrize(
    "template,reason",
    [
        ("{{ raise_exception('no') }}", "the model's chat template refuses these messages: no"),
        ("hello", "does not show a user's message"),
    ],
)
def test_a_template_that_shows_no_message_is_refused(tmp_path: Path, template: str, reason: str) -> None:
    tiny.write_tokenizer(tmp_path, tiny.vocabulary_of_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    with pytest.raises(SsdError, match=reason):
        found.user_turn("the hen")


def test_any_text_is_read_back_from_the_file(tmp_path: Path) -> None:
    """Even characters that str.splitlines takes for the end of a line. An unfinished last line is left out."""
    chats = [Chat("own", f"a{end}b", [1], [2], True) for end in ("\u2028", "\u2029", "\x85", "\n", "")]
    lines = "".join(json.dumps(asdict(chat), ensure_ascii=False) + "\n" for chat in chats)
    (tmp_path / "chats.jsonl").write_text(lines + '{"domain": "co', encoding="utf-8")
    assert read(tmp_path / "chats.jsonl") == chats


@pytest.mark.parametrize(
    "change,kept",
    [
        (lambda text: text, False),
        (lambda text: text.upper().replace(" ", ",\n"), False),
        (lambda text: " ".join(text.split()[:12]), True),
        (lambda text: text.replace("seven", "six"), True),
    ],
    ids=["the same", "other case and signs", "twelve words", "another word"],
)
def test_only_a_chat_that_shares_thirteen_words_in_a_row_overlaps(
    tokenizer: Tokenizer, change: Callable[[str], str], kept: bool
) -> None:
    benchmark = "one two three four five six seven eight nine ten eleven twelve thirteen"
    chat = Chat("maths", "Say: " + change(benchmark), [1], tokenizer.encode("yes"), True)
    answer = Chat("maths", "Say it", [1], tokenizer.encode(change(benchmark)), True)
    assert [overlaps(each, [benchmark], tokenizer) for each in (chat, answer)] == [not kept] * 2


def test_a_file_without_chats_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("")
    with pytest.raises(SsdError, match="has no chats"):
        read(tmp_path / "chats.jsonl")


def test_every_opening_can_be_filled() -> None:
    chance = random.Random(0)
    for domain in SHARES:
        drawn = {opening(domain, chance) for _ in range(400)}
        assert len(drawn) >= len(OPENINGS[domain])
        assert not any("{" in text for text in drawn)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert SHARES.keys() == OPENINGS.keys()
