"""Results of measurements as files: what `ssd bench` writes and other commands read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd.bench.figures import stats_from_json
from ssd.decoding.stats import Stats
from ssd.errors import SsdError
from ssd.fields import options_of
from ssd.options import EngineOptions, SamplingParams

FORMAT = 1  # of a result's fields; a change of their names or meanings raises it
COLUMNS = ("set", "variant", "decode_tokens_per_s", "tokens_per_round", "hit_rate", "verify_floor_ms", "floor_tokens_per_s",
           "tokens_per_s_of_all", "over_first", "identical", "time_to_first_token_s")  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One run of a variant on a set.

    prompt_tokens, tokens: the number of tokens of each prompt, and of each output. spans_ms: (lane, name, start, end) of the
    phases of a short decode; one turn of each variant has them.
    """

    set: str
    variant: str
    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    stats: Sequence[Stats]
    threads: int
    weight_bytes: int
    draft_weight_bytes: int | None
    spans_ms: Sequence[tuple[str, str, float, float]]


@dataclass(frozen=True)
class BenchResult:
    """A result of `ssd bench`. name: of its file. figures: see `ssd.bench.figures.of_turns`; peer_figures: `of_peers`."""

    name: str
    machine: dict[str, Any]
    runs: int
    sets: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    figures: list[dict[str, Any]]
    peer_figures: list[dict[str, Any]]
    turns: list[Turn]

    @classmethod
    def read(cls, path: Path) -> BenchResult:
        """Raises SsdError for a file that is no result of this version, or lacks a part of one."""
        return cls.of(path, read_document(path))

    @classmethod
    def of(cls, path: Path, document: dict[str, Any]) -> BenchResult:
        """From the document in the file. Raises SsdError."""
        check_kind(path, document, "bench")
        with naming_what_lacks(path):
            for figures in document["figures"]:
                for column in COLUMNS:
                    figures[column]
                for rate in ("median", "mean_95", "pooled"):
                    figures["decode_tokens_per_s"][rate]
            for options in document["variants"].values():
                for option in (*options_of(EngineOptions), *options_of(SamplingParams)):
                    options[option]
            for each in document["sets"].values():
                each["prompts"], each["sha256"]
            for name in ("device", "cores", "instruction_set", "date", "ssd", "read_bandwidth_bytes_per_s"):
                document["machine"][name]
            return cls(
                path.stem,
                document["machine"],
                document["runs"],
                document["sets"],
                document["variants"],
                document["figures"],
                document["peer_figures"],
                [_turn(each) for each in document["turns"] if "peer" not in each],
            )

    def stats(self, variant: str, mode: str | None = None, set: str | None = None) -> list[Stats]:
        """Of all its sequences; of one mode or one set if that is given."""
        of_variant = (turn for turn in self.turns if turn.variant == variant and set in (None, turn.set))
        return [stats for turn in of_variant for stats in turn.stats if mode in (None, stats.mode)]


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a result's file. Raises SsdError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SsdError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise SsdError(f"{path} is not JSON; give a result of `ssd bench` or `ssd simulate --json`.") from None
    if not isinstance(document, dict) or "what" not in document:
        raise SsdError(f"{path} is not a result; give one of `ssd bench` or `ssd simulate --json`.")
    return document


def check_kind(path: Path, document: dict[str, Any], kind: str) -> None:
    """Raises SsdError for a result of another kind, or of a later version."""
    if document["what"] != kind:
        raise SsdError(f"{path} is a result of kind {document['what']!r}; one of kind {kind!r} is needed.")
    written = document.get("format", 0)
    if not isinstance(written, int) or written > FORMAT:
        raise SsdError(f"{path} has the format {written!r}, and this version of ssd reads up to {FORMAT}; update ssd.")
    if written < FORMAT:
        raise SsdError(f"{path} was written by an older version of ssd; measure it again.")


@contextmanager
def naming_what_lacks(path: Path) -> Iterator[None]:
    """A context that reads a result. Raises SsdError for a field that is not there or has a wrong type."""
    try:
        yield
    except KeyError as error:
        raise SsdError(f"{path} has no field {error}; measure it again.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise SsdError(f"{path} has a field of a wrong kind ({error}); measure it again.") from None


def _turn(turn: dict[str, Any]) -> Turn:
    sequences = turn["sequences"]
    return Turn(
        turn["set"],
        turn["variant"],
        turn["prompt_tokens"],
        [each["tokens"] for each in sequences],
        [stats_from_json(each["stats"]) for each in sequences],
        turn["threads"],
        turn["weight_bytes"],
        turn["draft_weight_bytes"],
        [(lane, name, start, end) for lane, name, start, end in turn.get("spans_ms", [])],
    )
