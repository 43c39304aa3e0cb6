"""An error text is one sentence with a full stop, wherever it is raised."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ERRORS = {"SsdError", "CheckpointError", "WrongUsage"}


def text_of(message: ast.expr) -> str:
    """A message with a plus for each value in it; a lone value is a whole message that was made elsewhere."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "+" for part in message.values)  # type: ignore[misc]
    return ""


def test_every_error_text_is_one_sentence_with_a_full_stop() -> None:
    found, wrong = 0, []
    for file in sorted((ROOT / "ssd").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute) and call.args:
                name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
                text = text_of(call.args[0]) if name in ERRORS else ""
                found += bool(text)
                if text and (not text.endswith(".") or ". " in text):
                    wrong.append(f"{file.relative_to(ROOT)}:{call.lineno}: {text}")
    assert found > 100
    assert wrong == []
