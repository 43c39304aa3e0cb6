"""`ssd decode`: text that pipes, JSON that parses, prompts from an argument, stdin or a file, and a timeline."""

from __future__ import annotations

import json
import re
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.cases import Refusal, Result, Run
from ssd.cli import decode as module
from ssd.cli.decode import decode as command
from ssd.errors import SsdError
from ssd.models import registry
from ssd.options import SpeculationOptions


@pytest.fixture
def decode(run: Run, target: Path, draft: Path) -> Run:
    """Runs `ssd decode` on the tiny models; it must succeed and print nothing on stderr."""

    def call(*arguments: object, stdin: str = "") -> Result:
        models = ["--target", target, "--draft", draft, "--threads", 1, "--dtype", "float32"]
        result = run("decode", *arguments, "--max-new-tokens", 12, *models, stdin=stdin)
        assert (result.status, result.err) == (0, ""), result
        return result

    return call


@pytest.fixture
def objects(decode: Run) -> Any:
    """The JSON objects of such a run."""

    def call(*arguments: object, stdin: str = "") -> list[dict[str, Any]]:
        return [json.loads(line) for line in decode(*arguments, "--json", stdin=stdin).out.splitlines()]

    return call


def test_json_has_the_whole_completion(objects: Any) -> None:
    (found,) = objects("the rain", "--mode", "ssd", "--logprobs", 2)
    assert found.keys() == {"text", "token_ids", "finish_reason", "error", "logprobs", "degraded", "stats"}
    assert found["stats"]["mode"] == "ssd"
    assert found["degraded"] is False
    assert len(found["logprobs"]) == len(found["token_ids"])
    for token, logprobs in zip(found["token_ids"], found["logprobs"], strict=True):
        assert str(token) in logprobs
        assert len(logprobs) in (2, 3)


def test_stdout_is_the_text_and_nothing_else(decode: Run, objects: Any) -> None:
    (found,) = objects("the rain")
    assert decode("the rain").out == found["text"] + "\n"


def test_a_terminal_sees_the_loading_on_stderr_only(
    decode: Run, run: Run, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = decode("the rain").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("decode", "the rain", "-n", 12, "--target", target, "--threads", 1, "--dtype", "float32")
    assert (result.status, result.out) == (0, text)
    assert "Loading" in result.err


def test_the_modes_give_the_same_text(decode: Run) -> None:
    assert len({decode("the rain", "--mode", mode).out for mode in ("ar", "sd", "ssd")}) == 1


def test_a_dash_reads_the_prompt_from_stdin(decode: Run) -> None:
    assert decode("-", stdin="the rain\n").out == decode("the rain").out


def test_raw_leaves_the_chat_template_out(objects: Any) -> None:
    chat, raw, template = objects("hi"), objects("hi", "--raw"), objects("<|user|>hi<|end|><|assistant|>", "--raw")
    assert raw[0]["token_ids"] != chat[0]["token_ids"] == template[0]["token_ids"]


def test_a_seed_decides_the_sampled_text(decode: Run) -> None:
    first, again, other = (decode("hi", "--temperature", 1, "--seed", seed).out for seed in (1, 1, 2))
    assert first == again != other


def test_sampling_options_reach_the_engine(objects: Any) -> None:
    greedy = objects("hi")[0]["token_ids"]
    assert objects("hi", "-t", 2, "--seed", 3)[0]["token_ids"] != greedy
    for narrow in (["--top-k", 1], ["--top-p", 0.0001], ["--min-p", 1]):
        assert objects("hi", "-t", 2, "--seed", 3, *narrow)[0]["token_ids"] == greedy


def test_a_long_prompt_needs_no_max_new_tokens(run: Run, target: Path) -> None:
    """Its 412 tokens and 256 more are over the context of 512; it gets the 100 that fit."""
    options = ["--target", target, "--threads", 1, "--dtype", "float32", "--raw", "--ignore-eos", "--json"]
    result = run("decode", "x" * 412, *options)
    assert (result.status, result.err) == (0, "")
    assert len(json.loads(result.out)["token_ids"]) == 100


def test_stop_strings_end_the_text(objects: Any) -> None:
    (whole,) = objects("the rain", "--ignore-eos")
    stop = whole["text"][3:5]
    (found,) = objects("the rain", "--ignore-eos", "--stop", "never spelt", "--stop", stop)
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole["text"].split(stop)[0]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A target whose logits are NaN once a z is in the text."""
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(tmp_path / "broken", tokenizer=vocabulary, vocab_size=len(vocabulary))
    tiny.spoil_token(tmp_path / "broken", vocabulary.index("z"))
    return tmp_path / "broken"


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_prompt_that_the_target_cannot_finish_is_reported_after_the_output(
    run: Run, broken: Path, tmp_path: Path, as_json: list[str]
) -> None:
    """One prompt of a file gives NaN; the others are decoded and printed."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("rain", "a zoo", "sun")))
    options = ["--mode", "ar", "--target", broken, "--threads", 1, "--dtype", "float32", "-n", 4, *as_json]
    result = run("decode", "--prompts", file, *options)
    assert result.status == 1
    assert result.err.startswith("ssd: prompt 1 of 3: the target's logits for output token 1 ")
    if as_json:
        found = [json.loads(line) for line in result.out.splitlines()]
        assert [each["finish_reason"] for each in found] == ["length", "error", "length"]
        assert [each["error"] is None for each in found] == [True, False, True]
    one = run("decode", "a zoo", *options)
    assert one.status == 1 and one.err.startswith("ssd: the target's logits for output token 1 ")


@pytest.mark.parametrize("fan_out", ["measured", "geometric", "uniform", "2,2,0,0,4"])
@pytest.mark.parametrize("fallback", ["neural", "ngram", "auto"])
def test_speculation_options_reach_the_engine(objects: Any, fan_out: str, fallback: str) -> None:
    speculation = ["-k", 4, "-b", 8, "--fan-out", fan_out, "--fallback", fallback, "--draft-threads", 1]
    (found,) = objects("the rain", "--mode", "ssd", *speculation, "--pace", "2,0.1")
    assert found["degraded"] is False
    assert found["stats"]["t_verify_ms"] >= 2
    hits = sum(hits for hits, _ in found["stats"]["hits_per_k"].values())
    assert found["stats"]["branches_unused"] == 8 * found["stats"]["rounds"] - hits


def test_every_speculation_option_has_the_engine_s_default() -> None:
    """Two declarations of a default could differ."""
    options = signature(command).parameters
    shared = SpeculationOptions.__dataclass_fields__.keys() & options.keys()
    assert shared == SpeculationOptions.__dataclass_fields__.keys()
    assert {name: options[name].default for name in shared} == {name: getattr(SpeculationOptions, name) for name in shared}


def test_saguaro_sampling_changes_the_sampled_text(objects: Any) -> None:
    drawn = {
        options: objects("the rain", "--mode", "sd", "-t", 1, "--seed", 3, "--ignore-eos", *options.split())[0]["token_ids"]
        for options in ("", "--saguaro-c 0.05", "--saguaro-c 0.05 --saguaro-f 1", "--saguaro-c 0.05 --saguaro-f 9999")
    }
    plain, top_f, top_1, everything = drawn.values()
    assert plain == everything  # all of a row scaled alike is as it was
    assert top_f != plain != top_1


def test_a_tree_is_proposed_level_by_level(objects: Any, decode: Run) -> None:
    (found,) = objects("the rain", "--mode", "sd", "--tree", "3,1", "--ignore-eos")
    assert set(found["stats"]["proposed_counts"]) <= {"0", "3", "6"}
    assert "6" in found["stats"]["proposed_counts"]
    assert found["text"] == objects("the rain", "--mode", "ar", "--ignore-eos")[0]["text"]


def test_n_grams_can_be_the_draft(run: Run, decode: Run, target: Path) -> None:
    options = ["-n", 12, "--target", target, "--threads", 1, "--dtype", "float32", "--draft", "ngram"]
    result = run("decode", "the rain", *options)
    assert (result.status, result.err, result.out) == (0, "", decode("the rain").out)


@pytest.fixture
def stats_of(run: Run, target: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows of --stats on stderr; stdout has none of them."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*options: object) -> str:
        result = run("decode", "the rain", "-n", 24, "--ignore-eos", "--target", target, "--threads", 1, *options, "--stats")
        assert result.status == 0
        assert "rounds" not in result.out
        return result.err

    return call


def test_stats_are_on_stderr(stats_of: Any, draft: Path) -> None:
    said = stats_of("--draft", draft, "--mode", "ssd")
    for name in ("rounds", "acceptance", "hit rate", "hidden", "tokens/s", "by tokens proposed", "cost of a miss"):
        assert name in said
    assert re.search(r"hits, by accepted count .*\d: \d+ of \d+", said)
    assert re.search(r"by rank among the guesses .*\d+: \d+", said)


def test_stats_of_speculative_decoding_have_no_cache_in_them(stats_of: Any) -> None:
    said = stats_of("--draft", "self:2", "--mode", "sd", "--tree", "2,2")
    assert re.search(r"acceptance .*\d%", said)
    assert re.search(r"mean acceptance length, with the bonus token .*[1-3]\.\d\d", said)
    assert re.search(r"by tokens proposed .*6: \d+", said)
    assert "hit rate" not in said and "by rank" not in said


def test_stats_of_autoregressive_decoding_have_no_draft_in_them(stats_of: Any) -> None:
    said = stats_of("--draft", "none")
    assert "verification" in said
    assert "proposed" not in said and "drafting" not in said


@pytest.mark.parametrize(
    "counts, most, shown",
    [
        ({}, None, "–"),
        ({0: 3, 4: 1}, None, "0: 3, 4: 1"),
        ({0: 3, 1: 2, 9: 4, 275: 5}, 2, "0: 3, 1: 2, beyond: 9"),
        ({0: 3, 1: 2}, 2, "0: 3, 1: 2"),
    ],
)
def test_the_rarest_counts_are_summed(counts: dict[int, int], most: int | None, shown: str) -> None:
    assert module._counts(counts, most) == shown


def test_a_draft_that_cannot_be_loaded_gives_a_warning_and_the_same_text(
    run: Run, decode: Run, target: Path, broken_draft: Path
) -> None:
    options = ["-n", 12, "--target", target, "--threads", 1, "--dtype", "float32"]
    result = run("decode", "the rain", *options, "--draft", broken_draft, "--mode", "ssd")
    assert (result.status, result.out) == (0, decode("the rain").out)
    assert result.err.startswith("ssd: warning: the draft failed")
    assert result.err.count("\n") == 1


# Files of prompts -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes a file of these lines."""

    def write(*lines: str | bytes) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
        return path

    return write


def test_prompts_of_a_file_come_back_in_order(objects: Any, file: Any) -> None:
    prompts = ["the rain", "in Spain", "é\u2028", "stays", "mainly"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    found = objects("--prompts", file(lines[0], "", *lines[1:], ""), "--mode", "ssd", "--max-batch", 2)
    assert [o["text"] for o in found] == [objects(prompt)[0]["text"] for prompt in prompts]


def test_texts_of_a_file_have_an_empty_line_between_them(decode: Run, file: Any) -> None:
    both = decode("--prompts", file('{"prompt": "the rain"}', '{"prompt": "in Spain"}')).out
    assert both == decode("the rain").out + "\n" + decode("in Spain").out


def test_the_field_may_be_named_and_may_be_a_list(decode: Run, file: Any) -> None:
    path = file('{"question": "the rain", "turns": ["in Spain", "stays"]}')
    assert decode("--prompts", path, "--field", "question").out == decode("the rain").out
    assert decode("--prompts", path, "--field", "turns").out == decode("in Spain").out


@pytest.mark.parametrize(
    "lines, reason",
    [
        (['{"prompt": "hi"}', '{"prompt": '], "line 2 of"),
        (["", "hi"], "line 2 of"),
        (["[" * 100_000], "is not JSON"),
        (["[1]"], "is not a JSON object"),
        (['{"question": "hi", "answer": "ho"}'], "has no field 'prompt'; choose one of 'question', 'answer'"),
        (["{}"], "has no field 'prompt'"),
        (['{"prompt": 3}'], "neither text nor a list"),
        (['{"prompt": []}'], "neither text nor a list"),
        (['{"prompt": [{"role": "user", "content": "hi"}, "ho"]}'], "neither text nor a list"),
        (['{"prompt": [{"content": "hi"}]}'], "cannot be used; a prompt can be"),
        (['{"prompt": "hi"}', '{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}'], "prompt 1 of 2: message 1 of"),
        (['{"prompt": [{"role": "user", "content": "\\ud800"}]}'], "surrogate"),
        (['{"prompt": [["hi"]]}'], "neither text nor a list"),
        (['{"prompt": "\\ud800"}'], "line 1 of"),
        (['{"prompt": ""}'], "the prompt is empty"),
        ([b'{"prompt": "\xff"}'], "is not UTF-8"),
        ([""], "is empty"),
        (["\n \n"], "is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    refusal: Refusal, file: Any, target: Path, lines: list[Any], reason: str
) -> None:
    assert reason in refusal("decode", "--prompts", file(*lines), "--target", target)


def test_a_file_that_is_not_there_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    assert "No such file" in refusal("decode", "--prompts", tmp_path / "none.jsonl")
    assert "directory" in refusal("decode", "--prompts", tmp_path)


# What the chat template gets --------------------------------------------------------------------------------------------------


@pytest.fixture
def talker(target: Path, tmp_path: Path) -> Path:
    """The target with a template that shows tools and a variable."""
    path = tmp_path / "talker"
    shutil.copytree(target, path)
    (path / "chat_template.jinja").write_text(
        "{% for t in tools or [] %}{{ t.name }} {% endfor %}{{ mood }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return path


@pytest.fixture
def said(run: Run, talker: Path) -> Any:
    """What this target says."""

    def call(*arguments: object) -> str:
        result = run("decode", *arguments, "-n", 12, "--target", talker, "--threads", 1, "--dtype", "float32")
        assert (result.status, result.err) == (0, ""), result
        return result.out

    return call


def test_a_field_may_be_a_conversation(said: Any, file: Any) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "the"}]
    path = file(json.dumps({"messages": chat}))
    assert said("--prompts", path, "--field", "messages") == said("<|user|>hi<|end|><|assistant|>the", "--raw")


def test_tools_and_variables_reach_the_chat_template(said: Any, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"name": "weather"}, {"name": "time"}]')
    form = ["--tools", tmp_path / "tools.json", "--chat-template-kwargs", '{"mood": "sad"}']
    expected = said("weather time sad<|user|>hi<|end|><|assistant|>", "--raw")
    assert said("hi", *form) == expected
    assert json.loads(said("hi", *form, "--json"))["text"] + "\n" == expected


@pytest.mark.parametrize(
    "value,reason",
    [
        ("{'mood': 1}", "the value of --chat-template-kwargs is not JSON"),
        ("", "is not JSON"),
        ("[1]", "the value of --chat-template-kwargs is [1]; give a JSON object"),
        ("true", "give a JSON object"),
    ],
)
def test_variables_that_are_no_object_are_refused(refusal: Refusal, target: Path, value: str, reason: str) -> None:
    assert reason in refusal("decode", "hi", "--target", target, "--chat-template-kwargs", value)


def test_a_variable_that_the_template_does_not_have_is_refused(refusal: Refusal, target: Path) -> None:
    assert "'mood', which is no variable" in refusal(
        "decode", "hi", "--target", target, "--threads", 1, "--chat-template-kwargs", '{"mood": 1}'
    )


@pytest.mark.parametrize(
    "text,reason",
    [
        ("{}", "is not a list of tools"),
        ("[3]", "is not a list of tools"),
        ("[", "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (None, "the tools in"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(
    refusal: Refusal, target: Path, tmp_path: Path, text: str | bytes | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "tools.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert reason in refusal("decode", "hi", "--target", target, "--tools", tmp_path / "tools.json")


# The timeline -----------------------------------------------------------------------------------------------------------------


def lane_events(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A Chrome trace's spans by lane."""
    trace = json.loads(path.read_text())
    lanes = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in spans)
    return {lane: [e for e in spans if e["tid"] == tid] for tid, lane in lanes.items()}


def test_the_timeline_has_both_lanes_and_every_look_up(decode: Run, tmp_path: Path) -> None:
    decode("the rain", "--mode", "ssd", "--ignore-eos", "--trace", tmp_path / "trace.json")
    lanes = lane_events(tmp_path / "trace.json")
    assert lanes.keys() == {"target", "draft"}
    verifications = [e for e in lanes["target"] if e["name"] == "verify"]
    look_ups = [e for e in lanes["draft"] if e["name"] == "look up"]
    assert len(verifications) == len(look_ups) > 2
    assert all(e["args"]["hits"] + e["args"]["misses"] == 1 for e in look_ups)
    assert {e["args"]["hits"] for e in look_ups} == {0, 1}


# A real model -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_target_is_a_real_model(run: Run) -> None:
    try:
        registry.resolve("smollm2-135m")
    except SsdError as reason:
        pytest.skip(str(reason))
    result = run("decode", "The capital of France is", "--raw", "--max-new-tokens", 3, "--json")
    assert result.status == 0
    assert json.loads(result.out)["text"].startswith(" Paris.")
