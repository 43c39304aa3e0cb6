"""Kernels broken on purpose: the real sources with one piece of text replaced, each compiled into its own namespace of ops.

A check that passes on a mutant does not check enough. If a kernel's source changes, MUTATIONS must follow: the build fails
until every old text occurs exactly once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

CSRC = Path(__file__).parents[2] / "csrc"
TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class Mutation:
    source: str  # under csrc/
    old: str
    new: str


MUTATIONS = {
    # A miss is compared with the target's argmax, at any temperature.
    "greedy_miss": Mutation(
        "cpu/verify.cpp",
        "accepts(u, left.target(token), left.draft(token))",
        "walk.q_logits == nullptr ? walk.p_logits[node * walk.vocabulary + token] == p_stats[kMax]"
        " : accepts(u, left.target(token), left.draft(token))",
    ),
    # The draft and the verifier use the same random numbers.
    "shared_stream": Mutation("cpu/verify.cpp", "Purpose::kResample", "Purpose::kDraft"),
    # All siblings are tested with the same uniform number.
    "shared_uniform": Mutation("cpu/verify.cpp", "Purpose::kAccept, sibling, 0", "Purpose::kAccept, 0, 0"),
    # The residual of p after a rejected sibling is not renormalised.
    "residual_not_renormalised": Mutation("cpu/verify.cpp", "if (normalise(rest)) p_ =", "p_ ="),
    # The rest of q after a rejected sibling is not renormalised.
    "proposal_not_renormalised": Mutation("cpu/verify.cpp", "normalise(q_);", ""),
    # A rejected sibling is not removed from q before the next one is tested.
    "rejected_sibling_kept": Mutation("cpu/verify.cpp", "q_[static_cast<size_t>(token)] = 0.0f;", ""),
    # fork guesses the drafted token too.
    "drafted_token_not_excluded": Mutation(
        "cpu/fork.cpp", "k < length ? spec_tokens.const_data_ptr<int32_t>()[s * lookahead + k] : -1", "-1"
    ),
}

# What fork and verify call: the portable inner loops, on one thread, and no program is recorded.
KERNELS = """
#define SSD_ISA portable
#include "simd/vocabulary.cpp"
#include "parallel.h"
#include "program.h"
namespace ssd {
Program* Program::recording() { return nullptr; }
void parallel_for(int64_t items, int64_t, RangeFunction f, const void*) { f(0, items); }
const Kernels& kernels() {
  static const Kernels table = [] {
    Kernels some{};
    some.name = "portable";
    some.largest = portable::largest;
    some.probabilities = portable::probabilities;
    some.race_times = portable::race_times;
    some.sum = portable::sum;
    return some;
  }();
  return table;
}
}  // namespace ssd
"""


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def replaced(text: str, old: str, new: str, where: str) -> str:
    assert text.count(old) == 1, f"{where} holds {old!r} {text.count(old)} times, not once: bring ops/mutants.py into step"
    return text.replace(old, new)


def mutant_source(name: str) -> str:
    """The op's schema and mutated implementation, in namespace ssd_mutant_<name>."""
    mutation, namespace = MUTATIONS[name], f"ssd_mutant_{name}"
    source = replaced((CSRC / mutation.source).read_text(), mutation.old, mutation.new, mutation.source)
    source = replaced(source, "TORCH_LIBRARY_IMPL(ssd, CPU, m)", f"TORCH_LIBRARY_IMPL({namespace}, CPU, m)", mutation.source)
    source = re.sub(r"\bnamespace ssd {", f"namespace {namespace} {{\nusing namespace ssd;", source)
    schemas = replaced((CSRC / "ops.cpp").read_text(), "TORCH_LIBRARY(ssd, m)", f"TORCH_LIBRARY({namespace}, m)", "ops.cpp")
    return schemas + source


_loaded: dict[str, object] = {}


def load_mutants(folder: Path) -> dict[str, object]:
    """Compile all mutants into one library in `folder`. Returns each mutant's namespace of ops. Call it once per process,
    because ops cannot be registered twice."""
    if _loaded:
        return _loaded
    sources = folder / "csrc"
    shutil.copytree(CSRC, sources)
    unit = sources / "cpu" / "mutants.cpp"
    unit.write_text(KERNELS + "".join(mutant_source(name) for name in MUTATIONS))
    library = folder / "mutants.so"
    command = [compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-w", f"-I{sources}"]
    command += [f"-isystem{TORCH / 'include'}", str(unit), "-o", str(library), f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    torch.ops.load_library(str(library))
    _loaded.update({name: getattr(torch.ops, f"ssd_mutant_{name}") for name in MUTATIONS})
    return _loaded
