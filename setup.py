"""Builds `ssd._C` with CMake and Ninja, and records the torch and the architectures of the build in `ssd/_build_info.py`.

Environment: with SSD_CUDA=1 the CUDA kernels are built, or the build fails and says why. With SSD_CUDA=0 they are left out.
Without it they are built if nvcc and a CUDA build of torch are found. SSD_CUDA_ARCHS="80;90a-real" chooses their architectures.
With SSD_WERROR=1 a compiler warning is an error. SSD_SANITIZE=address or thread builds with these sanitizers.
pyproject.toml has everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
CUDA_ARCHS = "80;90a-real"  # sm_80, with its PTX for later chips, and sm_90a

DEPENDENCIES = [
    "gguf>=0.17",
    "huggingface_hub",
    "jinja2",
    "numpy>=2",
    "prompt-toolkit",
    "rich",
    "safetensors",
    "tokenizers",
    "transformers>=5",
    "typer",
]


def find_program(name: str) -> str | None:
    """The path of cmake or ninja: from its PyPI package, which is a build requirement, else from PATH."""
    try:
        package = import_module(name)
    except ImportError:
        return shutil.which(name)
    folder = getattr(package, "CMAKE_BIN_DIR", None) or getattr(package, "BIN_DIR", None)
    return shutil.which(name, path=folder) or shutil.which(name)


def find_nvcc() -> str | None:
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        if value := os.environ.get(variable):
            return shutil.which(value if variable == "CUDACXX" else str(Path(value, "bin", "nvcc")))
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def nvcc_release(nvcc: str | None) -> str | None:
    """The CUDA release of nvcc, such as "13.0"; None without nvcc."""
    if nvcc is None:
        return None
    words = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return words.partition("release ")[2].partition(",")[0]


def why_no_cuda(choice: str, torch_version: str, torch_cuda: str | None, nvcc_cuda: str | None) -> str | None:
    """The reason why the CUDA kernels are left out, or None if they are built.

    choice: SSD_CUDA, which is "1", "0", or "" to build them if that is possible. torch_cuda, nvcc_cuda: the CUDA releases of
    torch and of nvcc. Raises SystemExit with one sentence if choice is "1" and the kernels cannot be built.
    """
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SSD_CUDA is {choice!r}; it can be 1 (build the CUDA kernels), 0 (do not) or unset.")
    reason = None
    if torch_cuda is None:
        reason = f"torch {torch_version} is a CPU build; install a CUDA build of torch first"
    elif nvcc_cuda is None:
        reason = "there is no nvcc; install the CUDA toolkit or set CUDA_HOME to its folder"
    elif nvcc_cuda.split(".")[0] != torch_cuda.split(".")[0]:
        reason = f"nvcc is of CUDA {nvcc_cuda} and torch {torch_version} of CUDA {torch_cuda}; set CUDA_HOME to another toolkit"
    if choice == "1" and reason:
        raise SystemExit(f"SSD_CUDA=1, but {reason}.")
    return "SSD_CUDA=0 was set" if choice == "0" else reason


class CMakeBuild(build_ext):
    """Builds the CMake target `_C` and copies it to the path that setuptools expects."""

    def build_extension(self, ext: Extension) -> None:
        torch = import_torch()
        nvcc = find_nvcc()
        no_cuda = why_no_cuda(os.environ.get("SSD_CUDA", ""), torch.__version__, torch.version.cuda, nvcc_release(nvcc))
        archs = os.environ.get("SSD_CUDA_ARCHS") or CUDA_ARCHS
        cmake, ninja = find_program("cmake"), find_program("ninja")
        if cmake is None or ninja is None:
            raise SystemExit("The build needs cmake and ninja; `pip install cmake ninja` has both.")

        # Not setuptools' build_temp, which is a new folder for every editable install. This folder makes rebuilds cheap.
        sanitize = os.environ.get("SSD_SANITIZE", "")
        folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}{sanitize and '-' + sanitize}"
        configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(folder)]
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "SSD_TORCH_DIR": str(Path(torch.__file__).parent),
            "SSD_CUDA": "OFF" if no_cuda else "ON",
            "SSD_SANITIZE": sanitize,
            "SSD_WERROR": "ON" if os.environ.get("SSD_WERROR") == "1" else "OFF",
        }
        if not no_cuda:
            options |= {"CMAKE_CUDA_COMPILER": nvcc, "SSD_CUDA_ARCHS": archs}
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        self.call([*configure, *(f"-D{name}={value}" for name, value in options.items())])
        self.call([cmake, "--build", str(folder), "--target", "_C", "--parallel", jobs])

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / target.name), str(target))
        self.build_info = write_build_info(target.parent, torch.__version__, no_cuda, archs)

    def copy_extensions_to_source(self) -> None:  # --inplace and editable installs
        super().copy_extensions_to_source()
        self.copy_file(str(self.build_info), str(ROOT / "ssd"))

    def call(self, command: list[str]) -> None:
        self.announce(" ".join(command), level=2)
        if code := subprocess.call(command):
            raise SystemExit(f"Building ssd._C failed: {Path(command[0]).name} ended with {code}; its output is above.")


def write_build_info(folder: Path, torch_version: str, no_cuda: str | None, archs: str) -> Path:
    path = folder / "_build_info.py"
    lines = [
        '"""The torch and the CUDA architectures that this installation was built with. Written by setup.py."""\n',
        f"TORCH_VERSION = {str(torch_version)!r}",
        f"CUDA = {no_cuda is None}",
        f"CUDA_ARCHS = {tuple(archs.split(';')) if no_cuda is None else ()}",
        f"WHY_NO_CUDA = {no_cuda!r}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def import_torch():  # type: ignore[no-untyped-def]
    try:
        import torch
    except ImportError:
        raise SystemExit("ssd is built against an installed torch, and none can be imported; install torch first.") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise SystemExit(
            f"ssd needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or later; torch {torch.__version__} is installed."
        )
    return torch


if __name__ == "__main__":
    # The extension works only with the torch that it was compiled against, so the wheel requires exactly that release.
    torch_release = import_torch().__version__.split("+")[0]
    setup(
        ext_modules=[Extension("ssd._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
        install_requires=[f"torch=={torch_release}", *DEPENDENCIES],
    )
