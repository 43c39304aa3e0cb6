"""The models of the engine's tests: one target, and drafts of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from engine.cases import PADDED, VOCABULARY, MakeCaptured, MakeEngine, Models
from fake_device import FakeDevice
from ssd import Engine
from ssd.runtime.captured import CapturedExecutor


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    tiny.write_model(root / "target", tokenizer=VOCABULARY, vocab_size=PADDED)
    tiny.write_draft_of(root / "target", root / "draft", noise=0.07)
    tiny.write_draft_of(root / "target", root / "trimmed", noise=0.05, vocabulary=[i for i in range(len(VOCABULARY)) if i % 4])
    tiny.write_model(root / "stranger", tokenizer=tiny.vocabulary_of_bytes(swap=(70, 71)), vocab_size=PADDED)
    return Models(*(str(root / name) for name in ("target", "draft", "trimmed", "stranger")))


@pytest.fixture
def engine(models: Models) -> Iterator[MakeEngine]:
    """Builds engines on the shared target, by default in float32 and on one thread, and closes them after the test."""
    built: list[Engine] = []

    def build(mode: str = "ar", draft: str | None = "auto", target: str | Path | None = None, **options: Any) -> Engine:
        if draft == "auto":
            draft = None if mode == "ar" else "draft"
        name = None if draft is None else models.draft_named(draft)
        options = {"dtype": "float32", "threads": 1} | options
        built.append(Engine(str(target or models.target), name, mode, **options))
        return built[-1]

    yield build
    for each in built:
        each.close()


@pytest.fixture(scope="session")
def ending(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A target without a tokenizer. An eighth of its tokens are end-of-sequence tokens."""
    path = tmp_path_factory.mktemp("ending")
    tiny.write_model(path, seed=1, vocab_size=PADDED, eos_token_id=list(range(0, PADDED, 8)))
    return str(path)


@pytest.fixture
def captured(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> MakeCaptured:
    """Builds engines on a fake device. seed: seed of the order in which it runs."""

    def build(mode: str, seed: int, draft: str | None = "auto", **options: Any) -> tuple[Engine, FakeDevice]:
        device = FakeDevice(seed)
        with monkeypatch.context() as patch:
            patch.setattr(
                "ssd.engine.make_executor", lambda trace, config, *_: CapturedExecutor(trace, device, config.max_batch)
            )
            return engine(mode, draft, **options), device

    return build
