"""`make gpu-check`: builds the CUDA kernels with the installed Python and torch, tests them on this machine's GPU, and times
them.

    python3 profiling/gpu_check.py [--steps build,smoke,kernels,decodes,ops,gpu] [--results DIR] [--no-sanitizer] [--large]

    build     the extension with its CUDA kernels
    smoke     a conditional node and tiny decodes, each in a process of its own: everything else needs them
    kernels   times of the kernels, beside their floors
    decodes   whole decodes: a large pair that agrees 4 times in 5, and one with the function of smollm2-135m if it is here
    ops       tests/ops on the GPU
    gpu       tests/gpu, and compute-sanitizer last

Steps run in this order, each command in a process of its own with its own time limit: a fault costs one command, and each
result is written at once. Nothing is downloaded. A skipped step prints the reason. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = ("build", "smoke", "kernels", "decodes", "ops", "gpu")
PAIR, LARGE = ("Llama-3.1-8B", "Llama-3.2-1B"), ("Qwen3-32B", "Qwen3-0.6B")  # target, draft
TOOLS = ("rounds", "decode")  # the scripts that measure whole decodes
OPTIONAL = {
    "hypothesis": "no test is run",
    "pytest": "no test is run",
    "xdist": "tests run in one process",
    "cupy": "the tests against CuPy are not run",
    "transformers": "the forward passes are not held against transformers'",
    "flashinfer": "FlashInfer is not timed beside paged_attention",
}


def missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def missing_dependencies() -> list[str]:
    """The packages in setup.py's DEPENDENCIES that cannot be imported here."""
    spec = importlib.util.spec_from_file_location("ssd_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in setup.DEPENDENCIES]
    return [name for name in names if missing(name)]


def run(title: str, *command: str | Path, limit: float, **environment: str) -> bool:
    """Runs a command and shows its output as it comes; did it succeed within `limit` seconds?"""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"SSD_CUDA": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment
    # A session of its own: processes that the command has started end with it.
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env=env, start_new_session=True)
    try:
        code = process.wait(limit)
        outcome = "done" if code == 0 else f"FAILED, ended with {code}"
    except subprocess.TimeoutExpired:
        code, outcome = 1, f"FAILED, was stopped after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"== {title}: {outcome} in {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


def why_not() -> str | None:
    if missing("torch"):
        return f"{sys.executable} cannot import torch; PYTHON=... chooses another Python."
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build; a CUDA build is needed."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU here."
    return None


def build() -> bool:
    return run("build", sys.executable, "setup.py", "build_ext", "--inplace", limit=400)


def smoke() -> bool:
    """With and without overlapping launches where the difference may matter."""
    case = (sys.executable, "tests/gpu/smoke.py")
    done = [run("smoke: conditional node", *case, "conditional", limit=60)]
    done.append(run("smoke: conditional node, SSD_PDL=0", *case, "conditional", limit=60, SSD_PDL="0"))
    done += [run(f"smoke: decode, {mode}", *case, mode, limit=90) for mode in ("ar", "sd", "ssd")]
    return all(done)


def kernels(results: Path) -> bool:
    return run("kernels", sys.executable, "profiling/kernels.py", "--results", results, limit=300)


def decodes(results: Path, large: bool) -> bool:
    """Whole decodes, by rounds and by tokens/s."""
    sys.path.insert(0, str(ROOT))
    import torch

    from ssd.errors import SsdError
    from ssd.models import registry

    def pair(kind: str, name: str, *options: str, tools: Sequence[str] = TOOLS, models: Sequence[str] = PAIR) -> bool:
        prompts = "chat" if kind == "inflated" else "random"
        workload = f"--target {kind}:{models[0]} --draft {kind}-draft:{models[1]} --prompts {prompts}"
        settings = "--device cuda --limit 4 --max-new-tokens 128 --ignore-eos"
        limit = 240 if models is PAIR else 900
        done = []
        for tool in tools:
            command = (
                sys.executable,
                f"profiling/{tool}.py",
                *workload.split(),
                *settings.split(),
                "--results",
                results,
                *options,
            )
            runs = ("--runs", "2") if tool == "decode" else ()
            done.append(run(f"{tool}-{name}", *command, "--name", f"{tool}-{name}", *runs, limit=limit))
        return all(done)

    good = pair("bigram", "bigram")
    good &= pair("bigram", "bigram-int8", "--weights", "int8")
    try:
        registry.resolve("smollm2-135m")
        good &= pair("inflated", "inflated")
    except SsdError as error:
        print(f"SKIPPED: the inflated pair; {error}")
    if large:
        good &= pair("bigram", "bigram-32b", models=LARGE)
        if torch.cuda.device_count() > 1:
            apart = ("--draft-device", "cuda:1", "--lookahead", "5", "--budget", "16")
            good &= pair("bigram", "two-gpus", *apart, tools=("rounds",), models=LARGE)
        else:
            print("SKIPPED: two GPUs; there is one.")
    return good


def tests(part: str, results: Path, *which: str, limit: float) -> bool:
    """Some of the tests, in a pytest process of their own that writes a result file of their own."""
    if missing("pytest") or missing("hypothesis"):
        print(f"SKIPPED: {part}; pytest and hypothesis are needed.")
        return True
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    spread = () if missing("xdist") else ("-n", "4", "--dist", "loadfile")
    where = ("--backend", "gpu", "--results", results, "--results-part", part)
    return run(part, *pytest, *spread, *where, *which, limit=limit)


def gpu(results: Path, sanitizer: bool) -> bool:
    watched = "tests/gpu/test_sanitizer.py"
    good = tests("gpu", results, "tests/gpu", f"--ignore={watched}", limit=580)
    if sanitizer:
        good &= tests("sanitizer", results, watched, limit=1300)
    return good


def chosen_steps(text: str) -> list[str]:
    """Some of STEPS, with commas between them, in the order of STEPS."""
    names = text.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"there is no step {unknown[0]!r}; choose from {','.join(STEPS)}")
    return [step for step in STEPS if step in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=chosen_steps, default=list(STEPS), help=f"some of {','.join(STEPS)} (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "profiling" / "results", help="folder of the result files")
    parser.add_argument("--no-sanitizer", action="store_true", help="leave compute-sanitizer out of the step gpu")
    parser.add_argument(
        "--large", action="store_true", help="also Qwen3-32B and 0.6B, 70 GB, and on two GPUs where there are two"
    )
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"SKIPPED: gpu-check; {reason}")
    results = args.results.resolve()  # commands run in ROOT
    if absent := missing_dependencies():
        print(
            f"MISSING: ssd depends on {', '.join(absent)}; code that imports them fails. `pip install {' '.join(absent)}` adds them."
        )
    for package, consequence in OPTIONAL.items():
        if missing(package):
            print(f"SKIPPED: {package} is not installed; {consequence}.")
    if not args.no_sanitizer and not (
        shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    ):
        print("SKIPPED: compute-sanitizer is not here; nothing watches the kernels' memory accesses.")

    start = time.monotonic()
    steps = {
        "build": build,
        "smoke": smoke,
        "kernels": lambda: kernels(results),
        "decodes": lambda: decodes(results, args.large),
        "ops": lambda: tests("ops", results, "tests/ops", limit=580),
        "gpu": lambda: gpu(results, not args.no_sanitizer),
    }
    outcomes = {}
    for step in args.steps:
        outcomes[step] = steps[step]()
        if step == "build" and not outcomes[step]:
            break
    minutes = (time.monotonic() - start) / 60
    failed = [step for step, good in outcomes.items() if not good]
    print(f"\ngpu-check: {'FAILED: ' + ', '.join(failed) if failed else 'all held'}, {minutes:.1f} minutes")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
