"""One decoder for every family: the sequence of ops that turns rows of tokens into logits.

A forward pass knows only its `Rows`: each row has a token, a position, a KV slot to write and the keys it may see. Prefill,
decode, verification of a chain or tree, and the draft's branches differ only in their rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssd import ops
from ssd.errors import SsdError
from ssd.kv.cache import KVCache, Rows
from ssd.models.config import ModelConfig
from ssd.models.quantise import SCALE, dequantise, quantise
from ssd.options import EngineOptions, WeightsName

# What paged_attention takes: csrc/cuda_ops/forward.cpp, csrc/cpu/simd/kernels.h.
CUDA_HEAD_SIZES = (64, 80, 96, 128, 256)
MAX_CPU_HEAD_SIZE = 256
MAX_GROUP = {"cuda": 16, "cpu": 32}  # query heads that share a K/V head


def check_sizes(config: ModelConfig, device: torch.device) -> None:
    """Refuse a model whose sizes the device's ops do not take, before its weights are packed. Raises SsdError."""
    on_gpu, size, group = device.type == "cuda", config.head_dim, config.num_heads // config.num_kv_heads
    if on_gpu and size not in CUDA_HEAD_SIZES:
        sizes = ", ".join(map(str, CUDA_HEAD_SIZES))
        raise SsdError(f"the model's head size is {size}, and attention on a GPU takes {sizes}; use device='cpu'.")
    if not on_gpu and (size % 16 or size > MAX_CPU_HEAD_SIZE):
        raise SsdError(f"the model's head size is {size}, and attention takes multiples of 16 up to {MAX_CPU_HEAD_SIZE}.")
    if group > (most := MAX_GROUP[device.type]):
        raise SsdError(
            f"{group} query heads of the model share a K/V head, and attention takes at most {most} ({device.type})."
        )
    for name in ("hidden_size", "intermediate_size"):
        if on_gpu and getattr(config, name) % 8:
            raise SsdError(
                f"the model's {name} is {getattr(config, name)}, and on a GPU it must be a multiple of 8; use device='cpu'."
            )


@dataclass
class _Linear:
    weight: Tensor  # packed
    out_features: int
    epilogue: str
    bias: Tensor | None = None

    @classmethod
    def pack(cls, weight: Tensor, epilogue: str = "none", bias: Tensor | None = None, scale: Tensor | None = None) -> _Linear:
        return cls(ops.pack_weight(weight.contiguous(), epilogue, scale), weight.shape[0], epilogue, bias)

    def __call__(self, x: Tensor, residual: Tensor | None = None, float32_out: bool = False) -> Tensor:
        return ops.linear(x, self.weight, self.out_features, self.epilogue, self.bias, residual, float32_out)


@dataclass
class _Layer:
    input_norm: Tensor
    qkv: _Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    attention_out: _Linear
    mlp_norm: Tensor
    gate_up: _Linear
    down: _Linear


class Transformer:
    """A decoder-only transformer of the Llama family: RMSNorm, rotary grouped-query attention, SiLU-gated MLP.

    config: its sizes. dtype: the run dtype. vocab_size: the number of logits columns (a trimmed draft has fewer columns than
    embedding rows). Build it with `from_tensors`, or share another model's weights with `first_layers`.
    """

    def __init__(
        self, config: ModelConfig, table: Tensor, layers: list[_Layer], norm: Tensor, head: _Linear, cos_sin: Tensor
    ) -> None:
        self.config = config
        self.dtype = table.dtype
        self.device = table.device
        self.vocab_size = head.out_features
        self._table = table  # [vocabulary, d]
        self._layers = layers
        self._norm = norm
        self._head = head
        self._cos_sin = cos_sin  # [positions, head_dim] float32
        self._scale = config.head_dim**-0.5

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        tensors: dict[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        positions: int,
        columns: int | Tensor | None = None,
        weights: WeightsName = EngineOptions.weights,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> Transformer:
        """Pack a checkpoint's tensors into a model.

        tensors: by Hugging Face name; the dict is emptied, so that each tensor is freed once it is packed. An int8 weight comes
        with its scale. positions: the longest sequence. columns: the number of head rows to use, or their indices (None: all);
        a token without a row is never drawn. weights: format of the matrices, "bf16" (the run dtype), "int8", or "auto":
        int8 where it is stored. progress: called with the fraction packed.
        Raises SsdError for sizes that the device's kernels lack.
        """
        check_sizes(config, device)

        def take(name: str) -> Tensor:
            return tensors.pop(name).to(device, dtype)

        def take_all(names: list[str]) -> Tensor | None:
            return torch.cat([take(name) for name in names]) if names[0] in tensors else None

        of_head = columns if isinstance(columns, Tensor) else slice(columns)

        def pack(weight: Tensor, epilogue: str = "none", bias: Tensor | None = None) -> _Linear:
            rounded, scale = quantise(weight) if weights == "int8" else (weight, None)
            return _Linear.pack(rounded, epilogue, bias, scale)

        def linear(*names: str, epilogue: str = "none", rows: slice | Tensor = slice(None)) -> _Linear:
            """These linears fused into one."""
            bias = take_all([f"{name}.bias" for name in names])
            weight = torch.cat([tensors.pop(f"{name}.weight").to(device) for name in names])[rows]
            if f"{names[0]}.weight{SCALE}" not in tensors:
                return pack(weight.to(dtype), epilogue, bias)
            scale = torch.cat([tensors.pop(f"{name}.weight{SCALE}").to(device) for name in names])[rows]
            if weights != "bf16":
                return _Linear.pack(weight, epilogue, bias, scale)
            return _Linear.pack(dequantise(weight, scale).to(dtype), epilogue, bias)

        def layer(i: int) -> _Layer:
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            return _Layer(
                input_norm=take(f"model.layers.{i}.input_layernorm.weight"),
                qkv=linear(*(f"{attention}.{part}_proj" for part in "qkv")),
                q_norm=take(f"{attention}.q_norm.weight") if config.qk_norm else None,
                k_norm=take(f"{attention}.k_norm.weight") if config.qk_norm else None,
                attention_out=linear(f"{attention}.o_proj", epilogue="add"),
                mlp_norm=take(f"model.layers.{i}.post_attention_layernorm.weight"),
                gate_up=linear(f"{mlp}.gate_proj", f"{mlp}.up_proj", epilogue="silu_mul"),
                down=linear(f"{mlp}.down_proj", epilogue="add"),
            )

        layers = []
        for i in range(config.num_layers):
            layers.append(layer(i))
            progress((i + 1) / config.num_layers)
        table = take("model.embed_tokens.weight").contiguous()
        tied = "lm_head.weight" not in tensors
        head = pack(table[of_head]) if tied else linear("lm_head", rows=of_head)
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), config.rope_frequencies().double())
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float().to(device)
        return cls(config, table, layers, take("model.norm.weight"), head, cos_sin)

    @property
    def embeddings(self) -> Tensor:
        """[vocabulary, d]: the table that a draft made for this model borrows."""
        return self._table

    def first_layers(self, count: int) -> Transformer:
        """A draft of this model's first layers, with this model's final norm and head. Weights are shared, not copied."""
        config = replace(self.config, num_layers=count)
        return Transformer(config, self._table, self._layers[:count], self._norm, self._head, self._cos_sin)

    def on(self, device: torch.device) -> Transformer:
        """This model on another device of the same kind: the model itself if it is on that device already, otherwise a copy."""
        if device == self.device:
            return self

        def moved(part: Any) -> Any:
            if is_dataclass(part):
                return replace(part, **{f.name: moved(getattr(part, f.name)) for f in fields(part)})  # type: ignore[type-var]
            return part.to(device) if isinstance(part, Tensor) else part

        table, norm, head, cos_sin = (moved(part) for part in (self._table, self._norm, self._head, self._cos_sin))
        return Transformer(self.config, table, [moved(layer) for layer in self._layers], norm, head, cos_sin)

    def weight_bytes(self) -> int:
        """The bytes of weights that a decode step reads: every packed weight, once."""
        linears = [self._head]
        for layer in self._layers:
            linears += [layer.qkv, layer.attention_out, layer.gate_up, layer.down]
        return sum(linear.weight.nbytes for linear in linears)

    def forward(self, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        """Run the rows and write their K/V to the cache.

        Returns the normalised hidden states of all rows, or of the last row of each run of `every`: [R / every, d].
        """
        config = self.config
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        x = ops.embed(rows.ids, self._table)  # [R, d]
        for layer, (k_cache, v_cache) in zip(self._layers, cache.layers, strict=True):
            qkv = layer.qkv(ops.rms_norm(x, layer.input_norm, config.rms_norm_eps)).view(-1, heads + 2 * kv_heads, dim)
            q, k, v = qkv.split_with_sizes((heads, kv_heads, kv_heads), dim=1)
            ops.rope_store_kv(
                q, k, v, self._cos_sin, rows.positions, rows.kv_slots, k_cache, v_cache, layer.q_norm, layer.k_norm, config.rms_norm_eps
            )  # fmt: skip
            attended = ops.paged_attention(
                q, k_cache, v_cache, rows.page_table, rows.row_seq, rows.prefix_len, self._scale, rows.suffix_slots, rows.suffix_len
            )  # fmt: skip
            x = layer.attention_out(attended.view(-1, heads * dim), x)
            x = layer.down(layer.gate_up(ops.rms_norm(x, layer.mlp_norm, config.rms_norm_eps)), x)
        return ops.rms_norm(x[every - 1 :: every], self._norm, config.rms_norm_eps)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden: [R, d]. Returns [R, vocab_size] float32: `out`, or a new tensor."""
        if out is None:
            return self._head(hidden, float32_out=True)
        ops.logits(hidden, self._head.weight, self._head.bias, out)
        return out

    def next_logits(self, rows: Rows, cache: KVCache, every: int = 1, out: Tensor | None = None) -> Tensor:
        """A forward pass with its logits, see `forward` and `logits`. Returns [R / every, vocab_size] float32."""
        return self.logits(self.forward(rows, cache, every), out)
