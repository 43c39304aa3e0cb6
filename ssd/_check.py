"""The check before the extension is loaded: it was built, and for the torch that is running.

An extension compiled for another torch crashes or, worse, computes something else; one sentence is better.
"""

from __future__ import annotations

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def torch_mismatch(built: str, running: str, cuda: bool) -> str | None:
    """The error message for an extension that was built against torch `built` and cannot run under `running`, else None.

    CPU and CUDA builds of one torch release have the same CPU interface, so their local parts ("+cpu", "+cu130") are compared
    only if the extension has CUDA code.
    """
    same = built == running if cuda else built.split("+")[0] == running.split("+")[0]
    if same:
        return None
    return f"ssd was built against torch {built}, but torch {running} is installed; rebuild it with `{REBUILD}` in its source folder."


def check_torch() -> None:
    """Raises ImportError if `ssd._C` is missing or was built against another torch."""
    import torch

    try:
        from ssd import _build_info
    except ImportError:
        raise ImportError(f"ssd has not been built here; run `{REBUILD}` in its source folder.") from None
    if sentence := torch_mismatch(_build_info.TORCH_VERSION, str(torch.__version__), _build_info.CUDA):
        raise ImportError(sentence)
