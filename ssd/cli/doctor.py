"""`ssd doctor`: the state of this installation and this machine.

It also reports a missing torch, or one that ssd was not built against, so it loads the extension last.
"""

from __future__ import annotations

import contextlib
import os
import platform
import warnings
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import typer

from ssd import __version__
from ssd.bench.text import NOTHING
from ssd.cli import options as o
from ssd.cli.console import print_json
from ssd.errors import SsdError, one_line
from ssd.runtime.cores import cores
from ssd.runtime.memory import available_memory

PACKAGES = ("transformers", "tokenizers", "safetensors", "gguf", "numpy", "huggingface_hub", "nvtx")
CPU_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve",
)  # fmt: skip


def doctor(as_json: o.Json = False) -> None:
    """Show versions, the CPU's features, the GPUs, the built ops and the models that are here."""
    problem = _problem()
    report = {
        "problem": problem,
        "versions": _versions(),
        "built_with": _built_with(),
        "machine": _machine(problem is None),
        "cuda": _cuda(problem is None),
        "ops": _ops() if problem is None else {},
        "models": _models(),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if problem is not None:
        raise typer.Exit(1)


def _problem() -> str | None:
    """One sentence that says why the extension cannot be loaded, or None."""
    try:
        from ssd._check import check_torch

        check_torch()
        import_module("ssd._C")
    except (ImportError, OSError) as error:
        return " ".join(str(error).split())
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Any:
    """torch, or None if it cannot be imported."""
    try:
        return import_module("torch")
    except (ImportError, OSError):
        return None


def _versions() -> dict[str, str | None]:
    torch = _torch()
    running = str(torch.__version__) if torch is not None else None
    return {"ssd": __version__, "python": platform.python_version(), "torch": running} | {
        name: _version(name) for name in PACKAGES
    }


def _built_with() -> dict[str, Any] | None:
    """The torch and the CUDA architectures that the extension was built for; None if it was not built."""
    if util.find_spec("ssd._build_info") is None:
        return None
    info = import_module("ssd._build_info")
    return {"torch": info.TORCH_VERSION, "cuda": info.CUDA, "cuda_archs": list(info.CUDA_ARCHS)}


def _machine(extension: bool) -> dict[str, Any]:
    torch = _torch()
    cpuinfo = _read(Path("/proc/cpuinfo"))
    fields = dict(reversed([(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in cpuinfo.splitlines())]))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    page = _sysconf("SC_PAGE_SIZE") or 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": fields.get("model name") or platform.processor() or None,
        "features": [feature for feature in CPU_FEATURES if feature in flags],
        "instruction_set": import_module("ssd._C").cpu_isa() if extension else None,
        "cores": os.cpu_count(),
        "cores_usable": cores(),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "memory_gib": round((_sysconf("SC_PHYS_PAGES") or 0) * page / 2**30, 1) or None,
        "memory_available_gib": round(available_memory() / 2**30, 1),
    }


def _sysconf(name: str) -> int | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system knows every name
        return os.sysconf(name)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cuda(usable: bool) -> dict[str, Any]:
    """The GPUs that torch sees, or the reason that it sees none. usable: the extension can be loaded."""
    torch = _torch()
    driver = next(iter(_read(Path("/proc/driver/nvidia/version")).splitlines()), None)
    devices: list[str] = []
    reason = None
    if torch is None:
        reason = "torch cannot be imported"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a CPU build"
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if not devices:
            reason = one_line(Exception(caught[0].message)) if caught else "there is no NVIDIA driver or no GPU"
    return {
        "devices": devices,
        "why_not": reason,
        "driver": driver,
        "conditional_nodes": usable and bool(import_module("ssd.native").has_conditional_nodes()),
        "overlapping_launches": _launches_overlap() if usable and devices else None,
        "torch_cuda": torch.version.cuda if torch is not None else None,
    }


def _launches_overlap() -> bool | None:
    """Whether a kernel may start while the kernel ahead of it still runs; None where the extension was not built for CUDA."""
    extension = import_module("ssd._C")
    return bool(extension.launches_overlap()) if hasattr(extension, "launches_overlap") else None


def _ops() -> dict[str, dict[str, bool]]:
    """For every op, whether the dispatcher has a kernel for each back end."""
    torch = import_module("torch")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd::"))
    return {name.removeprefix("ssd::"): {"cpu": has(name, "CPU"), "cuda": has(name, "CUDA")} for name in names}


def _models() -> dict[str, dict[str, str | None]]:
    from ssd.models import registry

    found: dict[str, dict[str, str | None]] = {}
    for name in registry.KNOWN:
        try:
            found[name] = {"path": str(registry.resolve(name)), "get_it": None}
        except SsdError:
            found[name] = {"path": None, "get_it": f"ssd pull {name}"}
    return found


# In words ---------------------------------------------------------------------------------------------------------------------


def _add(name: str, value: Any) -> None:
    print(f"{name:<20}{NOTHING if value is None else value}")


def _print(report: dict[str, Any]) -> None:
    versions, built, machine, cuda = (report[key] for key in ("versions", "built_with", "machine", "cuda"))

    _add("ssd", versions["ssd"])
    _add("python", versions["python"])
    compiled = "has not been built" if built is None else f"was built against torch {built['torch']}"
    _add("torch", f"{versions['torch'] or 'cannot be imported'}; the extension {compiled}")
    for package in PACKAGES:
        absent = "not installed; only profiling needs it" if package == "nvtx" else "not installed"
        _add(package, versions[package] or absent)
    _add("system", f"{machine['system']}, {machine['cpu'] or 'unknown CPU'}")
    _add("CPU features", " ".join(machine["features"]) or None)
    _add("instruction set", f"{machine['instruction_set']}, for the CPU ops" if machine["instruction_set"] else None)
    _add("cores", f"{machine['cores_usable']} usable of {machine['cores']}; torch would use {machine['torch_threads']} threads")
    _add(
        "memory",
        f"{machine['memory_available_gib']} GiB available of {machine['memory_gib']}" if machine["memory_gib"] else None,
    )
    _add("CUDA", ", ".join(cuda["devices"]) or f"not seen: {cuda['why_not']}")
    if cuda["driver"]:
        _add("CUDA driver", cuda["driver"])
    if built is not None:
        kernels = f"built for {', '.join(built['cuda_archs'])}" if built["cuda"] else "not built into this extension"
        _add("CUDA kernels", kernels)
    if cuda["devices"]:
        _add("rounds on CUDA", "as graphs" if cuda["conditional_nodes"] else "eager: graphs with conditions need CUDA 12.4")
    if cuda["overlapping_launches"] is not None:
        why_not = "no: SSD_PDL=0 is set, or the kernels were not compiled for this GPU's architecture"
        _add("launches overlap", "yes" if cuda["overlapping_launches"] else why_not)
    if report["ops"]:
        for backend, name in (("cpu", "CPU"), ("cuda", "CUDA")):
            here = [op for op, kernels in report["ops"].items() if kernels[backend]]
            _add(f"ops on {name}", f"{len(here)} of {len(report['ops'])}: {' '.join(here)}" if here else "none")
        neither = [op for op, kernels in report["ops"].items() if not any(kernels.values())]
        if neither:
            _add("declared only", " ".join(neither))
    for model, place in report["models"].items():
        _add(f"model {model}", place["path"] or f"not here; fetch it with `{place['get_it']}`")

    print(f"\nssd cannot run here: {report['problem']}" if report["problem"] else "\nssd can run here.")
