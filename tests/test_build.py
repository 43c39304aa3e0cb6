"""The build: its decisions, its errors, the limits on what each source file includes, and the extension's page allocator."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ssd
from ssd._check import torch_mismatch
from ssd.native import PageAllocator

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


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="needs objdump and x86-64")
def test_wide_registers_are_used_only_by_the_kernels_compiled_for_them() -> None:
    """Otherwise a wheel built here would not run on an older machine."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", ssd._C.__file__]
    functions = re.split(r"^\w+ (?=<)", subprocess.check_output(command, text=True), flags=re.MULTILINE)
    wide = [function.partition("\n")[0] for function in functions if re.search(r"%[yz]mm|%xmm(1[6-9]|[23]\d)", function)]
    assert wide, "no AVX2 or AVX-512 kernel at all"
    assert not [name for name in wide if not re.search(r"ssd::avx(2|512bf16)::", name)]


# The page allocator ----------------------------------------------------------------------------------------------------------


class Pages(RuleBasedStateMachine):
    """Any sequence of allocations and frees, compared with a set."""

    CAPACITY = 12

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(self.CAPACITY + 1)
        self.held: list[int] = []

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.allocator.available))
        pages = self.allocator.allocate(count)
        assert pages.dtype == np.int32
        assert pages.shape == (count,)
        assert all(1 <= page <= self.CAPACITY for page in pages), "the null page, or none of ours"
        assert not set(pages.tolist()) & set(self.held), "one page for two owners"
        assert len(set(pages.tolist())) == count
        self.held += pages.tolist()

    @rule(extra=st.integers(1, 5))
    def ask_for_too_many(self, extra: int) -> None:
        with pytest.raises(RuntimeError, match="^No pages left: "):
            self.allocator.allocate(self.allocator.available + extra)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        freed = data.draw(st.lists(st.sampled_from(self.held), unique=True))
        self.allocator.free(np.array(freed, np.int32))
        self.held = [page for page in self.held if page not in freed]

    @precondition(lambda self: self.held)
    @rule(page=st.sampled_from([-1, 0, CAPACITY + 1, 2**31 - 1]))
    def free_a_foreign_page(self, page: int) -> None:
        with pytest.raises(ValueError, match=f"^Page {page} is not a page of this allocator"):
            self.allocator.free(np.array([self.held[0], page], np.int32))

    @precondition(lambda self: self.held)
    @rule()
    def free_a_page_twice(self) -> None:
        page = self.held[0]
        with pytest.raises(ValueError, match=f"^Page {page} is already free"):
            self.allocator.free(np.array([page, page], np.int32))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.allocator.capacity == self.CAPACITY
        assert self.allocator.available + len(self.held) == self.CAPACITY


TestPageAllocator = Pages.TestCase


def test_a_fresh_allocator_hands_out_the_lowest_pages_first() -> None:
    assert PageAllocator(6).allocate(3).tolist() == [1, 2, 3]


def test_a_page_freed_twice_in_two_calls_is_detected() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(ValueError, match="^Page 1 is already free"):
        allocator.free(pages)


def test_an_allocator_without_room_for_the_null_page_is_refused() -> None:
    with pytest.raises(ValueError, match="^num_pages is 0"):
        PageAllocator(0)


# The public face --------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'decoder'"):
        ssd.decoder  # noqa: B018
