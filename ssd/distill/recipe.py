"""The settings of a distillation run: the only list of them. It loads without torch, so that `ssd --help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssd.errors import SsdError
from ssd.fields import check, documented, numbers, option
from ssd.options import MACHINE

CONTEXT = 1024  # the longest chat, in tokens

# Headings of the command line's help.
STUDENT, DATA, TRAINING = "The draft", "Data", "Training"


@documented
@dataclass(frozen=True)
class Recipe:
    """The settings of a distillation run.

    Raises SsdError for a value outside its limits.
    """

    layers: int = option(4, help="Number of layers, each in the target's shape.", panel=STUDENT, limits=(1, 1024))
    from_layers: Sequence[int] | None = option(
        None,
        help="Layers of the target that the draft's layers start from; the outermost unless given.",
        panel=STUDENT,
        metavar="N,N,..",
        parse=numbers("layers of the target", "0,1,28,29"),
    )
    vocab: int = option(8192, help="Number of token ids that the draft can propose.", panel=STUDENT, limits=(1, 2**24))
    weights: Literal["int8", "bfloat16"] = option(
        "int8", help="Format of the stored weights, and of those in use on a CPU: 'int8' or 'bfloat16'.", panel=STUDENT
    )
    tokens: int = option(574_000, help="Total tokens of the answers that the target writes.", panel=DATA, limits=(1, 10**12))
    answer_tokens: int = option(192, help="Longest answer, in tokens.", panel=DATA, limits=(2, CONTEXT // 2))
    epochs: float = option(
        6.0, help="Number of passes over the data, unless the time budget ends first.", panel=TRAINING, limits=(0, 1e6)
    )
    learning_rate: float = option(3e-3, help="Peak learning rate.", panel=TRAINING, limits=(0, 1))
    batch_tokens: int = option(2048, help="Number of tokens per training step.", panel=TRAINING, limits=(1, 2**24))
    time_budget: float | None = option(
        None,
        help="Approximate time for everything, in minutes, up to two fifths of it for the data; no limit unless given.",
        panel=TRAINING,
        metavar="MINUTES",
        limits=(0.01, 1e6),
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", help="Device of the training: 'cpu', 'cuda', or 'auto' (a GPU if there is one).", panel=MACHINE
    )
    threads: int | None = option(None, help="Number of CPU threads; all cores unless given.", panel=MACHINE, limits=(1, 1024))
    seed: int = option(0, help="Random seed of the data and of the training.", panel=MACHINE)

    def __post_init__(self) -> None:
        check(self)
        if self.from_layers is not None and len(self.from_layers) != self.layers:
            raise SsdError(f"from_layers names {len(self.from_layers)} layers, and layers is {self.layers}; name as many.")
