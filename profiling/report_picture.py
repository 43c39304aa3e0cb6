"""The picture of a report in README.md and docs/report.md: the first chart of the newest committed result of `ssd bench`.

python -P profiling/report_picture.py          # writes docs/report.svg
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import vl_convert

from ssd.bench.results import BenchResult
from ssd.report import charts, rows

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "report.svg"
WIDTH, INK, PAPER = 720, "#1d1f24", "#fdfdfc"  # of the page in light colours


def main() -> None:
    newest = max(RESULTS.glob("*-bench.json"))
    chart = charts.speed(rows.speeds(rows.variants_of([BenchResult.read(newest)])))
    chart["width"], chart["config"]["background"] = WIDTH, PAPER
    picture = vl_convert.vegalite_to_svg(chart).replace("currentColor", INK)
    ElementTree.fromstring(picture)  # it is well formed
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {PICTURE.name} from {newest.name}")


if __name__ == "__main__":
    main()
