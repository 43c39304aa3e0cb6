"""A benchmark: variants and peers decode sets of prompts in turn (A B C A B C), because machines drift.

A turn is one variant on one set. It begins with a fresh engine over weights that all variants share, so that it does not depend
on the turns before it: a benchmark that was interrupted and goes on measures the same.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ssd.bench import machine
from ssd.bench.figures import of_peers, of_turns
from ssd.bench.journal import Journal, Measurement
from ssd.bench.results import FORMAT
from ssd.bench.sets import PromptSet
from ssd.bench.variants import Variant
from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.fields import flat
from ssd.models.prompts import Prompt
from ssd.options import EngineOptions, SamplingParams
from ssd.requests import Completion
from ssd.runtime.placement import place
from ssd.serving.loading import LoadedModels, load_models

WARM_UP = 8  # tokens that a fresh engine decodes before its turn
SHOWN = 32  # tokens of the decode whose spans are kept


@dataclass(frozen=True)
class Benchmark:
    """Variants and peers on sets of prompts. peers: shell commands by name.

    A command may have {prompts}, a file with a JSON object {"prompt": text} a line, and {tokens}, the number to generate. The
    last line of its output is a JSON object with `decode_tokens_per_s_median`.
    """

    variants: Sequence[Variant]
    sets: Sequence[PromptSet]
    runs: int
    peers: dict[str, str] = field(default_factory=dict)

    def turns(self) -> list[tuple[int, PromptSet, Variant | str]]:
        """(run, set, variant or peer's name), in the order of the measurement."""
        takers: list[Variant | str] = [*self.variants, *self.peers]
        return [(run, each, taker) for run in range(self.runs) for each in self.sets for taker in takers]

    def head(self) -> dict[str, Any]:
        """Its description in the result. A journal with another one is of another benchmark."""
        on_gpu = self.variants[0].options.device.startswith("cuda")
        described = machine.describe_gpu() if on_gpu else machine.describe()
        return {
            "machine": {name: value for name, value in described.items() if name != "date"},
            "runs": self.runs,
            "sets": {each.name: {"prompts": len(each.prompts), "sha256": each.sha256} for each in self.sets},
            "variants": {each.name: _named(flat(each.options) | flat(each.params)) for each in self.variants},
            "peers": {name: hashlib.sha256(command.encode()).hexdigest() for name, command in self.peers.items()},
        }


def measure(benchmark: Benchmark, out: Path, on_turn: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure, or go on, and write the result. on_turn: called with the number of turns that are done, and of all.

    Raises SsdError, and what a full disk or an interrupt raises; the turns that are done are kept.
    """
    head = benchmark.head()
    journal = Journal(out, head)
    turns = benchmark.turns()
    pairs = Pairs(benchmark.variants)
    if not journal.turns:
        pairs.load(benchmark.variants[0].options)  # a model that is not here is said before anything is measured
        journal.add({"read_bandwidth_bytes_per_s": _bandwidths(benchmark.variants)})
    bandwidths = journal.turns[0]["read_bandwidth_bytes_per_s"]
    on_turn(len(journal.turns) - 1, len(turns))
    with TemporaryDirectory() as folder:
        for run, each, taker in turns[len(journal.turns) - 1 :]:
            turn: Measurement = {"run": run, "set": each.name}
            if isinstance(taker, Variant):
                turn |= {"variant": taker.name, **pairs.measure(taker, each, shown=run == 0 and each is benchmark.sets[0])}
            else:
                turn |= {
                    "peer": taker,
                    **_measure_peer(taker, benchmark.peers[taker], each, benchmark.variants[0], Path(folder)),
                }
            journal.add(turn)
            on_turn(len(journal.turns) - 1, len(turns))
    measured = journal.turns[1:]
    own = [turn for turn in measured if "variant" in turn]
    bytes_of = {turn["variant"]: turn["weight_bytes"] for turn in own}
    threads_of = {turn["variant"]: turn["threads"] for turn in own}
    fastest = max(bandwidths.values())  # of a GPU, or where there are more threads than cores
    floors = {name: bytes_of[name] / bandwidths.get(str(threads_of[name]), fastest) for name in bytes_of}
    result = {
        "what": "bench",
        "format": FORMAT,
        **head,
        "machine": machine.describe() | head["machine"] | {"read_bandwidth_bytes_per_s": bandwidths},
        "figures": of_turns(own, [each.name for each in benchmark.variants], floors),
        "peer_figures": of_peers(measured, [each.name for each in benchmark.sets], list(benchmark.peers)),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "turns": measured,
    }
    journal.finish(result)
    return result


class Pairs:
    """Loads each target and its draft once, for all variants that share them."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self._lookahead = max(each.options.speculation_options.lookahead for each in variants)
        self._drafts = {_weights(each.options): each.options.draft for each in variants if each.options.draft is not None}
        self._loaded: dict[tuple[Any, ...], LoadedModels] = {}

    def measure(self, variant: Variant, prompts: PromptSet, shown: bool = False) -> Measurement:
        """One turn on a fresh engine. shown: whether to keep the spans of a few rounds, which are decoded afterwards."""
        options, params = variant.options, variant.params
        models = self.load(options)
        with Engine.of(models.target, models.draft if options.mode != "ar" else None, options) as engine:
            engine.decode(prompts.prompts[0], replace(params, max_new_tokens=WARM_UP))
            prompt_tokens = [len(each.prompt) for each in engine.requests(prompts.prompts, params, {})]
            seeded = [replace(params, seed=(params.seed or 0) + i) for i in range(len(prompts.prompts))]
            begun = time.perf_counter()
            completions = engine.decode(list(prompts.prompts), seeded)
            seconds = time.perf_counter() - begun
            turn = {
                "seconds": seconds,
                "greedy": params.temperature == 0,
                "threads": engine.threads,
                "weight_bytes": engine.target_model.weight_bytes(),
                "draft_weight_bytes": engine.footprint.draft_pass_bytes,
                "prompt_tokens": prompt_tokens,
                "sequences": [_sequence(completion, variant) for completion in completions],
            }
            return turn | {"spans_ms": _spans(engine, prompts.prompts[0], params)} if shown else turn

    def load(self, options: EngineOptions) -> LoadedModels:
        """The models of these options, loaded at the first call. Raises SsdError."""
        key = (options.draft or self._drafts.get(_weights(options)), *_weights(options))
        if key not in self._loaded:
            draft = key[0]
            speculation = replace(options.speculation_options, lookahead=self._lookahead, tree=None, fan_out="measured")
            widest = replace(options, draft=draft, mode="auto" if draft is not None else "ar", speculation_options=speculation)
            models = load_models(widest, place(widest), lambda fraction: None)
            if models.draft_error is not None:
                raise SsdError(f"the draft cannot be used ({one_line(models.draft_error)}); nothing was measured.")
            self._loaded[key] = models
        return self._loaded[key]


def _spans(engine: Engine, prompt: Prompt, params: SamplingParams) -> list[tuple[str, str, float, float]]:
    """(lane, name, start, end) of every phase of a short decode."""
    engine.trace.record()
    engine.decode(prompt, replace(params, max_new_tokens=SHOWN))
    spans = engine.trace.spans
    origin = spans[0].start
    return [(s.lane, s.name, round((s.start - origin) * 1e3, 3), round((s.end - origin) * 1e3, 3)) for s in spans]


def _weights(options: EngineOptions) -> tuple[Any, ...]:
    """The options on which a target's weights depend."""
    return (options.target, options.dtype, options.weights, options.device, options.draft_device, options.max_context)


def _sequence(completion: Completion, variant: Variant) -> dict[str, Any]:
    """The part of a completion that a turn keeps. Raises SsdError if it is none of this variant."""
    if completion.error is not None:
        raise SsdError(f"{variant.name} measured nothing: {completion.error.removesuffix('.')}.")
    if completion.degraded or completion.stats.mode != variant.options.mode:
        raise SsdError(f"{variant.name} measured nothing, because the draft failed; try another --draft.")
    ids = json.dumps(completion.token_ids).encode()
    return {
        "tokens": len(completion.token_ids),
        "token_ids_sha256": hashlib.sha256(ids).hexdigest(),
        "stats": asdict(completion.stats),
    }


def _bandwidths(variants: Sequence[Variant]) -> dict[str, float]:
    """Bytes/s that are read, by the number of threads."""
    if variants[0].options.device.startswith("cuda"):
        return {"gpu": machine.gpu_read_bandwidth()}
    return {str(threads): machine.read_bandwidth(threads) for threads in range(1, torch.get_num_threads() + 1)}


def _measure_peer(name: str, command: str, prompts: PromptSet, first: Variant, folder: Path) -> Measurement:
    file = folder / f"{prompts.name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts.prompts), encoding="utf-8")
    words = [
        word.replace("{prompts}", str(file)).replace("{tokens}", str(first.params.max_new_tokens))
        for word in shlex.split(command)
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines() or [""]
    try:
        answer = json.loads(last)
        float(answer["decode_tokens_per_s_median"])
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SsdError(
            f"the peer {name!r} ended with status {done.returncode}, and its last line has no decode_tokens_per_s_median; it said: {said}."
        ) from None
    return {"answer": answer}


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """Options without the names of local folders."""
    return values | {name: Path(values[name]).name for name in ("target", "draft") if values[name] is not None}
