"""A Hugging Face directory loads completely and equal to its source, or is refused with an error that names the fault."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from ssd.errors import CheckpointError
from ssd.models.config import ModelConfig
from ssd.models.weights import expected_tensors, load_checkpoint

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def write(path: Path, config: PreTrainedConfig, **options: Any) -> dict[str, Tensor]:
    """A random model as transformers writes it; returns its tensors."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(path, **options)
    tensors = model.state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write(tmp_path, LlamaConfig(**SIZES))
    return tmp_path


def rewrite(path: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of the only safetensors file."""
    tensors = load_file(path / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")


def reconfigure(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, torch.float32)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_checkpoint_loads_equal_to_its_source(tmp_path: Path, tied: bool, shard: str) -> None:
    source = write(tmp_path, LlamaConfig(**SIZES, tie_word_embeddings=tied), max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    checkpoint = load_checkpoint(tmp_path, torch.float32)
    assert_same(checkpoint.tensors, source)
    assert checkpoint.config.tie_embeddings is tied
    assert (checkpoint.name, checkpoint.path) == (tmp_path.name, tmp_path)
    assert checkpoint.draft_vocab is None
    assert checkpoint.tokenizer is None


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        MistralConfig(**SIZES, sliding_window=None),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES, head_dim=16),
    ],
    ids=lambda config: config.model_type,
)
def test_every_family_has_exactly_the_expected_tensors(tmp_path: Path, config: PreTrainedConfig) -> None:
    source = write(tmp_path, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    assert expected_tensors(ModelConfig.from_directory(tmp_path)) == shapes
    assert_same(load_checkpoint(tmp_path, torch.float32).tensors, source)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_have_the_requested_dtype(llama: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    source = {name: tensor.to(stored) for name, tensor in load_file(llama / "model.safetensors").items()}
    save_file(source, llama / "model.safetensors")
    assert_same(load_checkpoint(llama, dtype).tensors, {name: tensor.to(dtype) for name, tensor in source.items()})


def test_tensors_do_not_change_with_their_file(llama: Path) -> None:
    source = load_file(llama / "model.safetensors")
    expected = {name: tensor.clone() for name, tensor in source.items()}
    found = load_checkpoint(llama, torch.float32).tensors
    with (llama / "model.safetensors").open("r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes(1000))
    assert_same(found, expected)


def test_progress_rises_to_one(llama: Path) -> None:
    fractions: list[float] = []
    load_checkpoint(llama, torch.float32, fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 10


def test_a_missing_tensor_is_named(llama: Path) -> None:
    rewrite(llama, {Q_PROJ: None})
    assert f"lacks tensor {Q_PROJ};" in refusal(llama)


def test_a_surplus_tensor_is_named(llama: Path) -> None:
    rewrite(llama, {"model.layers.7.mlp.router.weight": torch.zeros(2)})
    assert "surplus tensor model.layers.7.mlp.router.weight;" in refusal(llama)


def test_a_wrong_shape_is_named_with_both_shapes(llama: Path) -> None:
    rewrite(llama, {Q_PROJ: torch.zeros(32, 31)})
    message = refusal(llama)
    assert f"{Q_PROJ} of shape [32, 31]" in message
    assert "[32, 32]" in message


def test_an_unsupported_dtype_is_named(llama: Path) -> None:
    rewrite(llama, {Q_PROJ: torch.zeros(32, 32, dtype=torch.int8)})
    assert f"{Q_PROJ} as I8; the supported types are BF16, F16, F32, F64" in refusal(llama)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(llama: Path, kept: int) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "not a whole safetensors file" in refusal(llama)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, LlamaConfig(**SIZES), max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"lacks the shard {shard.name}" in refusal(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint in several shards, and its tensors."""
    source = write(tmp_path, LlamaConfig(**SIZES), max_shard_size="20KB")
    return tmp_path, source


def add_to_shard(file: Path, **tensors: Tensor) -> None:
    save_file(load_file(file) | tensors, file)


def weight_map(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return found


def write_index(path: Path, assigned: dict[str, Any]) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": assigned}))


def shards_without(path: Path, name: str) -> list[Path]:
    return [file for file in sorted(path.glob("*.safetensors")) if file.name != weight_map(path)[name]]


@pytest.mark.parametrize("which", [0, -1])
def test_the_index_decides_which_shard_a_tensor_is_read_from(sharded: tuple[Path, dict[str, Tensor]], which: int) -> None:
    path, source = sharded
    add_to_shard(shards_without(path, Q_PROJ)[which], **{Q_PROJ: torch.zeros(32, 32)})
    assert_same(load_checkpoint(path, torch.float32).tensors, source)


@pytest.mark.parametrize(
    "surplus",
    [torch.zeros(3), torch.zeros(3, dtype=torch.int8), torch.zeros(2, 2, dtype=torch.complex64)],
    ids=lambda tensor: str(tensor.dtype),
)
@pytest.mark.parametrize("name", ["model.layers.7.mlp.router.weight", "draft_vocab", f"{Q_PROJ}_scale"])
def test_a_tensor_that_the_index_does_not_name_is_not_read(
    sharded: tuple[Path, dict[str, Tensor]], name: str, surplus: Tensor
) -> None:
    path, source = sharded
    add_to_shard(sorted(path.glob("*.safetensors"))[-1], **{name: surplus})
    checkpoint = load_checkpoint(path, torch.float32)
    assert_same(checkpoint.tensors, source)
    assert checkpoint.draft_vocab is None


def test_a_file_that_the_index_does_not_name_is_not_read(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, source = sharded
    (path / "model-00099-of-00099.safetensors").write_bytes(b"no safetensors at all")
    (path / "model.safetensors").write_bytes(b"nor here")
    assert_same(load_checkpoint(path, torch.float32).tensors, source)


def test_a_surplus_tensor_that_the_index_names_is_refused(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = sharded
    shard = sorted(path.glob("*.safetensors"))[0]
    add_to_shard(shard, **{"router.weight": torch.zeros(2)})
    write_index(path, weight_map(path) | {"router.weight": shard.name})
    assert "surplus tensor router.weight;" in refusal(path)


def test_a_tensor_that_its_shard_lacks_is_named_even_if_another_shard_has_it(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = sharded
    wrong = shards_without(path, Q_PROJ)[0]
    write_index(path, weight_map(path) | {Q_PROJ: wrong.name})
    message = refusal(path)
    assert message.startswith(f"{wrong} lacks tensor {Q_PROJ}, which the index")


def test_a_tensor_that_the_index_leaves_out_is_missing_even_if_a_shard_has_it(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = sharded
    write_index(path, {name: shard for name, shard in weight_map(path).items() if name != Q_PROJ})
    assert f"lacks tensor {Q_PROJ};" in refusal(path)


def test_one_shard_may_be_spelled_in_two_ways(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, source = sharded
    write_index(path, weight_map(path) | {Q_PROJ: f"./{weight_map(path)[Q_PROJ]}"})
    assert_same(load_checkpoint(path, torch.float32).tensors, source)


def test_a_shard_may_be_in_a_folder_of_the_checkpoint_or_a_link(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    path, source = sharded
    assigned, shard = weight_map(path), weight_map(path)[Q_PROJ]
    (path / "blobs").mkdir()
    (path / shard).rename(path / "blobs" / shard)
    write_index(path, {name: f"blobs/{file}" if file == shard else file for name, file in assigned.items()})
    assert_same(load_checkpoint(path, torch.float32).tensors, source)
    (path / shard).symlink_to(path / "blobs" / shard)
    write_index(path, assigned)
    assert_same(load_checkpoint(path, torch.float32).tensors, source)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_shard_outside_the_folder_is_refused(sharded: tuple[Path, dict[str, Tensor]], absolute: bool) -> None:
    path, _ = sharded
    shard = weight_map(path)[Q_PROJ]
    name = str(path / shard) if absolute else f"../{path.name}/{shard}"
    write_index(path, weight_map(path) | {Q_PROJ: name})
    assert f"names the shard {name}, which is outside" in refusal(path)


@pytest.mark.parametrize("tied", ["equal", "other", "unassigned"])
def test_a_tied_head_in_shards_counts_only_if_the_index_names_it(tmp_path: Path, tied: str) -> None:
    source = write(tmp_path, LlamaConfig(**SIZES, tie_word_embeddings=True), max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    embedding = source["model.embed_tokens.weight"]
    add_to_shard(shard, **{"lm_head.weight": embedding.clone() if tied == "equal" else torch.zeros_like(embedding)})
    if tied != "unassigned":
        write_index(tmp_path, weight_map(tmp_path) | {"lm_head.weight": shard.name})
    if tied == "other":
        assert "another lm_head.weight" in refusal(tmp_path)
    else:
        assert_same(load_checkpoint(tmp_path, torch.float32).tensors, source)


def test_an_int8_matrix_and_its_scale_may_be_in_different_shards(tmp_path: Path) -> None:
    source = write(tmp_path, LlamaConfig(**SIZES))
    matrices = [name for name, tensor in source.items() if tensor.dim() == 2 and name != "model.embed_tokens.weight"]
    weights = {name: tensor.to(torch.int8) if name in matrices else tensor for name, tensor in source.items()}
    scales = {f"{name}_scale": torch.rand(len(source[name])) for name in matrices}
    (tmp_path / "model.safetensors").unlink()
    save_file(weights, tmp_path / "weights.safetensors")
    save_file(scales, tmp_path / "scales.safetensors")
    write_index(tmp_path, dict.fromkeys(weights, "weights.safetensors") | dict.fromkeys(scales, "scales.safetensors"))
    assert_same(load_checkpoint(tmp_path, torch.float32).tensors, weights | scales)


@pytest.mark.parametrize(
    "text,reason",
    [
        ('{"weights": 1}', "it has no weight_map"),
        ("[]", "it has no weight_map"),
        ('{"weight_map": []}', "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": {"a": 3}}', "not a name"),
        ('{"weight_map": {"a": "x.safetensors", "b": null}}', "not a name"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "occurs twice"),
        ('{"weight_map": ', "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
    ids=lambda text: text[:40],
)
def test_a_broken_index_is_refused(llama: Path, text: str, reason: str) -> None:
    """Even beside a whole model.safetensors: the index decides."""
    (llama / "model.safetensors.index.json").write_text(text)
    message = refusal(llama)
    assert "not an index of safetensors shards" in message
    assert reason in message


def test_a_directory_without_safetensors_is_refused(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "no model.safetensors" in refusal(llama)


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "neither a directory nor a .gguf file" in refusal(tmp_path / "nothing")


def test_old_rotary_buffers_are_ignored(llama: Path) -> None:
    rewrite(llama, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert not any("inv_freq" in name for name in load_checkpoint(llama, torch.float32).tensors)


def test_a_tied_checkpoint_may_repeat_its_embedding_as_head(tmp_path: Path) -> None:
    source = write(tmp_path, LlamaConfig(**SIZES, tie_word_embeddings=True))
    rewrite(tmp_path, {"lm_head.weight": source["model.embed_tokens.weight"].clone()})
    assert_same(load_checkpoint(tmp_path, torch.float32).tensors, source)


def test_a_tied_checkpoint_with_another_head_is_refused(tmp_path: Path) -> None:
    write(tmp_path, LlamaConfig(**SIZES, tie_word_embeddings=True))
    rewrite(tmp_path, {"lm_head.weight": torch.zeros(96, 32)})
    assert "another lm_head.weight" in refusal(tmp_path)


def test_a_trimmed_draft_vocabulary_loads(llama: Path) -> None:
    head, ids = torch.randn(5, 32), torch.tensor([0, 3, 4, 50, 95], dtype=torch.int32)
    rewrite(llama, {"lm_head.weight": head, "draft_vocab": ids})
    checkpoint = load_checkpoint(llama, torch.bfloat16)
    assert checkpoint.draft_vocab is not None
    assert checkpoint.draft_vocab.dtype == torch.int32
    assert torch.equal(checkpoint.draft_vocab, ids)
    assert torch.equal(checkpoint.tensors["lm_head.weight"], head.bfloat16())
    assert "draft_vocab" not in checkpoint.tensors


@pytest.mark.parametrize("ids", [[0, 3, 3, 50, 95], [0, 3, 4, 50, 96], [-1, 3, 4, 50, 95], [[0, 1, 2, 3, 4]]])
def test_a_draft_vocabulary_that_is_not_ascending_ids_is_refused(llama: Path, ids: list[int]) -> None:
    vocab = torch.tensor(ids, dtype=torch.int32)
    rewrite(llama, {"lm_head.weight": torch.zeros(vocab.shape[0], 32), "draft_vocab": vocab})
    assert "ascending ids below 96" in refusal(llama)


def test_a_trimmed_head_that_does_not_fit_its_vocabulary_is_refused(llama: Path) -> None:
    rewrite(llama, {"draft_vocab": torch.arange(5, dtype=torch.int32)})
    assert "lm_head.weight of shape [96, 32]" in refusal(llama)


def test_a_trimmed_vocabulary_needs_a_head_of_its_own(llama: Path) -> None:
    rewrite(llama, {"lm_head.weight": torch.zeros(5, 32), "draft_vocab": torch.arange(5, dtype=torch.int32)})
    reconfigure(llama, tie_word_embeddings=True)
    assert "set tie_word_embeddings to false" in refusal(llama)
