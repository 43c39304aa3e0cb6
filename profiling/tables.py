"""Makes docs/benchmarks.md, docs/gpu-status.md, docs/kernels.md and the README's block of figures from
profiling/results/*.json.

python profiling/tables.py          writes the pages
python profiling/tables.py --check  fails if a page differs from the one that the results give
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `make check` runs python -P, which leaves this folder out

from common.results import read_results
from pages import benchmarks, gpu_status, kernels, readme

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": readme.page,
    "docs/benchmarks.md": benchmarks.page,
    "docs/gpu-status.md": gpu_status.page,
    "docs/kernels.md": kernels.page,
}


def main() -> None:
    results = read_results()
    stale = []
    for name, page in PAGES.items():
        path, text = ROOT / name, page(results)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"{', '.join(stale)}: differs from the files in profiling/results; run python profiling/tables.py.")


if __name__ == "__main__":
    main()
