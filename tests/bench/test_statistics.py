"""Intervals and tests, against published tables of Student's t."""

from __future__ import annotations

import math

import pytest

from ssd.bench.statistics import interval, paired_ratio, two_sided_p


@pytest.mark.parametrize(
    "t,degrees,p",
    [
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (2.262, 9, 0.05),
        (3.250, 9, 0.01),
        (1.372, 10, 0.2),
        (2.042, 30, 0.05),
        (0.0, 4, 1.0),
    ],
)
def test_p_is_that_of_the_tables(t: float, degrees: int, p: float) -> None:
    assert two_sided_p(t, degrees) == pytest.approx(p, abs=2e-4)


def test_a_ratio_is_paired() -> None:
    """What all pairs share cancels, however much the pairs differ from each other."""
    base = [1.0, 10.0, 100.0, 1000.0]
    found = paired_ratio([value * factor for value, factor in zip(base, (1.1, 1.2, 1.1, 1.2), strict=True)], base)
    assert found.mean == pytest.approx(math.sqrt(1.1 * 1.2))
    low, high = found.interval
    assert 1 < low < found.mean < high < 1.25
    assert found.p is not None and found.p < 0.02
    assert paired_ratio(base, base).p == 1.0
    assert paired_ratio([2.0], [1.0]).p is None
    assert paired_ratio([2.0, 4.0], [1.0, 2.0]).p == 0.0


def test_an_interval_of_one_value_is_that_value() -> None:
    assert interval([3.0]) == [3.0, 3.0]
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.30 / math.sqrt(3)), pytest.approx(2 + 4.30 / math.sqrt(3)))
