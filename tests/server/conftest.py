"""The models of the server's tests: one target with a tokenizer and a chat template, and its draft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tiny
from ssd import Engine

if TYPE_CHECKING:
    from server.live import Live

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny-chat"
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(path, tokenizer=vocabulary, vocab_size=len(vocabulary))
    tiny.write_draft_of(path, path.parent / "tiny-draft", noise=0.07)
    return path


@pytest.fixture(scope="session")
def alone(target: Path) -> Iterator[Engine]:
    """An engine that decodes autoregressively, one prompt at a time: what every answer must equal."""
    with Engine(str(target), None, "ar", dtype="float32", threads=1, max_batch=1) as one:
        yield one


@pytest.fixture(scope="session")
def served(target: Path) -> Iterator[Live]:
    """A server that no test breaks."""
    pytest.importorskip("fastapi")
    from server.live import live  # needs the packages of the extra "server"

    with live(Engine(str(target), **settings(target))) as server:
        yield server


def settings(target: Path) -> dict[str, Any]:
    """Options of the tests' engines: mode "sd" on four slots, in float32 and on one thread."""
    return {"draft": str(target.parent / "tiny-draft"), "mode": "sd", "dtype": "float32", "threads": 1, "max_batch": 4}


@pytest.fixture
def engine(target: Path) -> Iterator[MakeEngine]:
    """Builds engines on the tiny target, with `settings` unless told otherwise, and closes them after the test."""
    built: list[Engine] = []

    def build(**options: Any) -> Engine:
        built.append(Engine(str(target), **(settings(target) | options)))
        return built[-1]

    yield build
    for each in built:
        each.close()
