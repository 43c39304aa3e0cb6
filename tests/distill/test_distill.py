"""`distill` on tiny random targets: a whole run to a draft that the engine decodes with, and the errors it raises."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from ssd import Engine, SamplingParams
from ssd.distill import Recipe, distill
from ssd.distill.chats import HELD_OUT_EVERY, read
from ssd.distill.report import HeldOutScore
from ssd.distill.training import Status, Texts
from ssd.errors import SsdError
from ssd.models.pair import load_draft, load_target

VOCABULARY = tiny.vocabulary_of_bytes()
RECIPE = Recipe(layers=2, vocab=128, tokens=1000, answer_tokens=12, epochs=8, batch_tokens=1024, threads=1)
SHORT = replace(RECIPE, tokens=500, epochs=1)
TARGETS = {"tied": {"tie_word_embeddings": True}, "a head of its own": {}}


def write_target(path: Path, **config: Any) -> Path:
    tiny.write_model(path, tokenizer=VOCABULARY, vocab_size=288, num_hidden_layers=4, eos_token_id=0, **config)
    return path


class Run:
    """A target, and the draft made from it."""

    def __init__(self, folder: Path, recipe: Recipe = RECIPE, prompts: Sequence[str] = (), **config: Any) -> None:
        self.target = write_target(folder / "target", **config)
        self.out = folder / "draft"
        self.stages: dict[str, list[float]] = {}
        self.statuses: list[Status] = []
        self.found = self.distill(recipe, prompts=prompts)

    def distill(self, recipe: Recipe, **options: Any) -> dict[str, HeldOutScore]:
        def stage(name: str) -> Callable[[float], None]:
            return self.stages.setdefault(name, []).append

        return distill(str(self.target), self.out, recipe, stage=stage, status=self.statuses.append, **options)


@pytest.fixture(scope="module", params=TARGETS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"), **TARGETS[request.param])


def test_the_engine_with_the_draft_decodes_the_targets_own_text(run: Run) -> None:
    prompts = ["the hen and the otter", "no", "an end to it"]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    with Engine(str(run.target), None, "ar", threads=1) as engine:
        expected = engine.decode(prompts, params)
    for mode in ("sd", "ssd"):
        with Engine(str(run.target), str(run.out), mode, threads=1) as engine:
            found = engine.decode(prompts, params)
        assert [each.token_ids for each in found] == [each.token_ids for each in expected]
        assert not any(each.degraded for each in found)
        assert sum(each.stats.accepted_per_round for each in found) > 0


def test_training_brings_the_student_closer_to_its_target(run: Run) -> None:
    first, last = run.statuses[0], run.statuses[-1]
    assert last.kl < 0.7 * first.kl
    assert last.fraction == 1
    assert run.found["all"].agreement > 0.5
    assert run.found["all"].tokens == sum(each.tokens for domain, each in run.found.items() if domain != "all")


def test_every_step_reports_progress_up_to_one(run: Run) -> None:
    assert len(run.stages) == 3
    for fractions in run.stages.values():
        assert fractions == sorted(fractions) and fractions[-1] == 1


def test_the_engine_loads_the_trained_layers_and_borrows_the_embeddings(run: Run) -> None:
    target = load_target(str(run.target), torch.float32, torch.device("cpu"), lambda context: context, lambda fraction: None)
    draft = load_draft(str(run.out), target, lambda context: 64)
    assert draft.model.config.num_layers == 2
    assert draft.model.embeddings is target.model.embeddings
    assert draft.model.vocab_size == 128 and draft.id_of is not None and draft.draft_id_of is not None
    assert torch.equal(draft.draft_id_of[draft.id_of.long()], torch.arange(128, dtype=torch.int32))
    assert 0 in draft.id_of.tolist()  # the end-of-text id, which every answer has


def test_the_report_and_the_card_say_how_the_draft_was_made(run: Run) -> None:
    report = json.loads((run.out / "report.json").read_text())
    assert report["made_from"]["layers"] == [0, 3]
    assert report["made_from"]["steps"] == run.statuses[-1].step
    assert report["recipe"]["tokens"] == RECIPE.tokens
    card = (run.out / "README.md").read_text()
    assert f"{run.found['all'].agreement:.1%}" in card and str(run.target) in card


def test_the_same_seed_makes_the_same_chats(tmp_path: Path) -> None:
    texts = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        Run(folder, SHORT)
        texts.append((folder / "draft" / "run" / "chats.jsonl").read_text())
    assert texts[0] == texts[1]


def test_a_resumed_run_continues_from_its_last_step(tmp_path: Path) -> None:
    run = Run(tmp_path, SHORT)
    steps, chats = run.statuses[-1].step, (run.out / "run" / "chats.jsonl").read_text()
    run.statuses.clear()
    run.distill(replace(SHORT, epochs=3, weights="bfloat16"), resume=True)
    assert {t.dtype for t in load_file(run.out / "model.safetensors").values()} == {torch.bfloat16, torch.int32}
    assert [status.step for status in run.statuses] == list(range(steps + 1, 3 * steps + 1))
    assert (run.out / "run" / "chats.jsonl").read_text() == chats


def test_a_time_budget_ends_training_and_completes_its_schedule(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(RECIPE, epochs=1e6, time_budget=0.1))
    assert run.statuses[-1].fraction >= 1
    assert run.found["all"].tokens > 0


def test_a_users_own_prompts_are_answered_once_each(tmp_path: Path) -> None:
    run = Run(tmp_path, SHORT, prompts=["then the hen", "an otter", "then the hen"])
    chats = [json.loads(line) for line in (run.out / "run" / "chats.jsonl").read_text().splitlines()]
    assert [chat["message"] for chat in chats if chat["domain"] == "own"] == ["then the hen", "an otter"]


# Errors -----------------------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_not_overwritten(run: Run) -> None:
    with pytest.raises(SsdError, match="holds a run already; continue it with --resume"):
        run.distill(RECIPE)


def test_resuming_without_a_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SsdError, match="holds no run to continue"):
        distill(str(run.target), tmp_path / "new", RECIPE, resume=True)


def test_resuming_with_another_student_or_target_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SsdError, match=r"this run was started with layers \[0, 3\], and now it is \[0, 1, 3\]"):
        run.distill(replace(RECIPE, layers=3), resume=True)
    with pytest.raises(SsdError, match="this run was started with target .*, and now it is .*other"):
        distill(str(write_target(tmp_path / "other")), run.out, RECIPE, resume=True)


def test_a_checkpoint_of_another_student_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, SHORT)
    torch.save({}, run.out / "run" / "checkpoint.pt")
    with pytest.raises(SsdError, match=r"checkpoint\.pt belongs to another student"):
        run.distill(SHORT, resume=True)


def test_answers_that_do_not_fit_in_the_context_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SsdError, match="answers of 300 tokens needs a context of 713, and the target's is 512"):
        distill(str(run.target), tmp_path / "draft", replace(RECIPE, answer_tokens=300))


def test_a_chat_stays_held_out_whatever_is_excluded(tmp_path: Path) -> None:
    """Otherwise a resumed run would report on chats that it was trained on."""
    run = Run(tmp_path, SHORT)
    chats = read(run.out / "run" / "chats.jsonl")
    seen: list[list[int]] = []

    def note(student: object, head: object, ids: object, texts: Texts, indices: Sequence[int]) -> dict[str, HeldOutScore]:
        seen.append([chats.index(texts.chats[i]) for i in indices])
        return run.found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssd.distill.pipeline.score", note)
        patch.setattr("ssd.distill.chats.overlaps", lambda chat, texts, tokenizer: chat == chats[3])
        run.distill(replace(SHORT, epochs=2), resume=True, exclude=["anything"])
    assert seen == [[i for i in range(len(chats)) if i % HELD_OUT_EVERY == 0]]


def test_a_target_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    config = json.loads((target / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    (target / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(SsdError, match="this model has no chat template, and without one it cannot make up chats"):
        distill(str(target), tmp_path / "draft", RECIPE)
    assert not (tmp_path / "draft").exists()


def test_a_target_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "target")
    with pytest.raises(SsdError, match="has no tokenizer"):
        distill(str(tmp_path / "target"), tmp_path / "draft", replace(RECIPE, layers=1))


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"layers": 9}, "layers is 9; the target has 4"),
        ({"layers": 1, "from_layers": (7,)}, "from_layers has 7; .* has layers 0 to 3"),
    ],
    ids=str,
)
def test_layers_that_the_target_lacks_are_refused(run: Run, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SsdError, match=reason):
        distill(str(run.target), tmp_path / "draft", replace(RECIPE, **changes))


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"layers": 0}, "layers is 0"),
        ({"vocab": -1}, "vocab is -1"),
        ({"tokens": 0}, "tokens is 0"),
        ({"answer_tokens": 1}, "answer_tokens is 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"time_budget": 0}, "time_budget is 0"),
        ({"from_layers": (0, 1, 2)}, "from_layers names 3 layers, and layers is 2"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
    ids=str,
)
def test_a_recipe_outside_its_range_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SsdError, match=reason):
        replace(RECIPE, **changes)


def test_a_file_without_chats_in_it_is_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "draft" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text((run.out / "run" / "run.json").read_text())
    (folder / "chats.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(SsdError, match=r"chats\.jsonl is not a file of chats"):
        distill(str(run.target), tmp_path / "draft", RECIPE, resume=True)


def test_a_draft_of_another_target_is_refused(run: Run, tmp_path: Path) -> None:
    other = write_target(tmp_path / "other", hidden_size=32)
    with pytest.raises(SsdError, match="was made for a target of hidden_size 64, and .* has 32"):
        Engine(str(other), str(run.out), "sd")


def test_a_draft_without_embeddings_is_refused_as_a_target(run: Run) -> None:
    with pytest.raises(SsdError, match="is a draft without embeddings of its own"):
        Engine(str(run.out), None, "ar")
