"""`make gpu-check`: builds the CUDA kernels with the Python and the torch there are, tests them on this machine's GPU, times them and
whole decodes: of a large pair with random weights, and of one with a small pair's function where smollm2-135m is here.

Nothing is downloaded. What cannot be done is said: a step that is skipped, and why. Ends with 1 where a step failed.

    python3 profiling/gpu_check.py [--results DIR] [--large]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAIR, LARGE = ("Llama-3.1-8B", "Llama-3.2-1B"), ("Qwen3-32B", "Qwen3-0.6B")  # target, draft
TOOLS = ("rounds", "decode")  # what whole decodes are measured with
ENVIRONMENT = os.environ | {"SSD_CUDA": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
OPTIONAL = {
    "hypothesis": "the op tests are not run",
    "pytest": "no test is run",
    "cupy": "the tests against CuPy are not run",
    "transformers": "the forward passes are not held against transformers'",
    "flashinfer": "FlashInfer is not timed beside paged_attention",
}


def missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def run(title: str, *command: str | Path) -> bool:
    """One step, its output as it comes; did it succeed?"""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    code = subprocess.call([str(word) for word in command], cwd=ROOT, env=ENVIRONMENT)
    print(
        f"== {title}: {'done' if code == 0 else f'FAILED, ended with {code}'} in {time.monotonic() - start:.0f} s", flush=True
    )
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


def decodes(results: Path, large: bool) -> bool:
    """Whole decodes, by rounds and by tokens/s."""
    sys.path.insert(0, str(ROOT))
    import torch

    from ssd.errors import SsdError
    from ssd.models import registry

    def pair(kind: str, name: str, *options: str, tools: Sequence[str] = TOOLS, models: Sequence[str] = PAIR) -> bool:
        draft, prompts = ("inflated-draft", "chat") if kind == "inflated" else (kind, "random")
        which = f"--target {kind}:{models[0]} --draft {draft}:{models[1]} --prompts {prompts}"
        how = "--device cuda --limit 4 --max-new-tokens 128 --ignore-eos"
        done = []
        for tool in tools:
            command = (sys.executable, f"profiling/{tool}.py", *which.split(), *how.split(), "--results", results, *options)
            done.append(
                run(f"{tool}-{name}", *command, "--name", f"{tool}-{name}", *(("--runs", "2") if tool == "decode" else ()))
            )
        return all(done)

    good = pair("random", "random")
    try:
        registry.resolve("smollm2-135m")
        good &= pair("inflated", "inflated")
    except SsdError as error:
        print(f"SKIPPED: the inflated pair; {error}")
    if large:
        good &= pair("random", "random-32b", models=LARGE)
        if torch.cuda.device_count() > 1:
            apart = ("--draft-device", "cuda:1", "--lookahead", "5", "--budget", "16")
            good &= pair("random", "two-gpus", *apart, tools=("rounds",), models=LARGE)
        else:
            print("SKIPPED: two GPUs; there is one.")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "profiling" / "results", help="folder of the result files")
    parser.add_argument(
        "--large", action="store_true", help="also Qwen3-32B and 0.6B, 70 GB, and on two GPUs where there are two"
    )
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"SKIPPED: gpu-check; {reason}")
    for package, consequence in OPTIONAL.items():
        if missing(package):
            print(f"SKIPPED: {package} is not installed; {consequence}.")
    if shutil.which("compute-sanitizer") is None:
        print("SKIPPED: compute-sanitizer is not on the path; nothing watches the kernels' memory accesses.")

    start = time.monotonic()
    if not run("build", sys.executable, "setup.py", "build_ext", "--inplace"):
        sys.exit(1)
    good = True
    if not missing("pytest") and not missing("hypothesis"):
        pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "gpu", "--results", args.results)
        good &= run("tests", *pytest, "tests/ops", "tests/gpu")
    good &= run("kernels", sys.executable, "profiling/kernels.py", "--results", args.results)
    good &= decodes(args.results, args.large)
    print(f"\ngpu-check: {'all held' if good else 'SOMETHING FAILED'}, {(time.monotonic() - start) / 60:.1f} minutes")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
