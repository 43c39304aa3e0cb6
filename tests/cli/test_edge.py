"""A user's mistake gets one sentence on stderr and an exit status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ssd
from cli.cases import Refusal, Run
from ssd.cli import console, doctor

SSD = [sys.executable, "-c", "from ssd.cli.main import main; raise SystemExit(main())"]


def test_the_version(run: Run) -> None:
    result = run("--version")
    assert (result.status, result.out) == (0, f"ssd {ssd.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.status == 0
    assert all(command in result.out for command in ("decode", "demo", "pull", "doctor"))


@pytest.mark.parametrize("command", ["decode", "demo", "pull", "doctor"])
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.status == 0
    assert "Usage: ssd" in result.out


def test_help_does_not_wait_for_the_engine() -> None:
    code = "import sys; from ssd.cli.main import main; main(['--help']); print({'ssd.engine', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["decode", "--bogus"],
        ["decode", "one", "two"],
        ["decode", "hi", "--temperature", "warm"],
        ["decode", "hi", "--lookahead", "2.5"],
        ["decode", "hi", "--saguaro-c", "half"],
        ["decode", "hi", "--saguaro-f", "2.5"],
        ["decode", "hi", "--max-new-tokens"],
        ["decode"],
        ["decode", "hi", "--prompts", "file.jsonl"],
        ["demo", "-n", "many"],
        ["pull"],
        ["doctor", "patient"],
    ],
    ids=" ".join,
)
def test_arguments_that_are_not_understood_are_refused_with_status_2(refusal: Refusal, arguments: list[str]) -> None:
    assert refusal(*arguments, status=2)


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--mode fast", "mode is 'fast'"),
        ("--mode sd", "needs a draft"),
        ("--mode ssd --draft none", "needs a draft"),
        ("--draft self:0 --mode sd", "'self:1' to 'self:3'"),
        ("--draft ngram --mode ssd", "draft='ngram'"),
        ("--lookahead 0", "lookahead is 0"),
        ("--lookahead 64", "lookahead is 64"),
        ("--budget 0", "budget is 0"),
        ("--budget 1000", "budget is 1000"),
        ("--fan-out wide", "fan_out is 'wide'"),
        ("--fan-out 4,x", "--fan-out is '4,x'"),
        ("--fan-out 4,4", "5 numbers"),
        ("--fallback none", "fallback is 'none'"),
        ("--saguaro-c 0", "saguaro_c is 0"),
        ("--saguaro-c 1.1", "saguaro_c is 1.1"),
        ("--saguaro-c nan", "saguaro_c is nan"),
        ("--saguaro-f 0", "saguaro_f is 0"),
        ("--tree wide", "--tree is 'wide'"),
        ("--tree 2,x", "--tree is '2,x'"),
        ("--tree 2,", "--tree is '2,'"),
        ("--tree 2,0", "tree is (2, 0)"),
        ("--tree 4,4,4", "85 nodes"),
        ("--tree 2,2", "tree needs a draft"),
        ("--tree 2,2 --draft self:1 --mode ar", "mode='ar'"),
        ("--tree 2,2 --draft self:1 --mode ssd", "mode='ssd'"),
        ("--tree 2,2 --draft ngram", "draft='ngram'"),
        ("--dtype float16", "dtype is 'float16'"),
        ("--threads 0", "threads is 0"),
        ("--draft-threads -1", "draft_threads is -1"),
        ("--max-batch 0", "max_batch is 0"),
        ("--max-context 1", "max_context is 1"),
        ("--max-context 100000", "was trained for 512 tokens"),
        ("--pace fast", "--pace is 'fast'"),
        ("--pace 200", "--pace is '200'"),
        ("--pace 200,24,1", "--pace is '200,24,1'"),
        ("--pace nan,1", "pace is nan"),
        ("--pace 1,-1", "pace is -1"),
        ("--seed 9223372036854775808", "seed is 9223372036854775808"),
        ("--temperature -1", "temperature is -1"),
        ("--temperature nan", "temperature is nan"),
        ("--top-k -1", "top_k is -1"),
        ("--top-p 0", "top_p is 0"),
        ("--top-p 1.5", "top_p is 1.5"),
        ("--min-p 2", "min_p is 2"),
        ("--max-new-tokens 0", "max_new_tokens is 0"),
        ("--max-new-tokens 511", "over the context of 512"),
        ("--max-context 2", "leave no room in the context of 2"),
        ("--logprobs -1", "logprobs is -1"),
        ("--stop=", "stop is"),
        ("--stop \udc80", "not valid Unicode"),
        ("--trace no/such/folder/trace.json", "the trace cannot be written"),
        ("--trace .", "the trace cannot be written"),
    ],
)
def test_a_wrong_value_is_refused_with_its_reason(refusal: Refusal, target: Path, options: str, reason: str) -> None:
    assert reason in refusal("decode", "hi", "--target", target, *options.split(" "))


@pytest.mark.parametrize("role", ["--target", "--draft"])
@pytest.mark.parametrize("name", ["no-such-model", "missing.gguf"])
def test_a_model_that_is_not_there_is_refused(refusal: Refusal, target: Path, role: str, name: str) -> None:
    models = ["--target", target, "--draft", "self:1", role, name]
    assert f"there is no model '{name}'" in refusal("decode", "hi", "--mode", "sd", *models)


def test_a_target_that_is_no_model_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    assert "config.json" in refusal("decode", "hi", "--target", tmp_path)


@pytest.mark.parametrize("options", ["--draft none", "--lookahead 0", "--pace 1,x", "--pace 1,-1", "-n 0", "--trace no/such/t"])
def test_demo_refuses_wrong_options_before_it_runs(refusal: Refusal, target: Path, options: str) -> None:
    assert refusal("demo", "hi", "--json", "--target", target, "--draft", "self:1", *options.split())


def test_demo_of_a_target_without_a_draft_of_its_own_asks_for_one(refusal: Refusal, target: Path) -> None:
    assert "needs a draft" in refusal("demo", "hi", "--target", target)


def test_a_prompt_that_is_not_text_is_refused(refusal: Refusal, target: Path) -> None:
    assert "the prompt is not valid Unicode" in refusal("decode", "\udcff", "--target", target)
    assert "the prompt is not valid Unicode" in refusal("demo", "\udcff", "--target", target, "--draft", "self:1")
    assert "stdin is not valid Unicode" in refusal("decode", "-", "--target", target, stdin=b"\xff")


@pytest.mark.parametrize("stdin", ["", "\n"])
def test_an_empty_prompt_is_refused(refusal: Refusal, target: Path, stdin: str) -> None:
    assert "the prompt is empty" in refusal("decode", "-", "--target", target, stdin=stdin)


def test_an_interrupt_is_reported_with_the_shell_s_status(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "_problem", interrupted)
    assert refusal("doctor", status=130) == "interrupted."


@pytest.mark.parametrize(
    "error, reason",
    [
        (MemoryError(), "memory is full"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ImportError("no"), "no"),
    ],
)
def test_an_error_of_the_machine_is_one_sentence(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "_problem", fail)
    assert reason in refusal("doctor")


def test_a_reader_that_goes_away_gives_one_sentence() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run([*SSD, "doctor"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "ssd: the output was closed before it was complete.\n"


def test_json_has_null_for_infinity_and_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [float("-inf"), 1.5], "b": (float("nan"),)})
    assert capsys.readouterr().out == '{"a": [null, 1.5], "b": [null]}\n'
