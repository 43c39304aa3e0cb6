"""Wheel and sdist, each installed into its own environment and used from outside the checkout. Slow: it compiles.

The environments import what this one has, and nothing may be downloaded (--no-index): so what the package asks for is also
what it was tested with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[1]
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-index", "--no-build-isolation"]
USE = """
from pathlib import Path
import sys, torch, ssd
from ssd import ops
assert Path(ssd.__file__).is_relative_to(sys.prefix), ssd.__file__
table = torch.arange(12.0).view(4, 3)
assert torch.equal(ops.embed(torch.tensor([2, 0], dtype=torch.int32), table), table[[2, 0]])
print("used", ssd.__version__)
"""


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def succeed(command: list[str | Path], cwd: Path) -> str:
    done = run(command, cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean_environment(folder: Path) -> Path:
    """A Python with an empty site-packages of its own, which falls back to the packages of this Python."""
    succeed([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    site = succeed([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    Path(site, "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return python


def install(python: Path, package: Path) -> None:
    succeed([sys.executable, *PIP, "--python", python, "install", *OFFLINE, package], package.parent)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    succeed([sys.executable, *PIP, "wheel", *OFFLINE, "--no-deps", "--wheel-dir", folder, ROOT], folder)
    (path,) = folder.glob("ssd_decode-*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    succeed([sys.executable, "-c", build, folder], ROOT)
    (path,) = folder.glob("ssd_decode-*.tar.gz")
    return path


def test_the_wheel_requires_exactly_the_torch_it_was_built_with(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked = [line for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist: torch")]
    assert asked == [f"Requires-Dist: torch=={metadata.version('torch').split('+')[0]}"]


def test_the_wheel_contains_its_licence_types_and_assets_but_no_source(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"ssd/py.typed", "ssd/_C.pyi", "ssd/_build_info.py"} <= set(names)
    for folder in ("ssd/models/assets/*", "ssd/server/page"):
        files = [str(file.relative_to(ROOT)) for file in ROOT.glob(f"{folder}/*")]
        assert files and set(files) <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("csrc", "tests", "build"))]


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "venv")
    install(python, wheel)
    assert succeed([python, "-c", USE], tmp_path).startswith("used ")


def test_the_sdist_works_in_a_clean_environment(sdist: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "venv")
    install(python, sdist)
    assert succeed([python, "-c", USE], tmp_path).startswith("used ")


def test_importing_under_another_torch_gives_a_one_sentence_error(wheel: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "venv")
    install(python, wheel)
    (info,) = (tmp_path / "venv").rglob("ssd/_build_info.py")
    info.write_text(info.read_text().replace("TORCH_VERSION = ", "TORCH_VERSION = '1.0.0' or "))
    failed = run([python, "-c", "from ssd import decode"], tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("ImportError: ssd was built against torch 1.0.0, but torch ")
