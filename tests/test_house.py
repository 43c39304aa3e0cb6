"""The folders of ssd are rooms in a fixed order. Imports go downwards only, so there is no circle, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SSD = Path(__file__).parents[1] / "ssd"
ROOMS = ["errors", "_build_info", "_C", "fields", "options", "_check", "native", "ops"]  # from the ground up
ROOMS += [
    "kv",
    "models",
    "runtime",
    "decoding",
    "requests",
    "serving",
    "engine",
    "__init__",
    "distill",
    "bench",
    "simulate",
    "report",
    "plan",
    "server",
    "cli",
]
MODULES = {path.relative_to(SSD).with_suffix("").as_posix().removesuffix("/__init__"): path for path in SSD.rglob("*.py")}


def room_of(module: str) -> str:
    return module.split("/")[0]


def imported_by(path: Path) -> Iterator[str]:
    """The rooms of ssd that a file imports from, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ssd":
            yield from (alias.name if alias.name in ROOMS else "__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssd."):
            yield str(node.module).split(".")[1]


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) != "__init__"])
def test_a_file_imports_only_from_its_own_room_and_those_below(module: str) -> None:
    height = ROOMS.index(room_of(module))
    assert [room for room in imported_by(MODULES[module]) if ROOMS.index(room) > height] == []


def test_no_file_is_longer_than_350_lines() -> None:
    """Except ops.py, which documents every op."""
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 350 and module != "ops"} == {}
    assert lengths["engine"] <= 200
