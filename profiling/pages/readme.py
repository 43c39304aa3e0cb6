"""The block of figures in README.md."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

from common.results import DECODE, DRAFTS, README_DECODES, Row, newest

from pages.markdown import figure, table

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"(<!-- speed: made by profiling/tables.py -->\n).*(<!-- end -->)", re.DOTALL)


def page(results: list[Row]) -> str:
    """The README as it is, with a new block of figures."""
    text = README.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"{found[1]}\n{speed(results)}\n{found[2]}", text)


def speed(results: list[Row]) -> str:
    """The newest decodes with the target's own draft, and that draft's tokens a round on each set of prompts."""
    with_own_draft = [r for r in results if DECODE.figures in r and r["settings"]["draft"] == "auto"]
    decodes = [found for name in README_DECODES if (found := newest(with_own_draft, name)) is not None]
    drafts = newest(results, DRAFTS.what)
    if not decodes or drafts is None:
        return "Not measured yet.\n"
    (own,) = (draft for draft in drafts[DRAFTS.figures] if draft["draft"] == "auto")
    sets = ", ".join(f"{name} {each['all']['mean']:.2f}" for name, each in own["sets"].items())
    return (
        "\n".join(map(modes_and_peers, decodes))
        + f"\nTokens a round on whole sets of prompts, K = {drafts['settings']['lookahead']}: {sets}; "
        f"{own['all']['mean']:.2f} over all.\n"
    )


def modes_and_peers(decode: Row) -> str:
    """One decode: its setting, and a table."""
    settings, machine, modes = decode["settings"], decode["machine"], decode[DECODE.figures]
    rates = {name: mode["decode_tokens_per_s"]["median"] for name, mode in modes.items()}
    rates |= {name: median(peer["decode_tokens_per_s"]) for name, peer in decode["peers"].items()}
    lines = [["", "tokens/s", "over ar", "tokens a round", "hit rate"]]
    for name, rate in sorted(rates.items(), key=lambda each: -each[1]):
        mode = modes.get(name, {"tokens_per_round": None, "hit_rate": None})
        label = f"ssd, mode `{name}`" if name in modes else name
        speeds = [figure(rate), figure(rate / rates["ar"], 2)]
        lines.append([label, *speeds, figure(mode["tokens_per_round"], 2), figure(mode["hit_rate"], 2)])
    weights = settings.get("weights", "auto")
    form = "" if weights == "auto" else f", `--weights {weights}`"
    return (
        f"{settings['target']}{form}, {settings['limit']} prompts of {Path(settings['prompts']).stem}, "
        f"{settings['max_new_tokens']} tokens, greedy, K = {settings['lookahead']}, {settings['threads']} threads, in turn in one run "
        f"({machine['device']}, {machine['instruction_set']}; commit {machine['commit']}; {machine['date']}):\n\n"
        f"{table(lines)}\n"
    )
