"""The models of the server's tests: one target with a tokenizer and a chat template, and its draft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from ssd import Engine

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny-chat"
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(path, tokenizer=vocabulary, vocab_size=len(vocabulary))
    tiny.write_draft_of(path, path.parent / "tiny-draft", noise=0.07)
    return path


@pytest.fixture
def engine(target: Path) -> Iterator[MakeEngine]:
    """Builds engines in mode "sd" on the tiny target, in float32 and on one thread, and closes them after the test."""
    built: list[Engine] = []

    def build(**options: Any) -> Engine:
        defaults = {"draft": str(target.parent / "tiny-draft"), "mode": "sd", "dtype": "float32", "threads": 1, "max_batch": 4}
        built.append(Engine(str(target), **(defaults | options)))
        return built[-1]

    yield build
    for each in built:
        each.close()
