"""Variants nobody wrote: gradients of operators put together at random, by autograd and by finite differences."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from attncompiler.cases import Case
from attncompiler.check import Checker
from tests.gradients import gradcheck
from tests.random_variants import NORMALIZERS, Parts, cycled, variants

pytestmark = pytest.mark.usefixtures("quick_builds")

CASES = [
    Case(B=2, H=4, G=2, M=21, N=35, D=8, Dv=6, q_start=14, dtype="float64", seed=1),
    Case(B=1, H=3, G=1, M=70, N=41, D=8, Dv=6, layout="swapped", dtype="float64", seed=2),
]
TINY = Case(B=1, H=2, G=1, M=3, N=5, D=8, Dv=6, q_start=4, dtype="float64", seed=3)


def assert_gradients(variant: Parts) -> None:
    checker = Checker(variant)
    for case in CASES:
        for c in checker.gradients(case):
            # Formulas put together blindly may cancel almost everything: what is left is judged by what went in.
            assert c.error <= max(c.limit, 100 * c.floor), (case, c)
    gradcheck(checker, TINY)


@pytest.mark.parametrize("number", range(len(NORMALIZERS)))
def test_every_piece(number: int) -> None:
    assert_gradients(cycled(number))


# Each example builds two kernels, so a failure is shrunk by hand.
@pytest.mark.slow
@settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(variants)
def test_drawn_variants(drawn: Parts) -> None:
    assert_gradients(drawn)
