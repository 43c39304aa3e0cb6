"""`ssd serve` refuses in one sentence whatever keeps it from serving; tests/server has the server itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.cases import Refusal

WITHOUT = "import sys; sys.modules[{package!r}] = None; from ssd.cli.main import main; sys.exit(main({arguments!r}))"


def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot import this package."""
    code = WITHOUT.format(package=package, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    for known in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(known)
    done = run_without(package, "serve", "smollm2-135m")
    assert done.returncode == 1
    assert done.stderr == f"ssd: `ssd serve` needs {package}, which is not installed; pip install 'ssd-decode[server]'.\n"


def test_the_other_commands_and_the_async_engine_need_no_extra() -> None:
    """h11 is left in, because huggingface_hub needs it too."""
    missing = ["fastapi", "starlette", "uvicorn", "prometheus_client"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import ssd; assert ssd.AsyncEngine"
    code += "; from ssd.cli.main import main; sys.exit(main(['serve', '--help']) or main(['decode', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_two_targets_are_refused(refusal: Refusal) -> None:
    assert refusal("serve", "one", "--target", "other", status=2) == "give TARGET or --target, one of the two."


def test_an_option_out_of_range_is_refused(refusal: Refusal) -> None:
    assert refusal("serve", "--port", "70000") == "port is 70000; it must be a whole number from 0 to 65535."
    assert refusal("serve", "--deadline", "0") == "deadline is 0.0; it must be a number from 0.001 to 1000000.0."


def test_a_port_in_use_is_refused_before_the_model_is_loaded(refusal: Refusal) -> None:
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("serve", "no-such-model", "--port", port)
    assert said.startswith(f"the server cannot listen at 127.0.0.1:{port} (")


def test_a_key_that_cannot_be_read_is_refused_before_the_model_is_loaded(refusal: Refusal, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    said = refusal("serve", "no-such-model", "--port", 0, "--api-key-file", tmp_path / "missing")
    assert said.startswith("the API key cannot be read from ")


def test_a_model_that_does_not_exist_is_refused(refusal: Refusal) -> None:
    pytest.importorskip("fastapi")
    assert "no-such-model" in refusal("serve", "./no-such-model", "--port", 0)
