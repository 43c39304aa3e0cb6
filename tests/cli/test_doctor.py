"""`ssd doctor` says what is here and what is wrong, also where nothing else would run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ssd
from cli.cases import Run
from ssd.models import registry
from ssd.native import cpu_isa


def report(run: Run, status: int = 0) -> Any:
    result = run("doctor", "--json")
    assert (result.status, result.err) == (status, "")
    return json.loads(result.out)


def test_it_knows_the_versions_and_the_machine(run: Run) -> None:
    found = report(run)
    assert found["problem"] is None
    assert found["versions"]["ssd"] == ssd.__version__
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["machine"]["instruction_set"] == cpu_isa()
    assert found["machine"]["cores_usable"] >= 1
    assert found["built_with"]["cuda"] in (True, False)


def test_every_op_is_built_for_the_cpu(run: Run) -> None:
    ops = report(run)["ops"]
    assert "linear" in ops
    assert [name for name, kernels in ops.items() if not kernels["cpu"]] == []


def test_cuda_is_seen_or_the_reason_is_given(run: Run) -> None:
    cuda = report(run)["cuda"]
    assert bool(cuda["devices"]) != bool(cuda["why_not"])


def test_a_cuda_torch_without_a_driver_is_told_from_a_cpu_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build" in report(run)["cuda"]["why_not"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no NVIDIA driver" in report(run)["cuda"]["why_not"]


def test_a_model_that_is_not_here_comes_with_the_command_that_fetches_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "_installed", lambda model: None)
    monkeypatch.setenv("SSD_CACHE", str(tmp_path))
    assert report(run)["models"]["smollm2-135m"] == {"path": None, "get_it": "ssd pull smollm2-135m"}
    assert "`ssd pull smollm2-135m`" in run("doctor").out


def test_another_torch_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    found = report(run, status=1)
    assert "ssd was built against torch" in found["problem"]
    assert "torch 1.0.0 is installed" in found["problem"]
    assert found["ops"] == {}
    text = run("doctor")
    assert text.status == 1
    assert "ssd cannot run here: ssd was built against torch" in text.out


def test_an_extension_that_was_never_built_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssd._build_info", None)
    monkeypatch.delattr(ssd, "_build_info", raising=False)
    found = report(run, status=1)
    assert "has not been built" in found["problem"]
    assert found["built_with"] is None


def test_the_report_in_words(run: Run) -> None:
    result = run("doctor")
    assert result.status == 0
    for name in ("python", "torch", "instruction set", "CUDA", "ops on CPU", "model smollm2-135m", "nvtx"):
        assert name in result.out
    assert result.out.endswith("ssd can run here.\n")
