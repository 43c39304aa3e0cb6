"""The command line as a user meets it: arguments in; an exit status, stdout and stderr out. On tiny random models."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import tiny
from cli.cases import Refusal, Result, Run
from ssd.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `ssd` with these arguments, in this process, where no stream is a terminal."""
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def refusal(run: Run) -> Refusal:
    """Runs a command that must be refused, and returns the one sentence that it prints."""

    def call(*arguments: object, status: int = 1, stdin: str | bytes = "") -> str:
        result = run(*arguments, stdin=stdin)
        assert result.status == status, result
        assert result.out == ""
        assert result.err.startswith("ssd: ")
        assert result.err.count("\n") == 1, result.err
        return result.err.removeprefix("ssd: ").rstrip("\n")

    return call


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("models") / "target"
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(path, tokenizer=vocabulary, vocab_size=len(vocabulary))
    return path


@pytest.fixture(scope="session")
def draft(target: Path) -> Path:
    """A draft that agrees with the target on some tokens only."""
    path = target.parent / "draft"
    tiny.write_draft_of(target, path, noise=0.07)
    return path


@pytest.fixture
def broken_draft(draft: Path, tmp_path: Path) -> Path:
    """A checkpoint whose weights end too early."""
    for file in draft.iterdir():
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return tmp_path / "broken"
