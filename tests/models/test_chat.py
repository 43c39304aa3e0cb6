"""Chats become the ids that transformers makes of them, on templates like those of four families. Wrong ones are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from ssd.errors import SsdError
from ssd.models.prompts import token_ids
from ssd.models.tokenizer import Tokenizer

SMOLLM2 = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA31 = """
{{- bos_token }}
{%- set tools_in_user_message = tools_in_user_message if tools_in_user_message is defined else true %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{ 'Environment: ipython\n' }}{% endif %}
{{- 'Today Date: ' + (date_string | default('26 Jul 2024')) + '\n\n' }}
{%- if tools and not tools_in_user_message %}
    {%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\n\n' }}{% endfor %}
{%- endif %}
{{- system + '<|eot_id|>' }}
{%- for message in rest %}
    {%- if tools and tools_in_user_message and loop.first %}
        {{- '<|start_header_id|>user<|end_header_id|>\n\nAnswer with a call.\n\n' }}
        {%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\n\n' }}{% endfor %}
        {{- (message['content'] | trim) + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once! Split them.') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- elif message.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {{- (message.content if message.content is string else message.content | tojson) + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + (message['content'] | trim) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN3 = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- '# Tools\n\n<tools>' }}
    {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content is string and loop.last %}
            {{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set arguments = call.function.arguments %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (arguments if arguments is string else arguments | tojson) + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

MISTRAL = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\n\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- set last = namespace(user=0) %}
{%- for message in rest %}{% if message['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in rest %}
    {%- if message['role'] == 'user' %}
        {%- if loop.index0 > 0 and rest[loop.index0 - 1]['role'] == 'user' %}
            {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
        {%- endif %}
        {%- if tools and loop.index0 == last.user %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST] ' + (system if loop.index0 == last.user else '') + message['content'] + '[/INST]' }}
    {%- elif message['tool_calls'] is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message['tool_calls'] %}
            {%- if call['id'] is not defined or call['id'] | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- (call['function'] | tojson)[:-1] + ', "id": "' + call['id'] + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message['content'] + ', "call_id": "' + message['tool_call_id'] + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool roles are supported, with a system message first.') }}
    {%- endif %}
{%- endfor %}"""

# Like those of models that also see: content is a list of parts.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)

TEMPLATES: dict[str, Any] = {"SmolLM2": SMOLLM2, "Llama 3.1": LLAMA31, "Qwen3": QWEN3, "Mistral": MISTRAL}
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]"),
    *("[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
]


def reference(template: Any) -> PreTrainedTokenizerFast:
    """transformers' own tokenizer: every byte is a token, and so is each special token of the templates."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    backend = Backend(BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)


def ids(template: Any, prompt: Any, **form: Any) -> list[int]:
    return token_ids(prompt, Tokenizer(reference(template)), 2**31, **form)


def text(template: Any, prompt: Any, **form: Any) -> str:
    return str(reference(template).decode(ids(template, prompt, **form)))


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
USER = message("user", "  Is it raining in Oslo? ")
SYSTEM = message("system", "Be brief.")
ANSWER = message("assistant", "It is.")
CALLED = [USER, message("assistant", None, tool_calls=[CALL])]
RESULT = message("tool", '{"rain": true}', tool_call_id="call00001", name="weather")
CHATS = {
    "one message": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, message("user", "Überall? 🌧")],
    "empty": [message("system", ""), message("user", "")],
}
CONTINUED = {
    "answer": [USER, ANSWER],
    "with system": [SYSTEM, USER, message("assistant", "No, it")],
    "ends with a space": [USER, message("assistant", "The answer is ")],
    "of several": [USER, ANSWER, USER, message("assistant", "It")],
    "same text twice": [USER, ANSWER, USER, ANSWER],
    "special": [USER, message("assistant", "a<|im_end|>b")],
}


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_has_the_ids_of_transformers(template: str, chat: list[dict[str, Any]]) -> None:
    expected = reference(template).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids(template, chat) == expected


@pytest.mark.parametrize("chat", CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_last_message_of_the_assistant_is_continued(template: str, chat: list[dict[str, Any]]) -> None:
    expected = reference(template).apply_chat_template(chat, continue_final_message=True, return_dict=False)
    assert ids(template, chat) == expected
    assert text(template, chat).endswith(chat[-1]["content"].rstrip() if template is LLAMA31 else chat[-1]["content"])


@pytest.mark.parametrize("template", [LLAMA31, QWEN3, MISTRAL], ids=["Llama 3.1", "Qwen3", "Mistral"])
@pytest.mark.parametrize("content", ["", None, "missing"])
def test_tools_and_their_calls_have_the_ids_of_transformers(template: str, content: str | None) -> None:
    called = message("assistant", content, tool_calls=[CALL])
    if content == "missing":
        del called["content"]
    for chat in ([USER], [SYSTEM, USER], [USER, called, RESULT], [SYSTEM, USER, called, RESULT, ANSWER, USER]):
        expected = reference(template).apply_chat_template(chat, tools=[WEATHER], add_generation_prompt=True, return_dict=False)
        assert ids(template, chat, tools=[WEATHER]) == expected
        assert "Say the weather." in text(template, chat, tools=[WEATHER])


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_variables_have_the_ids_of_transformers(variables: dict[str, Any]) -> None:
    expected = reference(QWEN3).apply_chat_template([USER], add_generation_prompt=True, return_dict=False, **variables)
    assert ids(QWEN3, [USER], chat_template_kwargs=variables) == expected
    thought = text(QWEN3, [USER], chat_template_kwargs=variables).endswith("<think>\n\n</think>\n\n")
    assert thought == (variables == {"enable_thinking": False})


def test_several_variables_go_with_tools() -> None:
    variables = {"tools_in_user_message": False, "date_string": "1 May 2026"}
    expected = reference(LLAMA31).apply_chat_template(
        [SYSTEM, USER], tools=[WEATHER], add_generation_prompt=True, return_dict=False, **variables
    )
    assert ids(LLAMA31, [SYSTEM, USER], tools=[WEATHER], chat_template_kwargs=variables) == expected
    assert "Today Date: 1 May 2026" in text(LLAMA31, [USER], chat_template_kwargs=variables)


# By hand ----------------------------------------------------------------------------------------------------------------------


def test_a_string_is_one_user_message_with_variables_and_tools() -> None:
    assert text(QWEN3, "hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    shut = {"chat_template_kwargs": {"enable_thinking": False}}
    assert text(QWEN3, "hi", **shut) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert text(QWEN3, "hi", tools=[{"a": 1}]).startswith(
        '<|im_start|>system\n# Tools\n\n<tools>\n{"a": 1}\n</tools><|im_end|>'
    )


def test_a_continued_message_has_no_end_and_no_second_turn() -> None:
    assert text(SMOLLM2, [SYSTEM, message("user", "1 + 1?"), message("assistant", "The sum is ")]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nThe sum is "
    )
    assert text(MISTRAL, [message("user", "hi"), message("assistant", "ho")]) == "<s>[INST] hi[/INST] ho"


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]], ids=repr)
@pytest.mark.parametrize("template", [*TEMPLATES.values(), PARTS], ids=[*TEMPLATES, "parts"])
def test_an_empty_last_message_of_the_assistant_is_the_start_of_its_answer(template: str, content: Any) -> None:
    """To continue it would lose the line break after the header, where a template trims its messages."""
    assert ids(template, [USER, message("assistant", content)]) == ids(template, [USER])


def test_reasoning_is_kept_before_an_answer_that_is_continued() -> None:
    chat = [message("user", "hi"), message("assistant", "", reasoning_content="They greet.")]
    assert text(QWEN3, chat).endswith("<|im_start|>assistant\n<think>\nThey greet.\n</think>\n\n")


def test_tool_calls_results_and_names_reach_the_template_unchanged() -> None:
    chat = [message("user", "hi"), message("assistant", "Wait.", tool_calls=[CALL]), RESULT]
    assert text(QWEN3, chat) == (
        '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nWait.\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Oslo"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n{"rain": true}\n</tool_response>'
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    seen = "{% for m in messages %}{{ m.items() | list | tojson }}{% endfor %}"
    odd = message("critic", "hm", name="Ann", weight=0.5, marks=[{"a": None}], kept=False)
    assert text(seen, [odd]) == (
        '[["role", "critic"], ["content", "hm"], ["name", "Ann"], ["weight", 0.5], ["marks", [{"a": null}]], ["kept", false]]'
    )


def test_the_callers_messages_are_not_changed() -> None:
    chat = [message("user", [{"type": "text", "text": "hi"}], name=None), message("assistant", "ho", tool_calls=None)]
    before = repr(chat)
    for template in (SMOLLM2, PARTS):
        ids(template, chat)
    assert repr(chat) == before


def test_a_function_is_a_tool() -> None:
    def weather(city: str) -> str:
        """
        Say the weather.

        Args:
            city: The city.
        """
        return city

    expected = reference(QWEN3).apply_chat_template([USER], tools=[weather], add_generation_prompt=True, return_dict=False)
    assert ids(QWEN3, [USER], tools=[weather]) == expected


# Parts ------------------------------------------------------------------------------------------------------------------------


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("template", [*TEMPLATES.values(), PARTS], ids=[*TEMPLATES, "parts"])
@pytest.mark.parametrize(
    "given,joined",
    [
        (parts("a", " b\n", "c"), "a b\nc"),
        (parts("abc"), "abc"),
        ([], ""),
        (["a", *parts("b")], "ab"),
        (tuple(parts("a")), "a"),
    ],
    ids=repr,
)
def test_parts_of_a_content_are_joined_as_they_are(template: str, given: Any, joined: str) -> None:
    for role, rest in (("system", [USER]), ("user", []), ("user", [ANSWER, USER])):
        assert ids(template, [message(role, given), *rest]) == ids(template, [message(role, joined), *rest])


def test_a_template_that_reads_parts_gets_parts() -> None:
    chat = [message("system", "a"), message("user", parts("b", "c")), message("assistant", "d")]
    assert text(PARTS, chat[:2]) == "<|im_start|>system: a<|im_end|><|im_start|>user: bc<|im_end|><|im_start|>assistant: "
    assert text(PARTS, "bc") == "<|im_start|>user: bc<|im_end|><|im_start|>assistant: "
    assert text(PARTS, chat) == "<|im_start|>system: a<|im_end|><|im_start|>user: bc<|im_end|><|im_start|>assistant: d"
    as_parts = [message("user", parts("b", "c"))]
    expected = reference(PARTS).apply_chat_template(as_parts, add_generation_prompt=True, return_dict=False)
    assert ids(PARTS, as_parts) == expected


def test_a_chat_is_made_up_in_a_template_that_reads_parts() -> None:
    tokenizer = Tokenizer(reference(PARTS))
    assert tokenizer.decode(tokenizer.user_turn("hi")) == "user: hi"
    assert tokenizer.turn_end() == "<|im_end|><|im_start|>assistant:"


@pytest.mark.parametrize(
    "content,reason",
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "message 2 of the prompt has a part of type 'image_url'"),
        ([*parts("a"), {"type": "input_audio"}], "part of type 'input_audio'"),
        ([{"text": "a"}], "part of type None"),
        ([{"type": "text"}], "part of type 'text'; only parts of type 'text' with a text"),
        ([{"type": "text", "text": 3}], "part of type 'text'"),
        ([3], "part of type 'int'"),
        ([None], "part of type 'NoneType'"),
        (3, "the content of message 2 of the prompt is a int"),
        ({"type": "text", "text": "a"}, "is a dict"),
        (None, "message 2 of the prompt has no content"),
    ],
)
def test_a_content_that_is_no_text_is_refused_by_its_type(content: Any, reason: str) -> None:
    refused(SMOLLM2, [SYSTEM, message("user", content)], reason)


# Several templates ------------------------------------------------------------------------------------------------------------


def test_tools_choose_the_template_that_is_named_for_them() -> None:
    several = {"default": SMOLLM2, "tool_use": QWEN3}
    assert ids(several, [USER]) == ids(SMOLLM2, [USER])
    assert ids(several, [USER], tools=[]) == ids(SMOLLM2, [USER])
    assert ids(several, [USER], tools=[WEATHER]) == ids(QWEN3, [USER], tools=[WEATHER])


def test_the_templates_of_a_gguf_file_are_read_by_name() -> None:
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    described = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.chat_template": SMOLLM2,
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": QWEN3,
    }
    tokenizer = Tokenizer.from_gguf(described)
    assert tokenizer is not None
    assert tokenizer.chat([USER]) == ids(SMOLLM2, [USER])
    assert tokenizer.chat([USER], [WEATHER]) == ids(QWEN3, [USER], tools=[WEATHER])
    del described["tokenizer.chat_template"]
    tokenizer = Tokenizer.from_gguf(described)
    assert tokenizer is not None
    assert tokenizer.chat([USER], [WEATHER]) == ids(QWEN3, [USER], tools=[WEATHER])
    with pytest.raises(SsdError, match="multiple chat templates with no default"):
        tokenizer.chat([USER])


# Refused ----------------------------------------------------------------------------------------------------------------------


def refused(template: Any, prompt: Any, *reasons: str, **form: Any) -> None:
    """Expects an SsdError of one sentence with these words."""
    with pytest.raises(SsdError) as error:
        ids(template, prompt, **form)
    said = str(error.value)
    assert said.endswith(".") and ". " not in said and "\n" not in said, said
    assert all(reason in said for reason in reasons), said


@pytest.mark.parametrize(
    "template,chat,reason",
    [
        (MISTRAL, [USER, USER], "roles must alternate user/assistant/user/assistant/"),
        (MISTRAL, [message("critic", "hm")], "Only user, assistant and tool roles are supported"),
        (MISTRAL, [*CALLED[:1], message("assistant", None, tool_calls=[CALL | {"id": "x"}]), RESULT], "with length 9"),
        (LLAMA31, [USER, message("assistant", None, tool_calls=[CALL, CALL]), RESULT], "single tool-calls at once"),
        (SMOLLM2, [*CALLED, RESULT], "content"),  # it has no place for a message without content
        ("{{ messages[0].content + 1 }}", [USER], "concatenate"),
        ("{{ 1 / 0 }}", [USER], "division by zero"),
        ("{{ messages.clear() }}", [USER], "unsafe"),
        ("{% if %}", [USER], "Expected an expression"),
        ("{{ messages[0].content }}", [USER, ANSWER], "does not appear in the chat"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_a_template_that_fails_is_quoted_in_one_sentence(template: str, chat: list[dict[str, Any]], reason: str) -> None:
    refused(template, chat, "the model's chat template refuses these messages: ", reason)


@pytest.mark.parametrize("content", [None, "Let me see."])
def test_tool_calls_cannot_be_continued(content: str | None) -> None:
    refused(QWEN3, [USER, message("assistant", content, tool_calls=[CALL])], "tool calls", "cannot be continued", "'tool'")


@pytest.mark.parametrize("template", [None, "", {}])
@pytest.mark.parametrize("prompt", ["hi", [USER]], ids=["text", "messages"])
def test_a_tokenizer_without_a_template_needs_raw_text(template: Any, prompt: Any) -> None:
    refused(template, prompt, "no chat template", "raw=True")
    assert text(template, "hi", raw=True) == "hi"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "enable_thinkng",
            "tokenize",
            "add_generation_prompt",
            "continue_final_message",
            "chat_template",
            "tools",
            "messages",
        ),
        *("return_dict", "conversation", "padding"),
    ],
)
def test_a_variable_that_the_template_does_not_have_is_refused(name: str) -> None:
    refused(QWEN3, [USER], repr(name), "no variable of the model's chat template", chat_template_kwargs={name: False})


@pytest.mark.parametrize("variables", ["enable_thinking", [("enable_thinking", False)], {3: False}, 3], ids=repr)
def test_variables_that_are_no_dict_are_refused(variables: Any) -> None:
    refused(QWEN3, [USER], "chat_template_kwargs is ", "must be a dict", chat_template_kwargs=variables)


def test_tools_that_the_template_has_no_place_for_are_refused() -> None:
    refused(SMOLLM2, [USER], "no place for tools", tools=[WEATHER])


def undescribed(city):  # type: ignore[no-untyped-def]
    return city


@pytest.mark.parametrize(
    "tools,reason",
    [
        ("weather", "tools is a str"),
        (WEATHER, "tools is a dict"),
        (3, "tools is a int"),
        (["weather"], "a tool is a str"),
        ([None], "a tool is a NoneType"),
        ([undescribed], "the tool undescribed cannot be described"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_tools_that_are_none_are_refused(tools: Any, reason: str) -> None:
    refused(QWEN3, [USER], reason, tools=tools)


@pytest.mark.parametrize(
    "form", [{"tools": [WEATHER]}, {"chat_template_kwargs": {"enable_thinking": False}}], ids=lambda form: next(iter(form))
)
@pytest.mark.parametrize("prompt,raw", [("hi", True), ([1, 2], False), ([1, 2], True)], ids=["raw", "ids", "raw ids"])
def test_arguments_for_a_template_that_is_not_used_are_refused(form: Mapping[str, Any], prompt: Any, raw: bool) -> None:
    refused(QWEN3, prompt, "has no chat template for", *form, raw=raw, **form)


@pytest.mark.parametrize("form", [{}, {"tools": None, "chat_template_kwargs": None}, {"tools": [], "chat_template_kwargs": {}}])
def test_no_arguments_change_nothing(form: Mapping[str, Any]) -> None:
    assert ids(SMOLLM2, [USER], **form) == ids(SMOLLM2, [USER])
    assert ids(SMOLLM2, [1, 2], **form) == [1, 2]


@pytest.mark.parametrize("where", ["text", "content", "part", "key", "tool", "variable"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_is(where: str) -> None:
    half = "a\ud800"
    prompts: dict[str, Any] = {
        "text": half,
        "content": [message("user", half)],
        "part": [message("user", parts(half))],
        "key": [USER, message("assistant", None, tool_calls=[{"function": {"name": half, "arguments": {}}}]), RESULT],
    }
    tools: Sequence[Any] = [{"name": half}] if where == "tool" else []
    variables = {"enable_thinking": half} if where == "variable" else {}
    template = "{{ enable_thinking }}" + QWEN3 if variables else QWEN3
    refused(template, prompts.get(where, [USER]), "surrogate", tools=tools, chat_template_kwargs=variables)
    if where == "text":
        refused(QWEN3, half, "surrogate", raw=True)
