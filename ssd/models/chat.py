"""A conversation as text: the model's chat template, rendered by transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import get_json_schema

from ssd.errors import SsdError, one_line

Message = Mapping[str, Any]
"""What was said, by its "role" and "content": a text or a list of text parts. Further keys are the template's business."""

Tool = Mapping[str, Any] | Callable[..., Any]
"""A function that the model may ask for: its JSON schema, or a function with type hints and a docstring."""

_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class ChatTemplate:
    """The chat template of a tokenizer, or several by name: "default", and "tool_use" for chats with tools."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._takes_parts: dict[str, bool] = {}  # by the template's text
        self._own = {*signature(tokenizer.apply_chat_template).parameters, "messages"} - {"documents", "kwargs"}

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, variables: Mapping[str, Any] | None = None
    ) -> str:
        """The text of a conversation up to the start of the assistant's answer, or up to the end of a last assistant message,
        which the model is to continue.

        tools: for the template, which describes them to the model. variables: the template's further ones, such as
        enable_thinking. Raises SsdError if there is no template, or if it refuses the messages or has no use for an argument.
        """
        schemas = self._schemas(tools)
        template = self._chosen(schemas)
        self._check_variables(template, variables)
        if schemas and not _mentions(template, "tools"):
            raise SsdError("the model's chat template has no place for tools; leave them out, or describe them in a message.")
        chat = [self._message(template, message) for message in messages]
        continued = bool(chat) and chat[-1]["role"] == "assistant"
        if continued and chat[-1].get("tool_calls"):
            raise SsdError(
                "the last message asks for tool calls and cannot be continued; add their results as messages of the role 'tool'."
            )
        if continued and chat[-1].keys() == {"role", "content"} and not text_of(chat[-1]["content"]):
            chat.pop()  # nothing was said: the assistant begins
            continued = False
        return self._apply(
            chat, template, schemas, add_generation_prompt=not continued, continue_final_message=continued, **(variables or {})
        )

    @cached_property
    def around_a_message(self) -> tuple[str, str]:
        """The text before and after a user's only message."""
        if not self._tokenizer.chat_template:
            raise SsdError("this model has no chat template, and without one it cannot make up chats; give a chat model.")
        before, shown, after = self.render([{"role": "user", "content": _MARK}]).partition(_MARK)
        if not shown:
            raise SsdError("the model's chat template does not show a user's message; give a chat model.")
        return before, after

    def _chosen(self, schemas: list[dict[str, Any]] | None) -> str:
        if not self._tokenizer.chat_template:
            raise SsdError("this model has no chat template; pass raw=True and give it the prompt as one text.")
        try:
            return str(self._tokenizer.get_chat_template(tools=schemas))
        except ValueError as error:  # several templates, and none is the default
            raise SsdError(f"the model has no chat template for these messages: {_sentence(error)}.") from error

    def _check_variables(self, template: str, variables: Mapping[str, Any] | None) -> None:
        if not isinstance(variables, Mapping | None) or not all(isinstance(name, str) for name in variables or ()):
            raise SsdError(f"chat_template_kwargs is {variables!r}; it must be a dict from names to values.")
        for name in variables or ():
            if name in self._own or not _mentions(template, name):
                raise SsdError(
                    f"chat_template_kwargs has {name!r}, which is no variable of the model's chat template; leave it out."
                )

    @staticmethod
    def _schemas(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
        """The tools' JSON schemas, or None if there are no tools."""
        if tools is not None and (isinstance(tools, str) or not isinstance(tools, Sequence)):
            raise SsdError(f"tools is a {type(tools).__name__}; it must be a list of JSON schemas or functions.")
        schemas: list[dict[str, Any]] = []
        for tool in tools or ():
            if not isinstance(tool, Mapping) and not callable(tool):
                raise SsdError(f"a tool is a {type(tool).__name__}; it must be a JSON schema or a function.")
            try:
                schemas.append(dict(tool) if isinstance(tool, Mapping) else get_json_schema(tool))
            except Exception as error:  # transformers has its own types
                name = getattr(tool, "__name__", repr(tool))
                raise SsdError(f"the tool {name} cannot be described ({_sentence(error)}); give its JSON schema.") from error
        return schemas or None

    def _message(self, template: str, message: Message) -> dict[str, Any]:
        """The message without keys that are None, and with its content as this template reads it: a text or a list of parts."""
        kept = {key: value for key, value in message.items() if value is not None}
        content = kept.get("content")
        if content is None:
            return kept
        if not self._reads_parts(template):
            return kept | {"content": text_of(content)}
        parts = [content] if isinstance(content, str) else content
        return kept | {"content": [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in parts]}

    def _reads_parts(self, template: str) -> bool:
        """Whether the template shows a list of text parts, but no content that is a text."""

        def shows(content: Any) -> bool:
            try:
                return _MARK in self._apply([{"role": "user", "content": content}], template)
            except SsdError:
                return False

        if template not in self._takes_parts:
            self._takes_parts[template] = not shows(_MARK) and shows([{"type": "text", "text": _MARK}])
        return self._takes_parts[template]

    def _apply(self, messages: list[dict[str, Any]], template: str, tools: list[Any] | None = None, **options: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, **options)
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise SsdError(f"the model's chat template refuses these messages: {_sentence(error)}.") from error


def text_of(content: str | Sequence[Any]) -> str:
    """The text of a message's content: its parts are joined as they are."""
    return content if isinstance(content, str) else "".join(part if isinstance(part, str) else part["text"] for part in content)


def _mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _sentence(error: Exception) -> str:
    """The first sentence of another program's error message."""
    return re.split(r"[.!?] ", one_line(error), maxsplit=1)[0].rstrip(".!")
