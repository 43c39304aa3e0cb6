"""The drafts that the package brings: small, whole, with a card that says whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ssd.models import registry

DRAFTS = {name: Path(draft) for name in registry.KNOWN if (draft := registry.default_draft(name)) is not None}


def test_the_embedded_default_has_a_draft() -> None:
    assert "smollm2-135m" in DRAFTS


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_is_small_and_ascending(name: str) -> None:
    """Its ids, that is; and it borrows what is large, the target's embeddings."""
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
def test_a_draft_s_card_says_whose_it_is_and_how_it_was_made(name: str) -> None:
    card = (DRAFTS[name] / "README.md").read_text()
    model = registry.KNOWN[name]
    assert model.source in card and model.licence in card and "ssd distill" in card
    report = json.loads((DRAFTS[name] / "report.json").read_text())
    assert report["made_from"]["target"] == name
    assert str(report["made_from"]["answer_tokens"]) in card
