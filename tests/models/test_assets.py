"""The drafts shipped with the package: small and complete, each with a card that names its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ssd.models import registry

DRAFTS = {name: Path(draft) for name in registry.KNOWN if (draft := registry.default_draft(name)) is not None}


def test_the_default_target_has_a_shipped_draft() -> None:
    assert "smollm2-135m" in DRAFTS


@pytest.mark.parametrize("name", DRAFTS)
def test_a_shipped_draft_is_small_and_its_ids_ascend(name: str) -> None:
    """It borrows the largest tensor, the target's embeddings."""
    folder = DRAFTS[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25e6
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
        vocabulary = tensors.get_tensor("draft_vocab")
    assert bool((vocabulary.diff() > 0).all()) and vocabulary.dtype == torch.int32
    assert not any("embed" in each for each in names)
    config = json.loads((folder / "config.json").read_text())
    assert config["ssd_embeddings"] == "target"
    assert {each.split(".")[2] for each in names if each.startswith("model.layers.")} == {
        str(i) for i in range(config["num_hidden_layers"])
    }


@pytest.mark.parametrize("name", DRAFTS)
def test_a_shipped_drafts_card_names_its_source_and_how_it_was_made(name: str) -> None:
    card = (DRAFTS[name] / "README.md").read_text()
    model = registry.KNOWN[name]
    assert model.source in card and model.licence in card and "ssd distill" in card
    report = json.loads((DRAFTS[name] / "report.json").read_text())
    assert report["made_from"]["target"] == name
    assert str(report["made_from"]["answer_tokens"]) in card
