"""Speculation does not change the target's distribution: the joint law of the first three tokens, enumerated exactly.

200,000 draws per configuration, with a chi-square test at 0.001 divided by the number of configurations. test_mutants.py shows
that the check rejects broken kernels.
"""

from __future__ import annotations

import pytest

from ops.backend import ssd_ops
from ops.law import Decoding, law_p_value

PROCESSED = (0.8, 6, 0.95, 0.02)

DECODINGS = [
    Decoding((1,), vocabulary=8),
    Decoding((1, 1), vocabulary=6, saguaro_c=0.3),
    Decoding((1, 1, 1), vocabulary=7),
    Decoding((1, 1, 1), vocabulary=7, saguaro_c=0.3),
    Decoding((1, 1, 1), vocabulary=8, processing=PROCESSED),
    Decoding((1, 1, 1), vocabulary=8, processing=PROCESSED, saguaro_c=0.3),
    Decoding((1, 1, 1), vocabulary=7, drawn=False),
    Decoding((2, 2), vocabulary=6),
    Decoding((2, 2), vocabulary=8, processing=PROCESSED, saguaro_c=0.3),
    Decoding((2, 2), vocabulary=7, drawn=False),
    Decoding((3, 2, 1), vocabulary=7),
    Decoding((3, 2, 1), vocabulary=7, saguaro_c=0.3),
    Decoding((3, 2, 1), vocabulary=8, processing=PROCESSED),
]


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_decoding_follows_the_targets_law(decoding: Decoding) -> None:
    assert law_p_value(ssd_ops.verify, decoding) > 0.001 / len(DECODINGS)
