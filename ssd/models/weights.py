"""Loading a checkpoint: a Hugging Face directory with safetensors, or a GGUF file.

The names and shapes of all tensors are checked against the configuration before the first weight is read. A checkpoint either
loads completely or is refused with an error that names the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssd.errors import CheckpointError, one_line
from ssd.models.config import ModelConfig
from ssd.models.quantise import SCALE
from ssd.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ssd.models.gguf import GGUFFile

DRAFT_VOCAB = "draft_vocab"
EMBEDDINGS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

_DTYPES = {"F64", "F32", "F16", "BF16"}
_DRAFT_VOCAB_DTYPES = {"I32", "I64"}


@dataclass
class Checkpoint:
    """A model in memory.

    tensors: by Hugging Face name ("model.layers.0.self_attn.q_proj.weight"), contiguous, exactly the names of
    `expected_tensors`. They have the requested dtype, except int8 matrices and their float32 scales. lm_head.weight is absent
    if the embeddings are tied. draft_vocab: [Vd] int32, ascending, the target id of each row of a draft's trimmed lm_head; None
    if the vocabulary is not trimmed. tokenizer: None if the directory has none.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    draft_vocab: Tensor | None
    tokenizer: Tokenizer | None
    name: str
    path: Path


def expected_tensors(
    config: ModelConfig, draft_vocab_size: int | None = None, int8: bool = False
) -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight of a model with this configuration. draft_vocab_size: rows of a trimmed lm_head. int8:
    the matrices are int8, each with one scale per output (ssd/models/quantise.py).

    A draft that borrows its target's embeddings has no embedding weight, and no lm_head either if the target's are tied.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if not config.borrows_embeddings:
        shapes[EMBEDDINGS] = (config.vocab_size, hidden)
    linears = {  # name: (out, in, has a bias)
        "self_attn.q_proj": (q_size, hidden, config.attention_bias),
        "self_attn.k_proj": (kv_size, hidden, config.attention_bias),
        "self_attn.v_proj": (kv_size, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, q_size, config.attention_output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    for layer in (f"model.layers.{index}" for index in range(config.num_layers)):
        for name, (out_size, in_size, has_bias) in linears.items():
            shapes[f"{layer}.{name}.weight"] = (out_size, in_size)
            if has_bias:
                shapes[f"{layer}.{name}.bias"] = (out_size,)
        for name, size in norms.items():
            shapes[f"{layer}.{name}.weight"] = (size,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes[LM_HEAD] = (draft_vocab_size or config.vocab_size, hidden)
    if int8:
        shapes |= {name + SCALE: shape[:1] for name, shape in shapes.items() if len(shape) == 2 and name != EMBEDDINGS}
    return shapes


def read_config(path: Path) -> ModelConfig:
    """Read a checkpoint's configuration without its weights. Raises CheckpointError."""
    if path.is_dir():
        return ModelConfig.from_directory(path)
    file = _open_gguf(path)
    return ModelConfig.from_gguf_metadata(file.metadata, file.tensor_names, file.frequency_factors)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each stored tensor by its Hugging Face name, without its values. Raises CheckpointError."""
    if not path.is_dir():
        return _open_gguf(path).shapes
    return _shapes_of(path, _file_of_each_tensor(path))


def load_checkpoint(path: Path, dtype: torch.dtype, progress: Callable[[float], None] | None = None) -> Checkpoint:
    """Load a Hugging Face directory (config.json with model.safetensors, whole or sharded) or a .gguf file.

    dtype: the dtype of the weights in memory, whatever the file stores. progress: called with the fraction loaded, 0 to 1.
    The config's eos_token_ids are extended with the tokenizer's. Raises CheckpointError.
    """
    progress = progress or (lambda fraction: None)
    if path.is_dir():
        checkpoint = _load_directory(path, dtype, progress)
    elif path.suffix == ".gguf":
        checkpoint = _load_gguf(path, dtype, progress)
    else:
        raise CheckpointError(f"{path} is neither a directory nor a .gguf file; give a Hugging Face checkpoint or a GGUF file.")
    if checkpoint.tokenizer is not None:
        ends = dict.fromkeys((*checkpoint.config.eos_token_ids, *checkpoint.tokenizer.eos_token_ids))
        checkpoint.config = replace(checkpoint.config, eos_token_ids=tuple(ends))
    progress(1.0)
    return checkpoint


def _open_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file.

    The reader is imported here, so that everything else works without the gguf package. Raises CheckpointError.
    """
    try:
        from ssd.models.gguf import GGUFFile
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a GGUF file, but the gguf package cannot be imported ({one_line(error)}); run `pip install gguf`."
        ) from error
    return GGUFFile(path)


def _load_gguf(path: Path, dtype: torch.dtype, progress: Callable[[float], None]) -> Checkpoint:
    file = _open_gguf(path)
    config = ModelConfig.from_gguf_metadata(file.metadata, file.tensor_names, file.frequency_factors)
    _check(path, file.shapes, expected_tensors(config))
    tokenizer = Tokenizer.from_gguf(file.metadata)
    tensors = file.tensors(dtype, config.num_heads, config.num_kv_heads, progress)
    return Checkpoint(config, tensors, None, tokenizer, path.stem, path)


def _load_directory(path: Path, dtype: torch.dtype, progress: Callable[[float], None]) -> Checkpoint:
    config = ModelConfig.from_directory(path)
    file_of = {
        name: file
        for name, file in _file_of_each_tensor(path).items()
        if not name.endswith("rotary_emb.inv_freq")  # a buffer of old checkpoints; it is computed instead
    }
    shapes = _shapes_of(path, file_of)
    draft_vocab_shape = shapes.pop(DRAFT_VOCAB, None)
    if draft_vocab_shape is not None and config.tie_embeddings and not config.borrows_embeddings:
        raise CheckpointError(
            f"{path} has a draft_vocab, so it needs an lm_head.weight of its own; set tie_word_embeddings to false in its config.json."
        )
    # Some tied checkpoints store the embedding twice.
    repeated_head = config.tie_embeddings and LM_HEAD in shapes and EMBEDDINGS in shapes
    int8 = any(name.endswith(SCALE) for name in shapes)
    expected = expected_tensors(config, draft_vocab_shape[0] if draft_vocab_shape else None, int8)
    _check(path, shapes, expected | ({LM_HEAD: expected[EMBEDDINGS]} if repeated_head else {}))

    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(file_of.values()):
        with safe_open(file, framework="pt") as handle:
            for name in (name for name in file_of if file_of[name] == file):
                tensor = handle.get_tensor(name)
                # Copy even if the dtype is the same: the copy is aligned, and does not change when the file is replaced.
                tensors[name] = tensor.to(_dtype_in_memory(name, file_of, dtype), copy=True)
                progress(len(tensors) / len(file_of))
    if repeated_head and not torch.equal(tensors.pop(LM_HEAD), tensors[EMBEDDINGS]):
        raise CheckpointError(
            f"{path} ties its embeddings but has another lm_head.weight; set tie_word_embeddings to false in its config.json."
        )
    draft_vocab = tensors.pop(DRAFT_VOCAB, None)
    if draft_vocab is not None:
        _check_draft_vocab(path, draft_vocab, config.vocab_size)
    return Checkpoint(config, tensors, draft_vocab, Tokenizer.from_directory(path), path.resolve().name, path)


def _dtype_in_memory(name: str, names: Collection[str], dtype: torch.dtype) -> torch.dtype:
    if name == DRAFT_VOCAB:
        return torch.int32
    if name.endswith(SCALE):
        return torch.float32
    return torch.int8 if name + SCALE in names else dtype


def _file_of_each_tensor(path: Path) -> dict[str, Path]:
    """The file that each tensor is read from. An index of shards decides; without one it is model.safetensors.

    A tensor that the index does not name is not read, and neither is a file: a shard may hold old copies.
    """
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        return _assigned_files(path, index)
    if not whole.is_file():
        raise CheckpointError(f"{path} has no model.safetensors; convert its weights to safetensors, or give a GGUF file.")
    with _opened(whole) as handle:
        return dict.fromkeys(handle.keys(), whole)


def _assigned_files(path: Path, index: Path) -> dict[str, Path]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        read = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=without_duplicates)
        if not isinstance(read, dict) or not isinstance(read.get("weight_map"), dict) or not read["weight_map"]:
            raise ValueError("it has no weight_map")
        assigned = read["weight_map"]
        if not all(isinstance(shard, str) for shard in assigned.values()):
            raise ValueError("a tensor's file is not a name")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not an index of safetensors shards ({one_line(error)}); fetch the checkpoint again."
        ) from error
    for shard in sorted(set(assigned.values())):
        name = PurePath(shard)
        if name.is_absolute() or ".." in name.parts:  # as it is written: in the hub's cache, a shard is a link to elsewhere
            raise CheckpointError(f"{index} names the shard {shard}, which is outside its folder; fetch the checkpoint again.")
        if not (path / name).is_file():
            raise CheckpointError(f"{path} lacks the shard {shard}, which its index names; fetch the checkpoint again.")
    return {name: path / shard for name, shard in assigned.items()}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({one_line(error)}); it may be truncated, so fetch it again."
        ) from error


def _shapes_of(path: Path, file_of: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in dict.fromkeys(file_of.values()):
        shapes |= _read_shapes(path, file, file_of)
    return shapes


def _read_shapes(path: Path, file: Path, file_of: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that is read from this file, from the file's header only."""
    shapes = {}
    with _opened(file) as handle:
        names = [name for name in file_of if file_of[name] == file]
        if missing := set(names) - set(handle.keys()):
            raise CheckpointError(f"{file} lacks {_some(missing)}, which the index of {path} assigns to it; fetch it again.")
        for name in names:
            view = handle.get_slice(name)
            stored, allowed = view.get_dtype(), _DTYPES
            if name == DRAFT_VOCAB:
                allowed = _DRAFT_VOCAB_DTYPES
            elif name + SCALE in file_of:
                allowed = {"I8"}
            if stored not in allowed:
                raise CheckpointError(
                    f"{file} stores {name} as {stored}; the supported types are {', '.join(sorted(allowed))}."
                )
            shapes[name] = tuple(view.get_shape())
    return shapes


def _check(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for problem, names in (("lacks", expected.keys() - shapes.keys()), ("has the surplus", shapes.keys() - expected.keys())):
        if names:
            raise CheckpointError(f"{path} {problem} {_some(names)}; it is not the model that its configuration describes.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{path} has {name} of shape {list(shapes[name])}, but its configuration asks for {list(shape)}."
            )


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"tensor {first}" + (f" and {len(others)} more" if others else "")


def _check_draft_vocab(path: Path, ids: Tensor, vocab_size: int) -> None:
    if ids.dim() != 1 or not len(ids) or ids[0] < 0 or ids[-1] >= vocab_size or not bool((ids.diff() > 0).all()):
        raise CheckpointError(
            f"{path} has a draft_vocab that is not a list of ascending ids below {vocab_size}; write it again."
        )
