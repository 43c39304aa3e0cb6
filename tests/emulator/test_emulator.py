"""The emulator finds mistakes: each kernel of mistakes.cpp is right without its planted mistake, and is found wrong with it."""

from __future__ import annotations

import subprocess

import pytest

from ops import backend

MISTAKES = backend.EMULATOR.with_name("ssd_emulator_mistakes")
ORDERS = ("forward", "reversed", "shuffled")

# Errors of the emulator. Every other mistake gives a wrong result.
ERRORS = {
    "barrier_left_out": "waits for ever at __syncthreads, 1 of 64 threads have ended",
    "lane_left_out": "waits for ever at __shfl_xor_sync",
    "two_functions": "while other lanes of its warp are at",
    "part_of_a_warp": "calls __shfl_sync with a mask that leaves lanes out",
    "never_waited": "ends with a cp.async that it never waited for",
    "misaligned": "starts a cp.async between addresses that are not multiples of 16",
    "beyond_shared": "touches memory that is not its own",
}
NEEDS_ANOTHER_ORDER = {"last_arriver"}  # a right result if blocks arrive in order


def run(*arguments: str) -> str:
    return subprocess.run([MISTAKES, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def kernels() -> list[str]:
    return run("list").split() if MISTAKES.exists() else []


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("order", ORDERS)
def test_a_kernel_without_a_mistake_is_right(kernel: str, order: str) -> None:
    assert run(kernel, order) == "right"


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("order", ORDERS)
def test_a_mistake_is_found(kernel: str, order: str) -> None:
    if kernel in NEEDS_ANOTHER_ORDER and order == "forward":
        assert run(kernel, order, "planted") == "right"
    elif kernel in ERRORS:
        assert ERRORS[kernel] in run(kernel, order, "planted")
    else:
        assert run(kernel, order, "planted") == "wrong"
