"""Every instruction set this machine has computes the same ops: the best by default, any lower one by SSD_CPU_ISA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.backend import only_on_the_cpu
from ssd.native import cpu_isa

pytestmark = only_on_the_cpu("instruction sets are the CPU's")

ISAS = ("portable", "avx2", "avx512bf16")  # each machine has those up to some point
CHOSEN = cpu_isa()
ROOT = Path(__file__).parents[2]


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, since the choice is made once; -P: the installed package, whatever the folder."""
    environment = {**os.environ, "SSD_CPU_ISA": isa}
    return subprocess.run([sys.executable, "-P", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_instruction_set_in_use_is_the_one_asked_for() -> None:
    assert cpu_isa() == (os.environ.get("SSD_CPU_ISA") or ISAS[ISAS.index(CHOSEN)])


@pytest.mark.parametrize("isa", ISAS[: ISAS.index(CHOSEN)])
def test_the_ops_hold_under_a_lower_instruction_set(isa: str) -> None:
    """The grids against the oracle and the invariances, again."""
    here = "tests/ops"
    run = python(
        isa, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        f"{here}/test_isa.py::{test_the_instruction_set_in_use_is_the_one_asked_for.__name__}",
        f"{here}/test_forward_ops.py", f"{here}/test_sampling_ops.py", f"{here}/test_speculation_ops.py", f"{here}/test_invariance.py",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_an_instruction_set_that_is_not_there_is_refused_with_a_sentence() -> None:
    run = python("abacus", "-c", "from ssd.native import cpu_isa; cpu_isa()")
    assert run.returncode != 0
    assert "SSD_CPU_ISA=abacus is not available here" in run.stderr
