"""These tests' tensors are too small to share: one thread, unless a test asks for more (test_invariance.py holds 1 against 2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ops.cases import threads


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield
