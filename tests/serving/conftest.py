"""The engines that tests/engine uses."""

from engine.conftest import captured, engine, models

__all__ = ["captured", "engine", "models"]
