"""Reading a GGUF file: its metadata, and its dequantised tensors under their Hugging Face names.

The `gguf` package does the reading and the arithmetic. Two of its slow paths are avoided here: its reader makes several NumPy
views for every string of the vocabulary (this takes seconds), and its `dequantize` works on 16 rows at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssd.errors import CheckpointError, one_line

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")

FREQUENCY_FACTORS = "rope_freqs.weight"

_CHUNK_BYTES = 1 << 18  # quantised bytes per job: their float32 values still fit in the second-level cache

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class _Reader(gguf.GGUFReader):
    """gguf's reader, except that an array is one part of its field instead of one or two parts per element."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[gguf.GGUFValueType]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        element = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count, start = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if element == gguf.GGUFValueType.STRING:
            strings, end = _strings(self.data.data, start, count)
            part = np.array(strings, dtype=object)
        elif element in self.gguf_scalar_to_np:
            part = self._get(start, self.gguf_scalar_to_np[element], count)
            end = start + part.nbytes
        else:
            raise ValueError(f"an array of {element.name} is not supported.")
        return end - orig_offs, [part], [0], [gguf.GGUFValueType.ARRAY, element]


def _strings(data: memoryview, start: int, count: int) -> tuple[list[str], int]:
    """`count` strings, each stored after its length in 8 bytes; and the offset after the last."""
    unpack_length, strings = struct.Struct("<Q").unpack_from, []
    for _ in range(count):
        (length,) = unpack_length(data, start)
        start += 8 + length
        strings.append(str(data[start - length : start], "utf-8"))
    return strings, start


class GGUFFile:
    """An opened GGUF file.

    metadata: every key with its value; arrays are lists. shapes: the shape of every tensor, by Hugging Face name; a tensor that
    the family does not have keeps its GGUF name. tensor_names: names as the GGUF file spells them. frequency_factors: the
    values of rope_freqs.weight, which is not among the tensors.
    Raises CheckpointError for a file that is damaged, truncated or in several parts, and for a tensor type outside TYPES.
    """

    def __init__(self, path: Path) -> None:
        try:
            reader = _Reader(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"there is no file {path}; check the name.") from error
        except (OSError, ValueError, LookupError, OverflowError, struct.error) as error:
            raise CheckpointError(
                f"{path} is not a whole GGUF file ({one_line(error)}); it may be truncated, so fetch it again."
            ) from error
        if reader.byte_order != "I":
            raise CheckpointError(f"{path} is a GGUF file with the other byte order; convert it for this machine.")
        self.metadata: dict[str, Any] = {
            name: field.parts[field.data[0]].tolist() if field.types[:1] == [gguf.GGUFValueType.ARRAY] else field.contents()
            for name, field in reader.fields.items()
        }
        if self.metadata.get("split.count", 0) > 1:
            raise CheckpointError(
                f"{path} is one of {self.metadata['split.count']} parts; join them with llama-gguf-split --merge."
            )
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in TYPES:
                raise CheckpointError(
                    f"{path} stores {tensor.name} as {tensor.tensor_type.name}; the supported types are {', '.join(TYPES)}."
                )
        self.tensor_names = {tensor.name for tensor in reader.tensors}
        self.frequency_factors: tuple[float, ...] | None = None
        self._tensors: dict[str, gguf.ReaderTensor] = {}
        for tensor in reader.tensors:
            if tensor.name == FREQUENCY_FACTORS:
                self.frequency_factors = tuple(_values(tensor.tensor_type.name, tensor.data).flatten().tolist())
            else:
                self._tensors[_canonical_name(tensor.name)] = tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in self._tensors.items()}

    def tensors(self, dtype: torch.dtype, heads: int, kv_heads: int, progress: Callable[[float], None]) -> dict[str, Tensor]:
        """Every tensor in this dtype, dequantised on torch.get_num_threads() threads. progress: called with the fraction done.

        For the architecture "llama", llama.cpp's converter reorders the rows of q and k for its interleaved rope
        (LlamaModel.permute in convert_hf_to_gguf.py). Here they are put back in Hugging Face's order.
        """
        interleaved = {"q_proj": heads, "k_proj": kv_heads} if self.metadata["general.architecture"] == "llama" else {}
        shapes, tensors, jobs = self.shapes, {}, []
        for name, tensor in self._tensors.items():
            kind, rows = tensor.tensor_type.name, np.asarray(tensor.data)
            if rows.ndim == 1:  # a vector is small; dequantise it first, because reordering moves elements, not blocks
                kind, rows = "F32", _values(kind, rows)
            for module, count in interleaved.items():
                if f".{module}." in name:
                    rows = _half_rotation_order(rows, count)
            tensors[name] = torch.empty(shapes[name], dtype=dtype)
            step = max(1, _CHUNK_BYTES // rows[:1].nbytes)
            jobs += [(kind, rows[i : i + step], tensors[name][i : i + step]) for i in range(0, len(rows), step)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for done, _ in enumerate(pool.map(_dequantise, *zip(*jobs, strict=True)), start=1):
                progress(done / len(jobs))
        return tensors


def _canonical_name(name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight. An unknown name is returned unchanged."""
    module, _, suffix = name.rpartition(".")
    layer = ""
    if module.startswith("blk."):
        _, index, module = module.split(".", 2)
        layer = f"model.layers.{index}."
    return f"{layer}{_MODULES[module]}.{suffix}" if module in _MODULES else name


def _half_rotation_order(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Reorder each head's rows, even ones first, then odd ones: pairs (2i, 2i + 1) become (i, i + head_dim / 2)."""
    by_pair = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return by_pair.swapaxes(1, 2).reshape(rows.shape)


def _values(kind: str, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values of rows as stored: float32, or float16 for F16."""
    if kind in ("F32", "F16"):
        return np.array(rows)  # a copy, because torch rejects read-only arrays
    values: npt.NDArray[Any] = getattr(gguf.quants, kind).dequantize_rows(np.ascontiguousarray(rows))
    return values


def _dequantise(kind: str, rows: npt.NDArray[Any], out: Tensor) -> None:
    with torch.inference_mode():  # `out` is an inference tensor if the caller's thread is in that mode
        out.copy_(torch.from_numpy(_values(kind, rows)))
