"""The example of README.md runs as it is written, and the files that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssd.errors import SsdError
from ssd.models import registry

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    try:
        registry.resolve("smollm2-135m")
    except SsdError as reason:
        pytest.skip(str(reason))
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_file_it_names_exists() -> None:
    named = set(re.findall(r"`((?:\w[\w.-]*/)+[\w.-]*)`|\]\(((?:\w[\w.-]*/)*[\w.-]+)\)", README))
    paths = [first or second for first, second in named]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
