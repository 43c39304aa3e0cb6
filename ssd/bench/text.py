"""Figures as text."""

from __future__ import annotations

NOTHING = "–"  # for a figure that a mode does not have


def figure(value: float | None, unit: str = "", digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def size(count: float) -> str:
    """Bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
