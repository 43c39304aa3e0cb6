"""Tokenizers: built from a GGUF vocabulary like the model's own, streamed without wrong characters, compared between models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ssd.errors import CheckpointError, SsdError
from ssd.models.gguf import GGUFFile
from ssd.models.registry import resolve
from ssd.models.tokenizer import TextStream, Tokenizer, check_compatible

SPECIAL = ["<|begin|>", "<|end|>"]
MERGES = [
    "Ġ 1",
    "1 2",
    "12 3",
    "123 4",
    "h i",
    "Ġ hi",
    "Ġ Ġ",
    "ð Ł",
]  # a space and a digit are merged first, if both are in one piece
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|begin|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|begin|>assistant:{% endif %}"
)


def metadata(pre: str = "smollm", **changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary as a GGUF file stores it: special tokens, every byte, the merges, one user-defined token."""
    pieces = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<think>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": SPECIAL + pieces,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(pieces) - 1) + [4],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
    } | {f"tokenizer.{name}": value for name, value in changes.items()}


def build(pre: str = "smollm", **changes: Any) -> Tokenizer:
    tokenizer = Tokenizer.from_gguf(metadata(pre, **changes))
    assert tokenizer is not None
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return [tokenizer.token_of(token_id) for token_id in tokenizer.encode(text)]


def sentencepiece() -> Tokenizer:
    """A vocabulary like Llama 2's: word pieces, and byte tokens for everything else."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁he", "llo", "▁▁", "é", "€", "\N{REPLACEMENT CHARACTER}"]
    tokens = words + [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in words[:3]])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"))


BYTE_LEVEL, SENTENCEPIECE = build(), sentencepiece()


# From a GGUF vocabulary -------------------------------------------------------------------------------------------------------


@given(text=st.text())
@pytest.mark.parametrize("pre", ["smollm", "default", "gpt-2", "llama-bpe", "llama3"])
def test_decoding_encoded_text_gives_the_text(pre: str, text: str) -> None:
    text = text.replace("<|", "")
    tokenizer = build(pre, **{"ggml.add_bos_token": False})
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "pre,expected",
    [
        ("smollm", ["Ġ", "1", "2", "3", "4"]),  # every digit by itself
        ("gpt-2", ["Ġ1", "2", "3", "4"]),  # a space is joined to its number
        ("default", ["Ġ1", "2", "3", "4"]),
        ("llama3", ["Ġ", "123", "4"]),  # three digits at a time
        ("qwen2", ["Ġ", "1", "2", "3", "4"]),
    ],
)
def test_numbers_are_split_by_the_pre_tokenizers_rule(pre: str, expected: list[str]) -> None:
    assert pieces(build(pre, **{"ggml.add_bos_token": False}), " 1234") == expected


def test_spaces_before_a_digit_stay_together_for_smollm() -> None:
    assert pieces(BYTE_LEVEL, "  1") == ["ĠĠ", "1"]


def test_qwen2_composes_characters() -> None:
    tokenizer = build("qwen2")
    assert tokenizer.decode(tokenizer.encode("e\N{COMBINING ACUTE ACCENT}")) == "é"


def test_special_tokens_are_single_ids_and_not_shown_in_text() -> None:
    assert BYTE_LEVEL.encode("<|begin|>hi<|end|>") == [0, BYTE_LEVEL.encode("hi")[0], 1]
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("<|begin|>hi<|end|>")) == "hi"


@pytest.mark.parametrize("pre,expected", [("llama3", ["Ġzz"]), ("smollm", ["Ġ", "z", "z"])])
def test_llama3_encodes_a_whole_word_that_no_merge_reaches(pre: str, expected: list[str]) -> None:
    described = metadata(pre)
    tokens, types = (described[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    tokenizer = build(pre, **{"ggml.tokens": [*tokens, "Ġzz"], "ggml.token_type": [*types, 1], "ggml.add_bos_token": False})
    assert pieces(tokenizer, " zz") == expected


def test_user_defined_tokens_are_single_ids_and_shown_in_text() -> None:
    assert pieces(BYTE_LEVEL, "hi<think>") == ["hi", "<think>"]
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("hi<think>")) == "hi<think>"


def test_ids_can_be_looked_up_in_the_vocabulary() -> None:
    assert BYTE_LEVEL.vocab_size == len(metadata()["tokenizer.ggml.tokens"])
    assert (BYTE_LEVEL.token_of(1), BYTE_LEVEL.token_of(-1), BYTE_LEVEL.token_of(10**6)) == ("<|end|>", None, None)
    assert BYTE_LEVEL.eos_token_ids == (1,)


@pytest.mark.parametrize(
    "pre,flag,begins",
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False), ("smollm", True, True)],
)
def test_raw_text_begins_with_a_bos_token_only_if_the_model_has_one(pre: str, flag: bool | None, begins: bool) -> None:
    tokenizer = build(pre, **({} if flag is None else {"ggml.add_bos_token": flag}))
    assert (tokenizer.encode("hi")[0] == 0) == begins


@pytest.fixture(params=["GGUF", "directory"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Tokenizer]:
    """Builds a tokenizer from GGUF metadata, or saves it so and reads it from the directory."""

    def build_or_load(pre: str, **changes: Any) -> Tokenizer:
        if request.param == "GGUF":
            return build(pre, **changes)
        build(pre, **changes)._tokenizer.save_pretrained(tmp_path)
        loaded = Tokenizer.from_directory(tmp_path)
        assert loaded is not None
        return loaded

    return build_or_load


@pytest.mark.parametrize(
    "text,expected",
    [
        ("hi", ["<|begin|>", "hi"]),
        ("<|begin|>hi", ["<|begin|>", "hi"]),
        ("<|begin|>", ["<|begin|>"]),
        ("<|begin|><|begin|>hi", ["<|begin|>", "<|begin|>", "hi"]),
        ("hi<|begin|>hi", ["<|begin|>", "hi", "<|begin|>", "hi"]),
        ("<|begin|>hi<|begin|>hi", ["<|begin|>", "hi", "<|begin|>", "hi"]),
        (" <|begin|>hi", ["<|begin|>", "Ġ", "<|begin|>", "hi"]),
        ("<|end|>hi", ["<|begin|>", "<|end|>", "hi"]),
    ],
)
def test_raw_text_that_is_written_with_its_bos_token_gets_no_second_one(
    read: Callable[..., Tokenizer], text: str, expected: list[str]
) -> None:
    assert pieces(read("llama-bpe"), text) == expected


@pytest.mark.parametrize("text", ["<|begin|>", "<|begin|>hi", "<|begin|><|begin|>hi", "hi<|begin|>"])
def test_a_tokenizer_that_adds_no_bos_token_keeps_the_written_ones(read: Callable[..., Tokenizer], text: str) -> None:
    assert pieces(read("smollm"), text).count("<|begin|>") == text.count("<|begin|>")


def test_a_bos_token_that_is_also_the_end_of_text_is_added_once(read: Callable[..., Tokenizer]) -> None:
    tokenizer = read("llama-bpe", **{"ggml.eos_token_id": 0})
    assert pieces(tokenizer, "<|begin|>hi<|begin|>") == ["<|begin|>", "hi", "<|begin|>"]


def test_a_bos_token_that_the_template_writes_is_the_only_one(read: Callable[..., Tokenizer]) -> None:
    tokenizer = read("llama-bpe", chat_template="{{ bos_token }}" + TEMPLATE.replace("<|begin|>", ""))
    assert pieces(tokenizer, "hi")[0] == "<|begin|>"
    ids = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert [tokenizer.token_of(token_id) for token_id in ids].count("<|begin|>") == 1
    assert ids[0] == 0


def test_a_vocabulary_without_named_tokens_has_no_end_of_text() -> None:
    described = {key: value for key, value in metadata("llama-bpe").items() if not key.endswith("_token_id")}
    tokenizer = Tokenizer.from_gguf(described)
    assert tokenizer is not None
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"ggml.model": "llama"}, "'llama' with pre-tokenizer 'smollm'"),
        ({"ggml.pre": "tekken"}, "'gpt2' with pre-tokenizer 'tekken'; .*smollm, qwen2, llama-bpe"),
        ({"ggml.merges": ["h nothing"]}, "vocabulary cannot be used"),
    ],
)
def test_a_vocabulary_that_cannot_be_built_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_gguf(metadata(**changes))


def test_a_gguf_file_without_a_vocabulary_gives_no_tokenizer() -> None:
    assert Tokenizer.from_gguf({"general.architecture": "llama"}) is None


# Chat -------------------------------------------------------------------------------------------------------------------------


def test_chat_renders_the_template_up_to_the_start_of_the_answer() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    text = "<|begin|>system: be brief<|end|><|begin|>user: hi<|end|><|begin|>assistant:"
    assert BYTE_LEVEL.chat(messages) == BYTE_LEVEL.encode(text)


def test_chat_has_a_single_bos_token() -> None:
    ids = build("llama-bpe").chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 0
    assert ids[1] != 0


def test_chat_without_a_template_suggests_raw() -> None:
    with pytest.raises(SsdError, match="raw=True"):
        build(chat_template=None).chat([{"role": "user", "content": "hi"}])


def test_messages_that_the_template_refuses_raise_its_message() -> None:
    with pytest.raises(SsdError, match="no tools here"):
        BYTE_LEVEL.chat([{"role": "tool", "content": "hi"}])


# From a directory -------------------------------------------------------------------------------------------------------------


def test_the_tokenizer_saved_in_a_directory_is_read(tmp_path: Path) -> None:
    BYTE_LEVEL._tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded is not None
    text, messages = "<|begin|>hi 1234 naïve 🙂<think>", [{"role": "user", "content": "hi"}]
    assert loaded.encode(text) == BYTE_LEVEL.encode(text)
    assert loaded.decode(loaded.encode(text)) == BYTE_LEVEL.decode(BYTE_LEVEL.encode(text))
    assert loaded.chat(messages) == BYTE_LEVEL.chat(messages)
    assert loaded.eos_token_ids == BYTE_LEVEL.eos_token_ids


def test_a_directory_without_a_tokenizer_gives_no_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_directory(tmp_path) is None


def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    BYTE_LEVEL._tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model":')
    with pytest.raises(CheckpointError, match="cannot be read") as refusal:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(refusal.value)


# Streams ----------------------------------------------------------------------------------------------------------------------


@given(data=st.data())
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_joined_pieces_of_a_stream_equal_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    any_id = st.integers(0, tokenizer.vocab_size + 2) | st.integers(0, 9)  # the first ones are special tokens and words
    character = st.characters(codec="utf-8").map(lambda c: [tokenizer_id(tokenizer, byte) for byte in c.encode()])
    ids = [i for some in data.draw(st.lists(character | st.lists(any_id, max_size=3))) for i in some]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)))))
    stream = TextStream(tokenizer)
    text = "".join(stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True))
    assert tokenizer.decode(ids).startswith(text)
    assert text + stream.flush() == tokenizer.decode(ids)


def tokenizer_id(tokenizer: Tokenizer, byte: int) -> int:
    """The id of the token for this byte."""
    if tokenizer is SENTENCEPIECE:
        return 10 + byte
    return len(SPECIAL) + sorted(ByteLevel.alphabet()).index(BYTES_TO_CHARACTERS[byte])


def bytes_to_characters() -> dict[int, str]:
    """GPT-2's byte alphabet: a printable byte is itself, the others are the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTES_TO_CHARACTERS = bytes_to_characters()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_an_unfinished_character_is_held_back(tokenizer: Tokenizer) -> None:
    *begun, last = (tokenizer_id(tokenizer, byte) for byte in "🙂".encode())
    stream = TextStream(tokenizer)
    assert stream.push(begun) == ""
    assert stream.push([last]) + stream.flush() == "🙂"


def test_finished_text_is_not_held_back() -> None:
    stream = TextStream(BYTE_LEVEL)
    assert stream.push(BYTE_LEVEL.encode("hi 🙂 there")) == "hi 🙂 there"
    assert stream.flush() == ""


def test_a_word_keeps_its_space_if_a_push_begins_with_it() -> None:
    stream, (he, llo) = TextStream(SENTENCEPIECE), (4, 5)
    assert [stream.push([token_id]) for token_id in (he, llo, he, llo)] == ["he", "llo", " he", "llo"]


def test_bytes_that_form_no_character_are_shown_at_the_end() -> None:
    stream = TextStream(BYTE_LEVEL)
    assert stream.push([tokenizer_id(BYTE_LEVEL, 0xF0)]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


# Compatibility ----------------------------------------------------------------------------------------------------------------


def test_equal_and_longer_vocabularies_are_compatible() -> None:
    longer = metadata()["tokenizer.ggml.tokens"] + ["[PAD0]", "[PAD1]"]
    assert check_compatible(BYTE_LEVEL, BYTE_LEVEL) == []
    assert check_compatible(BYTE_LEVEL, build(**{"ggml.tokens": longer})) == []
    assert check_compatible(build(**{"ggml.tokens": longer}), BYTE_LEVEL) == []


def test_special_and_added_tokens_of_other_names_are_compatible_and_listed() -> None:
    tokens = metadata()["tokenizer.ggml.tokens"]
    renamed = ["<|start|>", *tokens[1:-1], "<plan>"]  # one special token, and one that is only added
    assert check_compatible(BYTE_LEVEL, build(**{"ggml.tokens": renamed})) == [0, len(tokens) - 1]


@pytest.mark.parametrize("ordinary", ["target", "draft"])
def test_a_token_that_is_added_in_one_vocabulary_only_must_be_the_same(ordinary: str) -> None:
    described = metadata()
    tokens, types = (described[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    tokenizers = {ordinary: build(**{"ggml.tokens": [*tokens[:-1], "zz"], "ggml.token_type": [*types[:-1], 1]})}
    with pytest.raises(SsdError, match=f"id {len(tokens) - 1} is"):
        check_compatible(tokenizers.get("target", BYTE_LEVEL), tokenizers.get("draft", BYTE_LEVEL))


def test_an_incompatible_vocabulary_is_refused_with_its_first_different_id() -> None:
    tokens = metadata()["tokenizer.ggml.tokens"]
    tokens[-1], tokens[-2] = "<plan>", "<step>"
    first = len(tokens) - 2
    with pytest.raises(SsdError, match=f"id {first} is 'ðŁ' for the target and '<step>' for the draft"):
        check_compatible(BYTE_LEVEL, build(**{"ggml.tokens": tokens, "ggml.merges": MERGES[:-1]}))


# SmolLM2 ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    try:
        return resolve("smollm2-135m")
    except SsdError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2_file).metadata)
    assert tokenizer is not None
    return tokenizer


def test_smollm2_encodes_and_decodes_like_transformers(smollm2: Tokenizer, smollm2_file: Path) -> None:
    # transformers splits every GGUF file of this kind by GPT-2's rule. SmolLM2 splits differently where several spaces,
    # or another mark, come before a digit, so the texts avoid those.
    reference = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    texts = [
        "",
        "Once upon a time, there were 1234 dragons; 3.14 of them flew.",
        "def add(a: int, b: int) -> int:\n    '''We'll add.'''\n\treturn a + b\n\n\n",
        "naïve café, 你好世界, Привет, עברית, 👩‍👩‍👧 🙂\u200d\x00\ufffd",
        "<|im_start|>user\nhi<|im_end|>\n<repo_name>x",
        "   leading, trailing   \n \n",
    ]
    for text in texts:
        ids = smollm2.encode(text)
        assert ids == reference.encode(text)
        assert smollm2.decode(ids) == reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        messages = [{"role": "user", "content": text}]
        assert smollm2.chat(messages) == reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_smollm2_splits_off_every_digit(smollm2: Tokenizer) -> None:
    assert pieces(smollm2, "gone.  40 left") == ["gone", ".", "ĠĠ", "4", "0", "Ġleft"]


def test_smollm2_has_its_own_end_of_text_id(smollm2: Tokenizer) -> None:
    assert [smollm2.token_of(token_id) for token_id in smollm2.eos_token_ids] == ["<|im_end|>"]
    assert smollm2.vocab_size == 49152
