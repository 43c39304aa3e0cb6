"""Prompts in every form reach the model: parts, tools, variables of the template, and an answer that is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ssd
import tiny
from engine.cases import PADDED, VOCABULARY, MakeEngine
from ssd import Engine, SamplingParams
from ssd.errors import SsdError

# Shows tools and a variable before the messages.
TEMPLATE = (
    "{% if tools %}tools: {% for t in tools %}{{ t.name }} {% endfor %}{% endif %}{{ mood | default('') }}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}!{{ c.name }}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)
TOOLS = [{"name": "weather"}, {"name": "time"}]
CHATS: list[tuple[Any, dict[str, Any], str]] = [
    ("hi", {"tools": TOOLS}, "tools: weather time <|user|>hi<|end|><|assistant|>"),
    ("hi", {"chat_template_kwargs": {"mood": "sad"}}, "sad<|user|>hi<|end|><|assistant|>"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
        {},
        "<|user|>hi<|end|><|assistant|>",
    ),
    (
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the"}],
        {"chat_template_kwargs": {"mood": "glad"}},
        "glad<|user|>hi<|end|><|assistant|>the",
    ),
    (
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "time"}]},
            {"role": "tool", "content": "3"},
        ],
        {"tools": TOOLS},
        "tools: weather time <|user|>hi<|end|><|assistant|>!time<|end|><|tool|>3<|end|><|assistant|>",
    ),
]


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with this chat template."""
    path = tmp_path_factory.mktemp("talker")
    tiny.write_model(path, tokenizer=VOCABULARY, vocab_size=PADDED)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def one(engine: MakeEngine, talker: Path) -> Engine:
    return engine(target=talker)


@pytest.mark.parametrize("prompt,form,written_out", CHATS)
def test_a_chat_is_decoded_from_its_written_out_form(one: Engine, prompt: Any, form: dict[str, Any], written_out: str) -> None:
    expected = one.decode(written_out, PARAMS, raw=True)
    assert one.decode(prompt, PARAMS, **form).token_ids == expected.token_ids
    assert "".join(one.stream(prompt, PARAMS, **form)) == expected.text
    assert [found.token_ids for found in one.decode([prompt, prompt], PARAMS, **form)] == [expected.token_ids] * 2


def test_ssd_decode_takes_the_forms_of_a_prompt(talker: Path) -> None:
    options: dict[str, Any] = {"dtype": "float32", "threads": 1, "draft": None, "max_new_tokens": 8, "ignore_eos": True}
    expected = ssd.decode("tools: weather time sad<|user|>hi<|end|><|assistant|>", str(talker), raw=True, **options)
    found = ssd.decode("hi", str(talker), tools=TOOLS, chat_template_kwargs={"mood": "sad"}, **options)
    assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("call", ["decode", "stream"])
def test_a_wrong_form_is_refused_before_anything_runs(one: Engine, call: str) -> None:
    run = getattr(one, call)
    with pytest.raises(SsdError, match="'mod', which is no variable"):
        run("hi", PARAMS, chat_template_kwargs={"mod": "sad"})
    with pytest.raises(SsdError, match="option 'rawr' is not known; it can be raw, tools, chat_template_kwargs"):
        run("hi", PARAMS, rawr=True)
    with pytest.raises(SsdError, match="message 1 of the prompt has a part of type 'image_url'"):
        run([{"role": "user", "content": [{"type": "image_url"}]}], PARAMS)


def test_the_wrong_prompt_of_several_is_named(one: Engine) -> None:
    with pytest.raises(SsdError, match="prompt 1 of 2: a prompt of token ids has no chat template for tools; leave"):
        one.decode(["hi", [1, 2]], PARAMS, tools=TOOLS)
