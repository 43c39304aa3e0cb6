"""Wrong input is refused with one sentence that names the wrong value, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from engine.cases import PADDED, VOCABULARY, MakeEngine, Models
from ssd import Engine, SamplingParams, decode
from ssd.errors import SsdError

CONTEXT = tiny.SIZES["max_position_embeddings"]
NAN, INFINITY = float("nan"), float("inf")


def refusal(*words: str) -> Any:
    """Expects an SsdError of one sentence that holds these words."""

    def is_a_sentence(error: BaseException) -> bool:
        message = str(error)
        assert "\n" not in message and ". " not in message, message
        missing = [word for word in words if word not in message]
        assert not missing, f"{message!r} does not say {missing}"
        return True

    return pytest.raises(SsdError, check=is_a_sentence)


# The engine's arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option,value,says",
    [
        ("mode", "fast", ["'fast'", "'ssd'"]),
        ("dtype", "float16", ["'float16'", "'bfloat16'"]),
        ("device", "cuda", ["'cuda'", "no CUDA kernels", "'cpu'"]),
        ("device", "tpu", ["'tpu'", "'cuda:N'"]),
        ("draft_device", "cuda:1", ["draft_device", "'cuda:1'", "no CUDA kernels"]),
        ("draft_device", "tpu", ["draft_device", "'tpu'", "'cuda:N'"]),
        ("draft_sms", 16, ["draft_sms", "GPU", "leave"]),
        ("draft_sms", 0, ["0", "1 to"]),
        ("max_batch", 0, ["0", "1 to"]),
        ("max_batch", 2.0, ["2.0", "whole"]),
        ("max_context", 1, ["1", "2 to"]),
        ("max_context", CONTEXT + 1, [str(CONTEXT + 1), str(CONTEXT)]),
        ("gpu_memory_utilization", 0, ["0", "0.01 to 1"]),
        ("gpu_memory_utilization", 1.5, ["1.5", "0.01 to 1"]),
        ("threads", 0, ["0", "1 to"]),
        ("threads", True, ["True", "whole"]),
        ("draft_threads", -1, ["-1", "1 to"]),
        ("seed", "seven", ["'seven'", "whole"]),
        ("pace", (200,), ["(200,)", "two numbers"]),
        ("pace", (200, 24, 1), ["(200, 24, 1)", "two numbers"]),
        ("pace", (-1, 24), ["-1", "0 to"]),
        ("pace", (200, NAN), ["nan", "0 to"]),
        ("pace", ("fast", "slow"), ["'fast'", "number"]),
        ("pace", 200, ["200", "two numbers"]),
        ("lookahead", 0, ["0", "1 to 63"]),
        ("lookahead", 64, ["64", "1 to 63"]),
        ("lookahead", 2.5, ["2.5", "whole"]),
        ("lookahead", "4", ["'4'", "whole"]),
        ("budget", 0, ["0", "1 to 256"]),
        ("budget", 257, ["257", "1 to 256"]),
        ("fan_out", "linear", ["'linear'", "'measured'", "'geometric'", "'uniform'"]),
        ("fan_out", (8,), ["(8,)", "5 numbers (lookahead + 1)"]),
        ("fan_out", (2, 2, 2, 1, 2), ["(2, 2, 2, 1, 2)", "sum to budget=8"]),
        ("fan_out", (9, 0, 0, 0, -1), ["(9, 0, 0, 0, -1)", "sum to budget=8"]),
        ("fan_out", (1.6, 1.6, 1.6, 1.6, 1.6), ["1.6", "sum to budget=8"]),
        ("fan_out", 8, ["8", "numbers"]),
        ("fan_out", None, ["None", "numbers"]),
        ("fallback", "none", ["'none'", "'auto'", "'neural'", "'ngram'"]),
        ("fallback", None, ["None", "'neural'"]),
        ("saguaro_c", 0, ["0", "0.01 to 1"]),
        ("saguaro_c", 1.5, ["1.5", "0.01 to 1"]),
        ("saguaro_c", -0.3, ["-0.3", "0.01 to 1"]),
        ("saguaro_c", NAN, ["nan", "0.01 to 1"]),
        ("saguaro_c", "half", ["'half'", "number"]),
        ("saguaro_c", True, ["True", "number"]),
        ("saguaro_f", 0, ["0", "1 to"]),
        ("saguaro_f", 2.0, ["2.0", "whole"]),
        ("saguaro_f", 2**24, [str(2**24), "1 to"]),
        ("tree", (), ["()", "level by level"]),
        ("tree", (2, 0), ["(2, 0)", "level by level"]),
        ("tree", (2, -1), ["(2, -1)", "level by level"]),
        ("tree", (2, 1.5), ["(2, 1.5)", "level by level"]),
        ("tree", (True, 2), ["(True, 2)", "level by level"]),
        ("tree", "22", ["'22'", "level by level"]),
        ("tree", 3, ["3", "level by level"]),
        ("tree", (64,), ["(64,)", "65 nodes", "64"]),
        ("tree", (4, 4, 4), ["(4, 4, 4)", "85 nodes", "64"]),
        ("tree", (1,) * 64, ["65 nodes", "64"]),
    ],
)
def test_an_option_out_of_range_is_refused(models: Models, option: str, value: object, says: list[str]) -> None:
    with refusal(option, *says):
        Engine(models.target, **{"draft": "self:1", option: value})


@pytest.mark.parametrize("mode", ["ar", "ssd"])
def test_a_tree_in_a_mode_without_trees_is_refused(models: Models, mode: str) -> None:
    with refusal("tree", f"mode={mode!r}", "mode='sd'"):
        Engine(models.target, "self:1", mode, tree=(2, 2))


@pytest.mark.parametrize("mode", ["sd", "auto"])
def test_a_tree_of_n_grams_is_refused(models: Models, mode: str) -> None:
    with refusal("tree", "draft='ngram'", "draft model"):
        Engine(models.target, "ngram", mode, tree=(2, 2))


@pytest.mark.parametrize("mode", ["sd", "auto"])
@pytest.mark.parametrize("draft", [None, "auto"])
def test_a_tree_without_a_draft_is_refused(models: Models, mode: str, draft: str | None) -> None:
    """Even if the engine may choose the mode, because it would then silently ignore the tree."""
    with refusal("needs a draft", models.target, "draft="):
        Engine(models.target, draft, mode, tree=(2, 2))


def test_ssd_with_n_grams_as_the_draft_is_refused(models: Models) -> None:
    with refusal("mode='ssd'", "draft='ngram'", "mode='sd'", "fallback='ngram'"):
        Engine(models.target, "ngram", "ssd")


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("draft", [None, "auto"])
def test_speculation_without_a_draft_is_refused(models: Models, mode: str, draft: str | None) -> None:
    with refusal(f"mode={mode!r}", "needs a draft", models.target, "draft="):
        Engine(models.target, draft, mode)


@pytest.mark.parametrize("draft", ["self:99", "self:4", "self:0", "self:-1", "self:x", "self:", "self:1.5", "self:1:2"])
def test_a_self_draft_has_between_one_and_all_of_the_targets_layers(models: Models, draft: str) -> None:
    with refusal(repr(draft), "'self:1'", "'self:3'"):
        Engine(models.target, draft, "sd")


@pytest.mark.parametrize("name", ["/no/such/place", "no-such-model", "missing.gguf", "", "a b/c"])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_missing_model_is_refused(models: Models, role: str, name: str) -> None:
    with refusal("no model", repr(name)):
        if role == "target":
            Engine(name)
        else:
            Engine(models.target, name, "sd")


def test_a_draft_that_is_not_a_string_is_refused(models: Models) -> None:
    with refusal("draft", "5"):
        Engine(models.target, 5, "sd")  # type: ignore[arg-type]


def test_a_draft_with_another_tokenizer_is_refused(models: Models) -> None:
    with refusal("tokenizer", "70", "draft"):
        Engine(models.target, models.stranger, "sd")


def test_a_draft_that_proposes_ids_the_target_lacks_is_refused(models: Models, tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "larger", vocab_size=PADDED)
    tiny.write_draft_of(tmp_path / "larger", tmp_path / "draft", 0.1, vocabulary=[1, PADDED - 1])
    with refusal(str(tmp_path / "draft"), str(PADDED - 1), str(len(VOCABULARY))):
        Engine(models.target, str(tmp_path / "draft"), "sd")


def test_a_target_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with refusal(str(weights), "truncated"):
        Engine(str(tmp_path))


# A request's parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,value",
    [
        ("temperature", -0.1),
        ("temperature", 0.001),
        ("temperature", NAN),
        ("temperature", INFINITY),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("min_p", -0.1),
        ("min_p", 2),
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("max_new_tokens", 2.5),
        ("logprobs", -1),
        ("logprobs", 101),
        ("logprobs", True),
        ("seed", 1.5),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ("a", "")),
        ("stop", ("a", 3)),
        ("stop", 3),
        ("stop", None),
    ],
)
def test_a_sampling_parameter_out_of_range_is_refused(name: str, value: object) -> None:
    with refusal(name, str(value)):
        SamplingParams(**{name: value})


def test_an_unknown_option_is_refused(models: Models) -> None:
    with refusal("temprature"):
        decode([1], models.target, temprature=1.0)


# A request's prompt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 200, CONTEXT - 1, CONTEXT])
def test_a_prompt_and_its_output_over_the_context_are_refused(engine: MakeEngine, tokens: int) -> None:
    with refusal(str(tokens), f"max_new_tokens={CONTEXT - tokens + 1}", str(CONTEXT)):
        engine().decode([5] * tokens, SamplingParams(max_new_tokens=CONTEXT - tokens + 1))


def test_a_prompt_and_its_output_may_fill_the_context(engine: MakeEngine) -> None:
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    assert len(engine("ssd").decode([5] * (CONTEXT - 8), params).token_ids) == 8


@pytest.mark.parametrize("tokens", [CONTEXT, CONTEXT + 1, 2 * CONTEXT])
def test_a_prompt_that_fills_the_context_is_refused(engine: MakeEngine, tokens: int) -> None:
    with refusal(f"prompt's {tokens} tokens leave no room", f"context of {CONTEXT}", "shorten it or raise max_context"):
        engine().decode([5] * tokens)


def test_a_smaller_max_context_is_enforced(engine: MakeEngine) -> None:
    with refusal("20", "max_new_tokens=13", "32"):
        engine(max_context=32).decode([5] * 20, SamplingParams(max_new_tokens=13))
    with refusal("32 tokens leave no room", "context of 32"):
        engine(max_context=32).decode([5] * 32)


@pytest.mark.parametrize("prompt", ["", [[]], [""], [[1], []]], ids=repr)
@pytest.mark.parametrize("raw", [False, True])
def test_an_empty_prompt_is_refused(engine: MakeEngine, prompt: Any, raw: bool) -> None:
    with refusal("empty"):
        engine().decode(prompt, raw=raw)


@pytest.mark.parametrize("prompts", [[], ()])
def test_no_prompt_at_all_is_refused(engine: MakeEngine, prompts: Any) -> None:
    with refusal("no prompt"):
        engine().decode(prompts)


@pytest.mark.parametrize("token", [-1, len(VOCABULARY), PADDED - 1, 2**40])
def test_a_token_id_outside_the_vocabulary_is_refused(engine: MakeEngine, token: int) -> None:
    with refusal(str(token), str(len(VOCABULARY) - 1)):
        engine().decode([1, token, 2])


@pytest.mark.parametrize(
    "prompt",
    [
        5,
        None,
        1.5,
        [1.5],
        [[1, "two"]],
        [["one", "two"]],
        {"role": "user", "content": "hi"},
        [{"role": "user"}],
        [{"content": 3}],
        [None],
    ],
    ids=repr,
)
def test_a_prompt_of_another_type_is_refused(engine: MakeEngine, prompt: Any) -> None:
    with refusal("prompt"):
        engine().decode(prompt)


def test_the_wrong_prompt_of_several_is_named(engine: MakeEngine) -> None:
    with refusal("prompt 1 of 3", "999"):
        engine().decode([[1], [999], [2]])


def test_a_stream_raises_before_it_is_iterated(engine: MakeEngine) -> None:
    with refusal("empty"):
        engine().stream("")


@pytest.fixture
def speechless(tmp_path: Path) -> str:
    """A target without a tokenizer."""
    tiny.write_model(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("prompt", ["hello", [{"role": "user", "content": "hello"}]])
def test_text_for_a_target_without_a_tokenizer_is_refused(engine: MakeEngine, speechless: str, prompt: Any) -> None:
    with refusal("no tokenizer", "token ids"):
        engine(target=speechless).decode(prompt)


def test_a_stop_string_for_a_target_without_a_tokenizer_is_refused(engine: MakeEngine, speechless: str) -> None:
    with refusal("no tokenizer", "stop"):
        engine(target=speechless).decode([1, 2], SamplingParams(stop=("x",)))


def test_messages_for_a_target_without_a_chat_template_are_refused(engine: MakeEngine, tmp_path: Path) -> None:
    tiny.write_model(tmp_path, tokenizer=VOCABULARY, vocab_size=PADDED)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with refusal("chat template", "raw=True"):
        engine(target=tmp_path).decode("hello")


@pytest.mark.parametrize("count", [1, 3])
def test_params_that_do_not_match_the_prompts_are_refused(engine: MakeEngine, count: int) -> None:
    with refusal("2 prompts", f"{count} params"):
        engine().decode([[1], [2]], [SamplingParams()] * count)


@pytest.mark.parametrize("params", ["greedy", {"temperature": 1.0}, [{"temperature": 1.0}], 0.7], ids=repr)
def test_params_of_another_type_are_refused(engine: MakeEngine, params: Any) -> None:
    with refusal("params"):
        engine().decode([1, 2], params)


# The engine's resources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode,free_pages", [("ar", 0), ("ssd", 0), ("ar", 100), ("ssd", 300)])
def test_a_request_larger_than_memory_is_refused(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, free_pages: int
) -> None:
    """The machine has this many memory pages (4096 bytes) free: enough for none, or for a few, of the engine's own pages."""
    with monkeypatch.context() as patch:
        patch.setattr("ssd.runtime.placement.available_memory", lambda: free_pages * 4096)
        small = engine(mode)
    with refusal("pages", "memory", "max_new_tokens"):
        small.decode([5] * 300, SamplingParams(max_new_tokens=200))
    if free_pages:
        assert len(small.decode([5] * 3, SamplingParams(max_new_tokens=8, ignore_eos=True)).token_ids) == 8


def test_bf16_weights_need_bfloat16(models: Models) -> None:
    with refusal("'bf16'", "'float32'", "weights='auto'"):
        Engine(models.target, weights="bf16", dtype="float32")


@pytest.mark.parametrize(
    "what,says", [("loading.load_target", "the weights of"), ("assembly.KVCache", "gpu_memory_utilization=0.9; lower it")]
)
def test_running_out_of_gpu_memory_is_reported_with_its_cause(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, what: str, says: str
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.")

    monkeypatch.setattr(f"ssd.serving.{what}", refuse)
    with refusal("GPU's memory", says):
        engine()


def test_an_engine_can_be_used_after_a_refused_call(engine: MakeEngine) -> None:
    one = engine("ssd")
    expected = one.decode([5, 6], SamplingParams(max_new_tokens=10)).token_ids
    for prompts in ([[1], []], [[1], [-1]], [[1], [5] * 600]):
        with pytest.raises(SsdError):
            one.decode(prompts)
    assert one.decode([5, 6], SamplingParams(max_new_tokens=10)).token_ids == expected
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity


def test_a_closed_engine_refuses_to_decode(engine: MakeEngine) -> None:
    closed = engine("ssd")
    closed.close()
    with refusal("closed"):
        closed.decode([1])
