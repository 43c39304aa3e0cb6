"""The build: its decisions, its errors, the limits on what each source file includes, and the extension's page allocator."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ssd
from ssd._check import torch_mismatch

ROOT = Path(__file__).resolve().parents[1]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ssd_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Another torch ---------------------------------------------------------------------------------------------------------------


def test_the_torch_built_against_is_accepted() -> None:
    assert torch_mismatch("2.13.0+cpu", "2.13.0+cpu", cuda=True) is None


def test_another_torch_is_refused_in_one_sentence_with_both_versions_and_the_cure() -> None:
    sentence = torch_mismatch("2.13.0+cpu", "2.14.1+cpu", cuda=False)
    assert sentence is not None
    assert "\n" not in sentence
    assert all(part in sentence for part in ("2.13.0+cpu", "2.14.1+cpu", "pip install --no-build-isolation"))


def test_only_cuda_code_requires_the_same_build_of_a_torch_release() -> None:
    assert torch_mismatch("2.13.0+cpu", "2.13.0+cu130", cuda=False) is None
    assert torch_mismatch("2.13.0+cu128", "2.13.0+cu130", cuda=True) is not None


def test_importing_under_another_torch_raises_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    with pytest.raises(ImportError, match=r"^ssd was built against torch .*, but torch 1\.0\.0 is installed; rebuild it with"):
        ssd._check.check_torch()


def test_building_against_too_old_a_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(SystemExit, match=r"^ssd needs torch 2\.11 or later; torch 2\.9\.1\+cu128 is installed\.$"):
        load_setup().import_torch()


# CUDA or not -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice, torch_cuda, nvcc_cuda, built",
    [
        ("", "13.0", "13.2", True),
        ("", None, "13.0", False),
        ("", "13.0", None, False),
        ("", "12.8", "13.0", False),
        ("0", "13.0", "13.0", False),
        ("1", "13.0", "13.0", True),
    ],
)
def test_cuda_kernels_are_built_if_torch_and_nvcc_allow_it(
    choice: str, torch_cuda: str | None, nvcc_cuda: str | None, built: bool
) -> None:
    reason = load_setup().why_no_cuda(choice, "2.13.0", torch_cuda, nvcc_cuda)
    assert (reason is None) is built


@pytest.mark.parametrize(
    "choice, torch_cuda, nvcc_cuda, reason",
    [
        ("1", None, "13.0", r"^SSD_CUDA=1, but torch 2\.13\.0\+cpu is a CPU build"),
        ("1", "13.0", None, "^SSD_CUDA=1, but there is no nvcc"),
        ("1", "12.8", "13.0", "^SSD_CUDA=1, but nvcc is of CUDA 13.0 and torch .* of CUDA 12.8"),
        ("yes", "13.0", "13.0", "^SSD_CUDA is 'yes'"),
    ],
)
def test_asking_for_cuda_without_the_means_to_build_it_is_refused_in_one_sentence(
    choice: str, torch_cuda: str | None, nvcc_cuda: str | None, reason: str
) -> None:
    with pytest.raises(SystemExit, match=reason) as refusal:
        load_setup().why_no_cuda(choice, "2.13.0+cpu", torch_cuda, nvcc_cuda)
    assert "\n" not in str(refusal.value)


def test_setup_and_cmake_have_the_same_default_architectures() -> None:
    stated = f'set(SSD_CUDA_ARCHS "{load_setup().CUDA_ARCHS}" CACHE STRING'
    assert stated in (ROOT / "cmake" / "kernels.cmake").read_text()


@needs_nvcc
def test_the_release_of_nvcc_is_read_from_its_output() -> None:
    setup = load_setup()
    assert re.fullmatch(r"\d+\.\d+", setup.nvcc_release(setup.find_nvcc()))


# The wall, and what needs nvcc alone -----------------------------------------------------------------------------------------


def test_no_kernel_file_includes_a_torch_header() -> None:
    files = [path for path in (ROOT / "csrc" / "cuda").rglob("*") if path.is_file()]
    assert files
    for path in files:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        assert not [name for name in included if re.match(r"(torch|ATen|c10|pybind11|Python)\b", name)], path
        assert "../checks.h" not in included, path


@needs_nvcc
def test_configuring_the_kernels_needs_neither_torch_nor_python(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        (tools / name).symlink_to(load_setup().find_program(name))
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    path = f"{tools}:{Path(nvcc).parent}:/usr/bin:/bin"
    command = [tools / "cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path / "build", "-DSSD_KERNELS_ONLY=ON"]
    subprocess.run(command, env={"PATH": path}, check=True, capture_output=True)
    variables = re.findall(r"^(\w+):", (tmp_path / "build" / "CMakeCache.txt").read_text(), re.MULTILINE)
    assert not [name for name in variables if re.match(r"(_?Python|pybind11|SSD_TORCH)", name)]


def test_the_oldest_cmake_is_named_alike_wherever_it_is_named() -> None:
    (oldest,) = re.findall(r"^cmake_minimum_required\(VERSION ([\d.]+)\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert f'"cmake>={oldest}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    "version, fetches", [("3.25.1", True), ("3.25.2", False), ("3.31.0", False), ("10.0", False), (None, True)]
)
def test_make_kernels_fetches_cmake_only_if_the_one_on_the_path_is_too_old(
    tmp_path: Path, version: str | None, fetches: bool
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "sed", "sort", "find", "printf", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    for name, says in (("cmake", f"cmake version {version}"), ("ninja", "1.11")):
        if version is not None:
            (tools / name).write_text(f"#!/bin/sh\necho '{says}'\n")
            (tools / name).chmod(0o755)
    command = [tools / "make", "--dry-run", "kernels", "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}"]
    plan = subprocess.run(command, cwd=ROOT, env={"PATH": str(tools)}, check=True, capture_output=True, text=True).stdout
    assert ('"cmake>=3.25.2" ninja' in plan) is fetches
    assert "-DSSD_KERNELS_ONLY=ON" in plan


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("flag,allowed", [("-O2", True), ("-ffast-math", False), ("-ffinite-math-only", False)])
def test_flags_that_lose_nan_do_not_compile(flag: str, allowed: bool) -> None:
    """With them, a comparison with NaN may come out either way."""
    header = ROOT / "csrc" / "common" / "distribution.h"
    command = ["c++", "-std=c++20", "-fsyntax-only", "-x", "c++", flag, str(header)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == allowed
    assert allowed or "NaN and infinity" in done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="needs objdump and x86-64")
def test_wide_registers_are_used_only_by_the_kernels_compiled_for_them() -> None:
    """Otherwise a wheel built here would not run on an older machine."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", ssd._C.__file__]
    functions = re.split(r"^\w+ (?=<)", subprocess.check_output(command, text=True), flags=re.MULTILINE)
    wide = [function.partition("\n")[0] for function in functions if re.search(r"%[yz]mm|%xmm(1[6-9]|[23]\d)", function)]
    assert wide, "no AVX2 or AVX-512 kernel at all"
    assert not [name for name in wide if not re.search(r"ssd::avx(2|vnni|512vnni|512bf16)::", name)]


# The public face --------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'decoder'"):
        ssd.decoder  # noqa: B018
