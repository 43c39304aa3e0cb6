"""The ops give correct results with every instruction set of this machine: the best by default, a lower one with
SSD_CPU_ISA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.backend import only_on_the_cpu
from ssd.native import cpu_isa

pytestmark = only_on_the_cpu("instruction sets are the CPU's")

ISAS = ("portable", "avx2", "avxvnni", "avx512vnni", "avx512bf16")
CHOSEN = cpu_isa()
ROOT = Path(__file__).parents[2]


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a separate Python, because the choice is made once per process. -P: import the installed package, whatever the
    folder."""
    environment = {**os.environ, "SSD_CPU_ISA": isa}
    return subprocess.run([sys.executable, "-P", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_requested_instruction_set_is_used() -> None:
    assert cpu_isa() == os.environ.get("SSD_CPU_ISA", CHOSEN)


@pytest.mark.parametrize("isa", ISAS[: ISAS.index(CHOSEN)])
def test_the_op_tests_pass_with_a_lower_instruction_set(isa: str) -> None:
    """This runs the comparisons with the oracle and the invariance tests again."""
    if python(isa, "-c", "from ssd.native import cpu_isa; cpu_isa()").returncode:
        pytest.skip(f"this machine has no {isa}")
    here = "tests/ops"
    run = python(
        isa, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        f"{here}/test_isa.py::{test_the_requested_instruction_set_is_used.__name__}",
        f"{here}/test_forward_ops.py", f"{here}/test_sampling_ops.py", f"{here}/test_speculation_ops.py", f"{here}/test_invariance.py",
        f"{here}/test_bad_rows.py",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_a_missing_instruction_set_is_refused_in_one_sentence() -> None:
    run = python("abacus", "-c", "from ssd.native import cpu_isa; cpu_isa()")
    assert run.returncode != 0
    assert f"SSD_CPU_ISA=abacus is not available here; use one of {CHOSEN}" in run.stderr
