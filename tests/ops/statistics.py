"""Chi-square tests of counted outcomes against an enumerated law. Imported as `ops.statistics`."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square_p(observed: Tensor, law: Tensor, least: float = 5.0) -> float:
    """The p-value of outcomes [draws] int64 under law [outcomes] float64. Cells with an expected count below `least` are
    pooled.

    Returns 0 if an impossible outcome was observed.
    """
    counts = torch.bincount(observed, minlength=len(law)).double()
    expected = law * len(observed)
    if float(counts[law == 0].sum()) > 0:
        return 0.0
    order = expected.argsort(descending=True)
    counts, expected = counts[order], expected[order]
    cells = max(1, int((expected >= least).sum()))
    if cells < len(law) and float(expected[cells:].sum()) >= least:
        cells += 1
    cell = torch.arange(len(law)).clamp_max(cells - 1)  # the rare outcomes are pooled in the last cell
    count, mean = (torch.zeros(cells, dtype=torch.float64).index_add(0, cell, x) for x in (counts, expected))
    if cells == 1:
        return 1.0
    statistic = ((count - mean) ** 2 / mean).sum()
    return float(torch.special.gammaincc(torch.tensor((cells - 1) / 2, dtype=torch.float64), statistic / 2))
