"""Tests that need a GPU. They run with --backend gpu, as in `make gpu-check`; otherwise each is skipped with the reason."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from ops.backend import chosen, why_no_gpu

    if chosen.name == "gpu":
        return
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.skip(reason=why_no_gpu() or "is run with --backend gpu"))
