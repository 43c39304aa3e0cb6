"""docs/benchmarks.md: a section for each result of the benchmarks, in the order of SECTIONS."""

from __future__ import annotations

from statistics import median

from common.results import DECODE, DRAFTS, HIT_RATES, PREFIXES, QUALITY, ROUNDS, Row

from pages.markdown import figure, files_in_words, made_on, musts_table, prompts_in_words, table

HEAD = """# Benchmarks

Made by `python profiling/tables.py` from the files in `profiling/results`, which the benchmarks write
(`python profiling/decode.py --help`). Decode speed excludes the prefill. Modes and peers took turns in one run. The floor of a
target pass is the time to read every weight once, at the bandwidth measured in the same run.
"""

DECODE_COLUMNS = [
    ("tokens/s, median", lambda m: figure(m["decode_tokens_per_s"]["median"])),
    ("mean, 95 %", lambda m: " to ".join(figure(end) for end in m["decode_tokens_per_s"]["mean_95"])),
    ("over ar", lambda m: figure(m["over_ar"], 2)),
    ("tokens a round", lambda m: figure(m["tokens_per_round"], 2)),
    ("hit rate", lambda m: figure(m["hit_rate"], 2)),
    ("T_v ms", lambda m: figure(m["t_verify_ms"])),
    ("floor over T_v", lambda m: f"{m['verify_fraction_of_floor']:.0%}"),
    ("T_d ms", lambda m: figure(m["t_draft_ms"])),
    ("hidden ms", lambda m: figure(m["hidden_draft_ms"])),
    ("T_b ms", lambda m: figure(m["t_fallback_ms"])),
]

ROUNDS_COLUMNS = {
    "T_v ms": ("t_verify_ms", 2),
    "T_d ms": ("t_draft_ms", 2),
    "hidden ms": ("hidden_draft_ms", 2),
    "gap ms, hit": ("gap_after_hit_ms", 3),
    "gap ms, miss": ("gap_after_miss_ms", 3),
    "tokens a round": ("tokens_per_round", 2),
    "hit rate": ("hit_rate", 2),
    "tokens/s": ("decode_tokens_per_s", 1),
    "tokens/s by the speed model": ("model_tokens_per_s", 1),
}


def page(results: list[Row]) -> str:
    return HEAD + "".join(section(result) for kind, section in SECTIONS.items() for result in results if kind in result)


def rounds_section(result: Row) -> str:
    """A result of rounds.py: a line for each mode."""
    settings = result["settings"]
    lines = [["mode", *ROUNDS_COLUMNS]]
    for mode, row in result[ROUNDS.figures].items():
        lines.append([mode, *(figure(row[key], digits) for key, digits in ROUNDS_COLUMNS.values())])
    made_with = (
        f"{prompts_in_words(settings)}, {settings['max_new_tokens']} tokens, greedy, K = {settings['lookahead']}, "
        f"B = {settings['budget']}, batch {settings['batch']}, device {settings['device']} "
        "(`python profiling/rounds.py --help`)."
    )
    text = f"{_title(result)}\n{made_on(result['machine'])}.  \n{made_with}\n\n{table(lines)}\n"
    if result["musts"]:
        text += f"\n{musts_table(result['musts'])}\n"
    if (apart := result.get("projected_two_devices_tokens_per_s")) is not None:
        text += (
            "\nProjected for two devices (by the speed model from the T_v and T_d of each role alone; not measured): "
            f"{apart:.1f} tokens/s.\n"
        )
    return text


def decode_section(result: Row) -> str:
    """A result of decode.py: a line for each mode and each peer."""
    machine, settings = result["machine"], result["settings"]
    made = made_on({**machine, "device": f"{machine['device']}, {machine['cores']} cores, {machine['instruction_set']}"})
    made_with = (
        f"{prompts_in_words(settings)}, {settings['max_new_tokens']} tokens, temperature {settings['temperature']}, "
        f"K = {settings['lookahead']}, B = {settings['budget']}, dtype {settings['dtype']}, batch {settings.get('batch', 1)}, "
        f"{settings['runs']} run{'s' * (settings['runs'] != 1)}."
    )
    text = f"{_title(result)}\n{made}.  \n{made_with}\n\n{_decode_table(result)}\n"
    if result["identical"] is not None:
        text += f"\nTokens of all modes identical: {'yes' if all(result['identical'].values()) else 'NO'}.\n"
    return text


def _decode_table(result: Row) -> str:
    modes = result[DECODE.figures]
    base = next(iter(modes.values()))["decode_tokens_per_s"]["median"]
    lines = [["", "threads", *(title for title, _ in DECODE_COLUMNS)]]
    for name, mode in modes.items():
        row = mode | {"over_ar": mode["decode_tokens_per_s"]["median"] / base}
        lines.append([name, str(result["threads"][name]), *(show(row) for _, show in DECODE_COLUMNS)])
    for name, peer in result["peers"].items():
        rate = median(peer["decode_tokens_per_s"])
        known = [figure(rate), "–", figure(rate / base, 2)]
        lines.append([name, str(peer["first"].get("threads", "–")), *known, *["–"] * (len(DECODE_COLUMNS) - len(known))])
    return table(lines)


def hit_rates_section(result: Row) -> str:
    """A result of hit_rates.py: a line for each set of prompts, and one for all prompts pooled."""
    settings = result["settings"]
    head = ["temperature", "C", "B", "prompts", "look-ups", "measured", "geometric", "uniform"]
    head += ["measured − geometric, 95 %", "measured − uniform, 95 %", "tokens a round", "acceptance"]
    lines = [head]
    for case in result[HIT_RATES.figures]:
        for name, row in [*case["sets"].items(), ("all", case["all"])]:
            rates = [f"{row['hit_rate'][f]:.1%}" for f in ("measured", "geometric", "uniform")]
            ends = [row["measured_less"][f]["mean_95"] for f in ("geometric", "uniform")]
            more = [f"{100 * low:+.1f} to {100 * high:+.1f} points" for low, high in ends]
            known = [f"{case['temperature']:g}", f"{case['saguaro_c']:g}", str(case["budget"]), name, str(row["look_ups"])]
            lines.append([*known, *rates, *more, figure(row["tokens_per_round"], 2), f"{row['acceptance_rate']:.1%}"])
    made_with = (
        f"The first {settings['limit']} prompts of {files_in_words(settings)}, {settings['max_new_tokens']} tokens, "
        f"K = {settings['lookahead']}, fallback neural. Hit rates are pooled; an interval is for the mean over prompts, paired "
        "(`python profiling/hit_rates.py --help`)."
    )
    return f"{_title(result)}\n{made_on(result['machine'])}.  \n{made_with}\n\n{table(lines)}\n"


def drafts_section(result: Row) -> str:
    """A result of drafts.py: the cost of each draft, and its tokens a round on each set of prompts."""
    settings, drafts = result["settings"], result[DRAFTS.figures]
    steps = [(step["rows"], step["threads"]) for step in drafts[0]["steps"]]
    timed = [f"ms, {rows} row{'s' * (rows > 1)}, {threads} thread{'s' * (threads > 1)}" for rows, threads in steps]
    costs = [["draft", "layers", "ids", "MB a step", *timed]]
    gains = [["draft", "prompts", "count", "tokens a round, mean", "95 %", "all tokens over all rounds"]]
    for draft in drafts:
        costs.append(
            [draft["draft"], str(draft["layers"]), str(draft["vocabulary"]), figure(draft["weight_bytes"] / 1e6)]
            + [figure(step["ms"], 2) for step in draft["steps"]]
        )
        rows = [
            (f"{name}{kind}", each[key])
            for name, each in draft["sets"].items()
            for key, kind in (("all", ""), ("in_a_circle", ", running in a circle"), ("others", ", others"))
        ]
        for name, row in [*rows, ("all", draft["all"])]:
            if row is not None:
                ends = " to ".join(figure(end, 2) for end in row["mean_95"])
                gains.append(
                    [draft["draft"], name, str(row["prompts"]), figure(row["mean"], 2), ends, figure(row["pooled"], 2)]
                )
    made_with = (
        f"{files_in_words(settings)}; {settings['max_new_tokens']} tokens, greedy, K = {settings['lookahead']}. "
        "A step is timed alone (`python profiling/drafts.py --help`)."
    )
    title = f"\n## {result['what']}: drafts for {settings['target']}\n"
    return f"{title}\n{made_on(result['machine'])}.  \n{made_with}\n\n{table(costs)}\n\n{table(gains)}\n"


def quality_section(result: Row) -> str:
    """A result of quality.py: a line for each format of the weights."""
    settings, formats = result["settings"], result[QUALITY.figures]
    base = next(iter(formats.values()))["perplexity"]
    lines = [["weights", "MB a pass", "perplexity", "over the first", "same top token"]]
    for name, row in formats.items():
        ratio, agreement = figure(row["perplexity"] / base, 4), f"{row['agreement']:.1%}"
        lines.append([name, figure(row["megabytes"]), figure(row["perplexity"], 3), ratio, agreement])
    made_with = (
        f"{settings['tokens']} tokens of {settings['text']} (sha256 {settings['text_sha256'][:12]}), in windows of "
        f"{settings['window']}, dtype {settings['dtype']} (`python profiling/quality.py --help`)."
    )
    title = f"\n## {result['what']}: formats of {settings['target']}'s weights\n"
    return f"{title}\n{made_on(result['machine'])}.  \n{made_with}\n\n{table(lines)}\n"


def prefixes_section(result: Row) -> str:
    """A result of prefixes.py: a line for each mode, greedy and sampled."""
    settings, first = result["settings"], result["first_token"]
    lines = [["conversations", "tokens not stored again", "seconds", "without the cache", "tokens identical"]]
    for name, row in result[PREFIXES.figures].items():
        seconds, without = figure(row["seconds"]), figure(row["seconds_without"])
        lines.append([name, f"{row['saved']:.1%}", seconds, without, "yes" if row["identical"] else "**NO**"])
    made_with = (
        f"{settings['conversations']} conversations of {settings['turns']} turns, {settings['max_new_tokens']} tokens an answer, "
        f"dtype {settings['dtype']}, weights {settings['weights']} (`python profiling/prefixes.py --help`). First token after a "
        f"system prompt of {settings['system_tokens']} tokens: {1000 * first['seconds']:.0f} ms, "
        f"{1000 * first['seconds_without']:.0f} ms without the cache (medians)."
    )
    musts = f"\n{musts_table(result['musts'])}\n"
    return f"{_title(result)}\n{made_on(result['machine'])}.  \n{made_with}\n\n{table(lines)}\n{musts}"


def _title(result: Row) -> str:
    return f"\n## {result['what']}: {result['settings']['target']}, draft {result['settings']['draft']}\n"


SECTIONS = {  # in the order of the page
    ROUNDS.figures: rounds_section,
    DECODE.figures: decode_section,
    HIT_RATES.figures: hit_rates_section,
    DRAFTS.figures: drafts_section,
    QUALITY.figures: quality_section,
    PREFIXES.figures: prefixes_section,
}
