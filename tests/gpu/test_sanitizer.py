"""compute-sanitizer checks every op on small shapes, and a short decode, for accesses outside a tensor and races on shared
memory.

For the ops, each tensor has its own allocation, so that the sanitizer knows where it ends. Graphs need torch's allocator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZER = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")

pytestmark = pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not here; it comes with the CUDA toolkit")


@pytest.mark.parametrize("script", ["every_op.py", "short_decode.py"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str, script: str) -> None:
    paths = [str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if script == "every_op.py":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kns=ssd", sys.executable]
    done = subprocess.run([*command, HERE / script], env=environment, capture_output=True, text=True, check=False, timeout=300)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this device, or this sandbox around it")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "all of it was run" in done.stdout
