"""The checks of test_law.py and of fork reject kernels that are broken on purpose."""

from __future__ import annotations

import pytest

from ops.backend import only_on_the_cpu
from ops.fork_check import assert_fork
from ops.law import Decoding, law_p_value
from ops.mutants import compiler, load_mutants

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="mutants are compiled, and there is no C++ compiler"),
    only_on_the_cpu("the mutants are of the CPU's ops"),
]

REJECTED = 1e-9  # far below the p-value of any passing configuration of test_law.py


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return load_mutants(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize(
    "name, decoding",
    [
        ("greedy_miss", Decoding((1, 1, 1), drawn=False)),
        ("shared_stream", Decoding((1, 1, 1))),
        ("shared_stream", Decoding((3, 2, 1))),
        ("shared_uniform", Decoding((2, 2), vocabulary=6)),
        ("residual_not_renormalised", Decoding((2, 2), vocabulary=6)),
        ("proposal_not_renormalised", Decoding((3, 2, 1))),
        ("rejected_sibling_kept", Decoding((2, 2), vocabulary=6)),
    ],
    ids=str,
)
def test_the_law_rejects_a_broken_kernel(mutants: dict[str, object], name: str, decoding: Decoding) -> None:
    assert law_p_value(mutants[name].verify, decoding) < REJECTED


def test_mutants_of_sibling_tests_do_not_change_a_chain(mutants: dict[str, object]) -> None:
    """So these mutants differ from the kernel only in their treatment of siblings."""
    assert law_p_value(mutants["shared_uniform"].verify, Decoding((1, 1, 1))) > 1e-4


def test_the_check_of_fork_rejects_guessing_the_drafted_token(mutants: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="slot"):
        assert_fork(mutants["drafted_token_not_excluded"].fork, seed=1, lookahead=3, vocabulary=64, budget=8, levels=1000)


def test_the_check_of_fork_passes_the_mutant_if_nothing_was_drafted(mutants: dict[str, object]) -> None:
    assert_fork(mutants["drafted_token_not_excluded"].fork, seed=1, lookahead=0, vocabulary=64, budget=8, levels=1000)
