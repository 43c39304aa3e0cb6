"""The op tests find mistakes in the kernels: a mutant has one line changed, and must fail on the emulator."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops import backend

ROOT = Path(__file__).resolve().parents[2]
BUILD = backend.EMULATOR.parent


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # of csrc/cuda
    before: str
    after: str
    tests: str  # for pytest's -k
    compiled: tuple[str, ...] = ()  # the sources that include the file, if it is a header


LINEAR = ("linear_bf16.cu",)
INT8 = ("linear_int8.cu",)
ATTENTION = ("paged_attention_64.cu",)  # one head size is enough

MUTANTS = [
    # A barrier deleted.
    Mutant(
        "linear: warps' sums over a pipeline in use",
        "linear.cuh",
        "    __syncthreads();  // no warp reads its pipeline any more\n",
        "",
        "linear",
        LINEAR,
    ),
    Mutant(
        "rms_norm: a sum read before it is there",
        "reduce.cuh",
        "= value;\n  __syncthreads();\n  T total",
        "= value;\n  T total",
        "rms_norm",
        ("rms_norm.cu",),
    ),
    Mutant(
        "paged_attention: a ring refilled while others read it",
        "paged_attention_merge.cuh",
        "    __syncthreads();  // the rings may be filled again\n",
        "",
        "many_sequences",
        ATTENTION,
    ),
    # Two lanes of an mma swapped, or two words of a lane.
    Mutant(
        "linear: lanes swapped",
        "linear.cuh",
        "piece * kPiece + lane_ % 4 * 8;",
        "piece * kPiece + (lane_ ^ 1) % 4 * 8;",
        "linear",
        LINEAR,
    ),
    Mutant(
        "paged_attention: words swapped",
        "paged_attention_warp.cuh",
        "query, {key[0], key[1]}",
        "query, {key[1], key[0]}",
        "many_sequences",
        ATTENTION,
    ),
    # A cp.async wait removed.
    Mutant("linear: no wait", "linear.cuh", "      cp_async_wait<C::stages - 2>();\n", "", "linear", LINEAR),
    Mutant(
        "paged_attention: no wait",
        "paged_attention_warp.cuh",
        "      cp_async_wait<kStages - 1>();\n",
        "",
        "many_sequences",
        ATTENTION,
    ),
    # Mistakes that show only in another order of blocks, or at a second launch.
    Mutant(
        "arrivals: the last but one finishes",
        "arrivals.cuh",
        "== blocks - 1;",
        "== (blocks > 1 ? blocks - 2 : 0);",
        "large_vocabulary",
        ("row_stats.cu",),
    ),
    Mutant("arrivals: not zero again", "arrivals.cuh", "    if (last) *arrivals = 0;\n", "", "sample_draws", ("sample.cu",)),
    # Arithmetic.
    Mutant(
        "linear: a segment left out",
        "linear.cuh",
        "for (int w = 0; w < C::warps; ++w) {",
        "for (int w = 1; w < C::warps; ++w) {",
        "linear",
        LINEAR,
    ),
    Mutant(
        "linear, int8: the scales of the gate for the up projection",
        "linear.cuh",
        "scales[packed_row + kTile / 2]",
        "scales[packed_row]",
        "int8",
        INT8,
    ),
    Mutant(
        "linear, int8: a negative weight's sign left out",
        "linear.cuh",
        "kSign = 0x00800080",
        "kSign = 0x00000080",
        "int8",
        INT8,
    ),
    Mutant(
        "pack_weight, int8: rows of a word swapped",
        "linear.cu",
        "lower = byte % 2,",
        "lower = 1 - byte % 2,",
        "int8",
    ),
    Mutant(
        "rope_store_kv: halves exchanged",
        "rope_store_kv.cu",
        "a[i] * cosine - b[i] * sine",
        "b[i] * cosine - a[i] * sine",
        "rope",
    ),
    Mutant(
        "paged_attention: unused places not cleared",
        "paged_attention_warp.cuh",
        "cp_async(&strip.values[key][column], values + at, from >= 0);",
        "cp_async(&strip.values[key][column], values + at);",
        "attention",
        ATTENTION,
    ),
    Mutant(
        "tree_rows: siblings at different positions",
        "rows.cu",
        "in_tree ? n + level : stored_at",
        "in_tree ? n + node : stored_at",
        "siblings_have_one_position",
    ),
    Mutant(
        "rank_outcomes: the drafted token is ranked",
        "rank_outcomes.cu",
        "ahead && id != excluded",
        "ahead && (ahead || id != excluded)",
        "a_rank_leaves_out",
    ),
    Mutant(
        "verify: a report before its tokens are there",
        "verify.cu",
        "  __syncthreads();  // the report has tokens that other threads have written\n",
        "",
        "a_report_has_the_state",
    ),
    Mutant(
        "sample: the distributions kept in the half in use",
        "sample.cu",
        "(*p.parity & 1) ^ (p.next_half ? 1 : 0)",
        "*p.parity & 1",
        "kept_in_one_half",
    ),
    Mutant(
        "fork: the drafted token is guessed",
        "fork.cu",
        "drafted >= 0 && token == drafted",
        "drafted < -1 && token == drafted",
        "fork_excludes_the_drafted_token",
    ),
    # Numbers that are not finite.
    Mutant(
        "row_stats: a NaN row is taken for finite",
        "vocabulary.cuh",
        "return spoils_its_row(z) ? kBad : z > -INFINITY",
        "return z > -INFINITY",
        "a_bad_row_has_no_distribution and NaN",
        ("row_stats.cu", "row_cuts.cu"),
    ),
    Mutant(
        "row_stats: a row of masks is taken for finite",
        "row_stats.cu",
        "bad = row.largest == kNowhere || row.largest == kBad",
        "bad = row.largest == kBad",
        "a_bad_row_has_no_distribution and masked",
    ),
    Mutant(
        "row_cuts: the cuts of a bad row are written",
        "row_cuts.cu",
        "if (!how.cuts() || is_bad(stats)) return;",
        "if (!how.cuts()) return;",
        "a_bad_row_has_no_distribution",
    ),
    Mutant(
        "sample: spec_len not cut",
        "sample.cu",
        "  if (p.rows_a_slot == 1) p.spec_len[slot] = p.drafted;\n",
        "",
        "a_bad_row_ends_its_speculation",
    ),
    Mutant(
        "sample: a token from a bad row",
        "sample.cu",
        "= found ? token : kNoToken;",
        "= found || rank == 0 ? token : kNoToken;",
        "no_token_is_drawn",
    ),
    Mutant(
        "fork: guesses after a bad row",
        "fork.cu",
        "if (rank == 0) bad = standing == kNowhere || standing == kBad;",
        "",
        "nothing_is_guessed",
    ),
    Mutant(
        "fork: the drafted token's NaN is left out",
        "fork.cu",
        "token == drafted && entries[i] != kNowhere && entries[i] != kBad",
        "token == drafted && entries[i] != kNowhere",
        "nothing_is_guessed",
    ),
    Mutant(
        "cache_lookup: spec_len not cut",
        "cache_lookup.cu",
        "      proposed = first + __ffs(static_cast<int>(missing)) - 1;  // the tokens before a bad row\n",
        "",
        "a_branch_ends",
    ),
    Mutant(
        "verify: a token from a bad row",
        "verify.cu",
        "column_of(winner) : kNoToken;",
        "column_of(winner) : 0;",
        "a_sequence_fails",
    ),
    Mutant(
        "verify: a failed sequence goes on",
        "verify.cu",
        "tokens <= accepted ? kFailed : kRunning",
        "kRunning",
        "a_sequence_fails",
    ),
    Mutant(
        "verify: the race is the draft's",
        "verify.cu",
        "Purpose::kResample",
        "Purpose::kDraft",
        "verify_equals_the_oracle_on_chains",
    ),
]


def build(mutant: Mutant, folder: Path) -> Path:
    """The emulator's library, with the mutant in place of its original."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    source = folder / "csrc" / "cuda" / mutant.file
    text = source.read_text(encoding="utf-8")
    assert text.count(mutant.before) == 1, "the line that this mutant changes is not there, or not alone"
    source.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")

    link = subprocess.check_output(["ninja", "-C", BUILD, "-t", "commands", "ssd_emulator"], text=True).splitlines()[-1]
    compile_commands = {entry["file"]: entry for entry in json.loads((BUILD / "compile_commands.json").read_text())}
    for name in mutant.compiled or (mutant.file,):
        entry = compile_commands[str(ROOT / "csrc" / "cuda" / name)]
        compiled = folder / f"{name}.o"
        command = shlex.split(entry["command"].replace(f"{ROOT}/csrc", f"{folder}/csrc"))
        original = command[command.index("-o") + 1]
        command[command.index("-o") + 1] = str(compiled)
        subprocess.run(command, cwd=BUILD, check=True)
        assert link.count(original) == 1
        link = link.replace(original, str(compiled))
    library = folder / "ssd_emulator.so"
    link = link.replace("-o ssd_emulator.so", f"-o {library}")
    subprocess.run(link, shell=True, cwd=BUILD, check=True)
    return library


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_op_tests_reject(mutant: Mutant, tmp_path: Path) -> None:
    library = build(mutant, tmp_path)
    command = [sys.executable, "-m", "pytest", ROOT / "tests" / "ops", "--backend", "emulator", "-x", "-q", "-k", mutant.tests]
    done = subprocess.run(
        command, env=os.environ | {"SSD_EMULATOR": str(library)}, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "failed" in done.stdout
