"""Formulas that once gave wrong numbers in C++, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attncompiler
from attncompiler import oracle
from attncompiler.dsl import Variant, where


class ChosenByRow(Variant):
    """A truth value of the row chooses between truth values of the pair."""

    def mask(self, at: Any) -> Any:
        return where(at.q % 2 == 0, at.k <= at.q, at.k > at.q)


class NegatedByRow(Variant):
    """The opposite of a truth value of the row meets one of the pair."""

    def mask(self, at: Any) -> Any:
        return ~((at.q % 3 == 0) & (at.k > 5))


class RowStatisticCompared(Variant):
    """A comparison of a final statistic meets one of the score."""

    def normalize(self, s: Any, row: Any) -> Any:
        big = row.max(s) > 1.5
        return where(big ^ (s > 0), s, 1.0) / row.count() + (big == (row.k % 2 == 0))


class DividedByZero(Variant):
    """Integer division by zero gives 0, in masks, tile conditions and scores; -2**63 // -1 does not trap."""

    n: int = 0
    least: int = -(2**63)

    def score(self, s: Any, at: Any) -> Any:
        trap = self.least // (at.k % 3 - 1) + (self.least + at.k * 0) // -1
        return s + at.k // self.n + at.q % self.n + 7 % (at.k % 2) + where(trap % 5 == 0, 1.0, 2.0)

    def mask(self, at: Any) -> Any:
        return (
            (at.k % self.n == 0) & ((at.q - at.k) % self.n <= 0) & (at.k % self.n == at.q // self.n)
        )


VARIANTS = [ChosenByRow, NegatedByRow, RowStatisticCompared, DividedByZero]


@pytest.mark.parametrize("variant", VARIANTS)
def test_formula(variant: type[Variant]) -> None:
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, 37, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 150, 16, generator=generator)
    got = attncompiler.compile(variant)(q, k, v)
    expected = oracle.attention(variant(), q, k, v).out
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


class ManyConditions(Variant):
    """A mask whose tile conditions are long."""

    def mask(self, at: Any) -> Any:
        allowed = at.k <= at.q
        for i in range(16):
            allowed = allowed & ((at.k - i * at.q) % (i + 2) != 0) | (at.k == i)
        return allowed


def test_long_tile_conditions_are_functions_of_their_own() -> None:
    """Copied to each place of use, these took a compiler minutes."""
    assert "OUTLINE bool possible(" in attncompiler.compile(ManyConditions).source()
    assert "INLINE bool possible(" in attncompiler.compile(ChosenByRow).source()
