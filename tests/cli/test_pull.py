"""`ssd pull` prints where the model is, and nothing else on stdout; fetching itself is tested with ssd/models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.cases import Refusal, Run
from ssd.errors import SsdError
from ssd.models import registry


def test_it_prints_where_the_file_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fractions = []

    def pull(name: str, progress: Callable[[float], None]) -> Path:
        for fraction in (0.0, 0.5, 1.0):
            progress(fraction)
            fractions.append(fraction)
        return Path("somewhere") / name

    monkeypatch.setattr(registry, "pull", pull)
    result = run("pull", "smollm2-135m")
    assert (result.status, result.out, result.err) == (0, "somewhere/smollm2-135m\n", "")
    assert fractions == [0.0, 0.5, 1.0]


def test_a_path_is_already_here(run: Run, target: Path) -> None:
    assert run("pull", target).out == f"{target}\n"


def test_a_model_that_cannot_be_fetched_is_refused(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no model 'no-such-model'" in refusal("pull", "no-such-model")

    def pull(name: str, progress: Callable[[float], None]) -> Path:
        raise SsdError("the network is down")

    monkeypatch.setattr(registry, "pull", pull)
    assert refusal("pull", "smollm2-135m") == "the network is down"
