"""These tests' tensors are too small to share: one thread, unless a test asks for more (test_invariance.py holds 1 against 2).

Nothing of ops/ may be imported before pytest has chosen the back end, which happens after the first conftest files.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    from ops.cases import threads

    with threads(1):
        yield


@pytest.fixture(autouse=True)
def _emulator(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the emulator, choose the test's order of threads, and check that nothing was written outside a tensor."""
    from ops import backend

    if backend.chosen.name != "emulator":
        yield
        return
    backend.set_up_emulator(request.node.nodeid)
    yield
    import torch

    assert torch.ops.ssd_emulator.damaged_tensors() == 0, "a kernel wrote beside a tensor"
