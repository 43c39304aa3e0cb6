"""GGUF files: every supported type is read within its rounding, in Hugging Face's order; a damaged file is refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssd.errors import CheckpointError
from ssd.models.config import ModelConfig
from ssd.models.gguf import GGUFFile
from ssd.models.weights import expected_tensors, load_checkpoint

ROOT = Path(__file__).parents[2]
HEADS, KV_HEADS, HIDDEN, INNER, VOCABULARY = 4, 2, 64, 96, 1500  # the embedding spans several chunks of rows

Array = npt.NDArray[np.float32]

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module, suffix = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[module]}.{suffix}"
    return f"{GGUF_NAMES[module]}.{suffix}"


def as_llama_cpp_converts(name: str, value: Array) -> Array:
    """The converter's `permute`: it interleaves the two halves of each head's rows."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)


def config(**changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_layers": 2, "num_heads": HEADS,
        "num_kv_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "frequency_factors": None, "max_position": 512, "tie_embeddings": False,
    }  # fmt: skip
    return ModelConfig(**settings | changes)


def random_tensors(model: ModelConfig) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in expected_tensors(model).items()}


def write(
    path: Path,
    tensors: dict[str, Array],
    kind: str = "F32",
    architecture: str = "llama",
    vector_kind: str = "F32",
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write a model like llama.cpp's converter: matrices in `kind`, vectors in F32, as the converter always does."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    extra(writer)
    for name, value in tensors.items():
        stored = as_llama_cpp_converts(name, value) if architecture == "llama" else value
        stored_kind = gguf.GGMLQuantizationType[vector_kind if value.ndim == 1 else kind]
        writer.add_tensor(gguf_name(name), gguf.quantize(stored, stored_kind), raw_dtype=stored_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def largest_rounding(kind: str, value: Array) -> Array:
    """The largest rounding error of each number of a matrix in this type; a block is 32 numbers of a row."""
    blocks = value.reshape(value.shape[0], -1, 32)
    peak = np.abs(blocks).max(axis=-1, keepdims=True)
    spread = blocks.max(axis=-1, keepdims=True) - blocks.min(axis=-1, keepdims=True)
    bound = {
        "F32": 0 * blocks,
        "F16": np.abs(blocks) * 2.0**-11,
        "BF16": np.abs(blocks) * 2.0**-8,
        "Q8_0": np.broadcast_to(peak / 127 / 2, blocks.shape),
        "Q4_0": np.broadcast_to(
            peak / 8, blocks.shape
        ),  # half a step, but a whole step at the end of the range that is cut off
        "Q4_1": np.broadcast_to(spread / 15 / 2, blocks.shape),
    }[kind]
    scales = 0 if kind in ("F32", "F16", "BF16") else peak * 2.0**-9  # a block's scale and offset are F16
    return (bound + scales + (2.0**-24 if kind != "F32" else 0)).reshape(value.shape)


def numpy(tensor: Tensor) -> Array:
    return np.asarray(tensor.numpy(), dtype=np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_type_is_read_within_its_rounding(tmp_path: Path, kind: str) -> None:
    source = random_tensors(config())
    found = load_checkpoint(write(tmp_path / "tiny.gguf", source, kind), torch.float32).tensors
    assert found.keys() == source.keys()
    for name, value in source.items():
        bound = largest_rounding("F32" if value.ndim == 1 else kind, value if value.ndim == 2 else value.reshape(1, -1))
        assert (np.abs(numpy(found[name]) - value) <= bound.reshape(value.shape)).all(), name


def test_tensors_have_the_requested_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", random_tensors(config()), "Q8_0")
    exact, rounded = (load_checkpoint(path, dtype).tensors for dtype in (torch.float32, torch.bfloat16))
    assert all(torch.equal(rounded[name], tensor.bfloat16()) for name, tensor in exact.items())


def test_a_file_is_read_in_inference_mode_too(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", random_tensors(config()), "Q8_0")
    expected = load_checkpoint(path, torch.float32).tensors
    with torch.inference_mode():
        found = load_checkpoint(path, torch.float32).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_q_and_k_of_qwen2_keep_their_rows_and_biases(tmp_path: Path) -> None:
    source = random_tensors(config(attention_bias=True))
    checkpoint = load_checkpoint(write(tmp_path / "tiny.gguf", source, architecture="qwen2"), torch.float32)
    assert checkpoint.config.attention_bias
    assert not checkpoint.config.attention_output_bias
    assert all(np.array_equal(numpy(checkpoint.tensors[name]), value) for name, value in source.items())


def test_qwen3_has_its_head_norms(tmp_path: Path) -> None:
    source = random_tensors(config(qk_norm=True))
    checkpoint = load_checkpoint(write(tmp_path / "tiny.gguf", source, architecture="qwen3"), torch.float32)
    assert checkpoint.config.qk_norm
    assert all(np.array_equal(numpy(checkpoint.tensors[name]), value) for name, value in source.items())


@pytest.mark.parametrize("vector_kind", ["F32", "F16", "BF16"])
def test_biases_of_q_and_k_are_reordered_too(tmp_path: Path, vector_kind: str) -> None:
    source = random_tensors(config(attention_bias=True, attention_output_bias=True, mlp_bias=True))
    checkpoint = load_checkpoint(write(tmp_path / "tiny.gguf", source, vector_kind=vector_kind), torch.float32)
    for name, value in source.items():
        np.testing.assert_allclose(numpy(checkpoint.tensors[name]), value, rtol=2.0**-8 if value.ndim == 1 else 0)


def test_embeddings_are_tied_if_there_is_no_output_matrix(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path / "tiny.gguf", random_tensors(config(tie_embeddings=True))), torch.float32)
    assert checkpoint.config == config(tie_embeddings=True, rms_norm_eps=checkpoint.config.rms_norm_eps)
    assert (checkpoint.name, checkpoint.tokenizer, checkpoint.draft_vocab) == ("tiny", None, None)


def test_rope_factors_become_part_of_the_configuration(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HIDDEN // HEADS // 2, dtype=np.float32)
    path = write(
        tmp_path / "tiny.gguf", random_tensors(config()), extra=lambda writer: writer.add_tensor("rope_freqs.weight", factors)
    )
    checkpoint = load_checkpoint(path, torch.bfloat16)
    assert checkpoint.config.frequency_factors == tuple(factors.tolist())
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_metadata_equals_the_gguf_packages_reading(tmp_path: Path) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(["a", "", "ß€", "\n"])
        writer.add_token_types([1, 3, 4, 1])
        writer.add_array("some.floats", [0.5, -1.25])
        writer.add_array("some.flags", [True, False])
        writer.add_string("some.text", "naïve")
        writer.add_bool("some.flag", True)

    path = write(tmp_path / "tiny.gguf", {}, extra=extra)
    assert GGUFFile(path).metadata == {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_progress_rises_to_one(tmp_path: Path) -> None:
    fractions: list[float] = []
    load_checkpoint(write(tmp_path / "tiny.gguf", random_tensors(config())), torch.float32, fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_an_unsupported_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", random_tensors(config()), "Q5_0")
    with pytest.raises(CheckpointError, match=r"token_embd.weight as Q5_0; .* F32, F16, BF16, Q8_0, Q4_0, Q4_1"):
        load_checkpoint(path, torch.float32)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = random_tensors(config())
    del source["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensor model.layers.1.mlp.up_proj.weight;"):
        load_checkpoint(write(tmp_path / "tiny.gguf", source), torch.float32)


def test_a_surplus_tensor_is_named(tmp_path: Path) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros(4, dtype=np.float32))

    with pytest.raises(CheckpointError, match=r"surplus tensor blk.0.ffn_gate_inp.weight;"):
        load_checkpoint(write(tmp_path / "tiny.gguf", random_tensors(config()), extra=extra), torch.float32)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", {}, extra=lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        load_checkpoint(path, torch.float32)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'gemma'; the supported ones are llama, qwen2, qwen3"):
        load_checkpoint(write(tmp_path / "tiny.gguf", {}, architecture="gemma"), torch.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list([f"token {index}" for index in range(100)])

    small = {name: value for name, value in random_tensors(config()).items() if "layers" in name or "norm" in name}
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf", small, "Q8_0", extra=extra).read_bytes()


@given(data=st.data())
def test_a_truncated_file_is_refused_wherever_it_ends(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header_or_anywhere = st.integers(0, 4000) | st.integers(0, len(whole) - 1)
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(whole[: data.draw(header_or_anywhere)])
    with pytest.raises(CheckpointError, match="not a whole GGUF file") as refusal:
        load_checkpoint(path, torch.float32)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("these are notes, long enough to hold a header of the right length")
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        load_checkpoint(path, torch.float32)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        load_checkpoint(tmp_path / "absent.gguf", torch.float32)


WITHOUT_GGUF = """
import sys
sys.modules["gguf"] = None  # importing it now fails
import ssd.engine, tiny, shapes
from pathlib import Path
from ssd.errors import CheckpointError
from ssd.models.weights import read_config
try:
    read_config(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


def test_the_gguf_package_is_needed_for_gguf_files_alone(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "profiling")]
    command = [sys.executable, "-P", "-c", WITHOUT_GGUF, tmp_path / "model.gguf"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "model.gguf is a GGUF file, but the gguf package cannot be imported" in said
    assert said.endswith("run `pip install gguf`.\n") and said.count("\n") == 1
