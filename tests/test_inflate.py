"""An inflated model has the small model's logits within 1e-4, and never proposes a padding id."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from models.test_transformer import BOUND, build, error, random_ids, teacher_forced
from ssd.models.config import ModelConfig

LARGER = {
    "wider": {"hidden_size": 160},
    "more layers": {"num_layers": 5},
    "more neurons": {"intermediate_size": 224},
    "more heads": {"num_heads": 9, "num_kv_heads": 3},
    "larger heads": {"head_dim": 32},
    "more ids": {"hidden_size": 80, "vocab_size": 130},
    "all of it": {
        "hidden_size": 128, "intermediate_size": 160, "num_layers": 4, "num_heads": 12, "num_kv_heads": 4, "head_dim": 64,
        "vocab_size": 200,
    },
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "a head of its own": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope scaled": {"rope_parameters": tiny.LLAMA3_ROPE | {"rope_theta": 10000.0}},
}


@pytest.fixture
def inflate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "profiling"))
    return import_module("inflate").inflate


def taken(tensors: Any) -> dict[str, Tensor]:
    """All lazy tensors, computed."""
    return {name: tensors.pop(name) for name in list(tensors.shapes)}


@pytest.mark.parametrize("larger", LARGER)
@pytest.mark.parametrize("kind", SMALL)
def test_an_inflated_model_has_the_small_models_logits(inflate: Any, tmp_path: Path, kind: str, larger: str) -> None:
    tensors = tiny.write_model(tmp_path, **SMALL[kind])
    small = ModelConfig.from_directory(tmp_path)
    large, inflated = inflate(small, tensors, replace(small, **LARGER[larger]))
    ids = random_ids(small.vocab_size, 150)
    logits = teacher_forced(build(large, taken(inflated)), ids)
    real = logits[:, : small.vocab_size]
    assert error(real, teacher_forced(build(small, tensors), ids)) <= BOUND
    assert logits.shape[1] == large.vocab_size
    if large.vocab_size > small.vocab_size:
        assert bool((logits[:, small.vocab_size :] < -1000).all())


def test_an_inflated_draft_never_proposes_an_id_outside_its_vocabulary(inflate: Any, tmp_path: Path) -> None:
    """The draft has a trimmed vocabulary."""
    tensors = tiny.write_model(tmp_path)
    small = ModelConfig.from_directory(tmp_path)
    said = torch.arange(small.vocab_size) % 3 != 0
    large, inflated = inflate(small, tensors, replace(small, hidden_size=96), said)
    ids = random_ids(small.vocab_size, 40)
    logits = teacher_forced(build(large, taken(inflated)), ids)
    assert error(logits[:, said], teacher_forced(build(small, tensors), ids)[:, said]) <= BOUND
    assert bool((logits[:, ~said] < -1000).all())


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"hidden_size": 32}, "hidden_size is 32; the small model has 64"),
        ({"num_heads": 4, "num_kv_heads": 4}, "more query heads share a key head"),
        ({"vocab_size": 200}, "ids that are never said need a spare lane"),
        ({"hidden_size": 80, "tie_embeddings": True}, "head is its own, and the shape's is tied"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_hold_the_model_is_refused(
    inflate: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    tensors = tiny.write_model(tmp_path)
    small = ModelConfig.from_directory(tmp_path)
    with pytest.raises(ValueError, match=reason):
        inflate(small, tensors, replace(small, **changes))
