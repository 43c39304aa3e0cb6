"""Text to token ids and back: transformers' fast tokenizer, read from a directory or built from a GGUF file's vocabulary.

Also here: incremental decoding of a growing text (TextStream), and the check that a draft has its target's vocabulary
(check_compatible).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from ssd.errors import CheckpointError, SsdError, one_line
from ssd.models.chat import ChatTemplate, Message, Tool

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types

# The patterns that split text before the merges, from each model's own tokenizer.json.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace("{1,3}", "")

_QUIET = {"verbose": False}  # no warning for a prompt over the context: the engine refuses it with a better error

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """A model's tokenizer.

    eos_token_ids: the end-of-text ids that the tokenizer knows; the model's configuration may name more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        end = tokenizer.eos_token_id
        self.eos_token_ids: tuple[int, ...] = () if end is None else (int(end),)

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer | None:
        """The tokenizer in a Hugging Face checkpoint's folder, or None if there is none. Raises CheckpointError."""
        if not any((path / name).is_file() for name in _FILES):
            return None
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # every backend raises its own types
            raise CheckpointError(
                f"the tokenizer in {path} cannot be read: {one_line(error)}; fetch the checkpoint again."
            ) from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise CheckpointError(f"the tokenizer in {path} has no tokenizer.json; save it with transformers' fast tokenizer.")
        return cls(tokenizer)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer | None:
        """The byte-level BPE tokenizer of a GGUF file's tokenizer.* keys, or None if it has none. Raises CheckpointError."""

        def value(key: str, default: Any = None) -> Any:
            return metadata.get(f"tokenizer.ggml.{key}", default)

        model, pre = value("model"), value("pre", "default")
        if model is None:
            return None
        if model != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise CheckpointError(
                f"the GGUF file's tokenizer is {model!r} with pre-tokenizer {pre!r}; supported is 'gpt2' with one of "
                f"{', '.join(_PRE_TOKENIZERS)}."
            )
        tokens, types = value("tokens", []), value("token_type", [])
        try:
            bpe = models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=[tuple(merge.split(" ")) for merge in value("merges", [])],
                ignore_merges=pre in _LLAMA3,
            )
        except Exception as error:  # the tokenizers package raises plain Exception
            raise CheckpointError(f"the GGUF file's vocabulary cannot be used: {one_line(error)}; convert it again.") from error
        backend = Backend(bpe)
        backend.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
        backend.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
        typed = list(zip(tokens, types, strict=False))
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, t in typed if t == _CONTROL])
        backend.add_tokens([AddedToken(token, normalized=False) for token, t in typed if t == _USER_DEFINED])

        named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: value(f"{key}_token_id") for name, key in named.items()}
        return cls(
            PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_object=backend,
                add_bos_token=ids["bos_token"] is not None and bool(value("add_bos_token", pre in _LLAMA3)),
                chat_template=_chat_template(metadata),
                **{name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)},
            )
        )

    @cached_property
    def _tokens(self) -> list[str | None]:
        """The token of each id; None for an id without a token."""
        vocabulary = self._tokenizer.get_vocab()
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        return tokens

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special)

    def is_added(self, token_id: int) -> bool:
        """Whether this is a special token or another one that was added to the vocabulary, and no piece of text."""
        return token_id in self._tokenizer.added_tokens_decoder

    @property
    def vocab_size(self) -> int:
        """The number of ids: one more than the largest."""
        return len(self._tokens)

    def token_of(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, or None if the id has none."""
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else None

    def is_visible(self, token_id: int) -> bool:
        """Whether `decode` shows this token: it exists and is not a special token."""
        return self.token_of(token_id) is not None and token_id not in self._special_ids

    def encode(self, text: str) -> list[int]:
        """The ids of raw text. If the model's own tokenizer begins a text with a BOS token, they begin with one.

        A text that is written with its BOS token does not get a second one. Raises UnicodeEncodeError.
        """
        ids = self._encode(text)
        return ids[1:] if self._adds_bos and ids[1:2] == ids[:1] else ids

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        text.encode()  # half of a surrogate pair is no text
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, **_QUIET))

    @cached_property
    def _adds_bos(self) -> bool:
        written = self._encode("a", add_special_tokens=False)
        return self._encode("a")[: 1 + len(written)] == [self._tokenizer.bos_token_id, *written]

    def chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The ids of a conversation, see `ChatTemplate.render`. Raises SsdError, UnicodeEncodeError."""
        return self._encode(self._template.render(messages, tools, variables), add_special_tokens=False)

    def user_turn(self, text: str) -> list[int]:
        """The ids of a conversation that breaks off in its first user message, after `text`.

        Raises SsdError if the model has no chat template, or one that does not show the message.
        """
        return self._encode(self._template.around_a_message[0] + text, add_special_tokens=False)

    def turn_end(self) -> str:
        """The first word that the chat template puts after a user's message (often the text of a special token), or ""."""
        return next(iter(self._template.around_a_message[1].split()), "")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class TextStream:
    """The text of ids that arrive a few at a time. The joined results of `push` and `flush` equal `decode` of all the ids.

    A character may span several tokens, and byte tokens of a SentencePiece vocabulary are decoded together. Such tokens are
    held back until their text can no longer change. Decoding starts at the last token before them, so the cost of a push does
    not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the last token whose text was returned, and the tokens held back after it
        self._returned = 0  # characters of that first token, which were returned already

    def push(self, ids: Iterable[int]) -> str:
        """Take further ids; return the text that can no longer change."""
        return "".join(self._push(token_id) for token_id in ids if self._tokenizer.is_visible(token_id))

    def flush(self) -> str:
        """The text still held back, at the end of the ids."""
        text = self._tokenizer.decode(self._ids)[self._returned :]
        self._ids, self._returned = [], 0
        return text

    def _push(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or _BYTE_PIECE.fullmatch(self._tokenizer.token_of(token_id) or ""):
            return ""
        piece = text[self._returned :]
        self._ids, self._returned = [token_id], len(self._tokenizer.decode([token_id]))
        return piece


def _chat_template(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """A GGUF file's chat template, or its templates by name if it has more than the default one."""
    key = "tokenizer.chat_template"
    named = {name.removeprefix(f"{key}."): template for name, template in metadata.items() if name.startswith(f"{key}.")}
    default = metadata.get(key)
    if not named:
        return default
    return named if default is None else {"default": default, **named}


def check_compatible(target: Tokenizer, draft: Tokenizer) -> list[int]:
    """The ids that stand for different special or added tokens in the two tokenizers, ascending. A draft must not propose them.

    Raises SsdError if any other id that both tokenizers have stands for different tokens.
    """
    renamed = []
    for token_id in range(min(target.vocab_size, draft.vocab_size)):
        of_target, of_draft = target.token_of(token_id), draft.token_of(token_id)
        if of_target is None or of_draft is None or of_target == of_draft:
            continue
        if not (target.is_added(token_id) and draft.is_added(token_id)):
            raise SsdError(
                f"the draft's tokenizer does not fit the target's: id {token_id} is {of_target!r} for the target and "
                f"{of_draft!r} for the draft; use a draft with the target's tokenizer."
            )
        renamed.append(token_id)
    return renamed


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_GPT2: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # these also try a whole word before merging, and begin with a BOS token

_PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": [pre_tokenizers.Digits(individual_digits=True), *_GPT2],
    "qwen2": _split(_QWEN2_SPLIT),
    **dict.fromkeys(_LLAMA3, _split(_LLAMA3_SPLIT)),
}
