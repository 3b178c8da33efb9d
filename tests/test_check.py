"""The property check itself: its cases cover the awkward sizes, its verdict has teeth, its shrinking ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import attncompiler.oracle
from attncompiler.cases import GROUPS, HEAD_DIMS, LAYOUTS, LENGTHS, Case, draw_cases
from attncompiler.check import Checker, Outcome
from attncompiler.dsl import Variant, causal, exp, log
from attncompiler.yardstick import compare, completed

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Causal(Variant):
    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)


def test_cases_cover_the_sizes_that_break_kernels() -> None:
    cases = draw_cases(0, 32, DTYPES)
    assert {c.M for c in cases} == {c.N for c in cases} == set(LENGTHS)
    assert {c.D for c in cases} >= set(HEAD_DIMS)
    assert {c.H // c.G for c in cases} == set(GROUPS)
    assert {c.layout for c in cases} == set(LAYOUTS)
    assert {c.dtype for c in cases} == set(DTYPES)
    assert any(c.B == 0 for c in cases)
    assert any(c.M > c.N for c in cases)
    assert any(c.M < c.N for c in cases)
    assert any(c.Dv != c.D for c in cases)
    assert any(c.q_start for c in cases)
    assert len({(c.dtype, c.D, c.Dv) for c in cases}) <= 16, "each is a build of its own"


def test_cases_repeat_by_seed_and_parse_back() -> None:
    cases = draw_cases(3, 20, DTYPES)
    assert cases == draw_cases(3, 20, DTYPES)
    assert cases != draw_cases(4, 20, DTYPES)
    assert [Case.parse(str(case)) for case in cases] == cases


@pytest.mark.parametrize("case", draw_cases(1, 8, DTYPES), ids=str)
def test_layouts_change_strides_and_nothing_else(case: Case) -> None:
    checker = object.__new__(Checker)
    checker.variant = Causal()
    q, k, v, _ = checker.inputs(case)
    assert q.shape == (case.B, case.H, case.M, case.D)
    assert v.shape == (case.B, case.G, case.N, case.Dv)
    for x in (q, k, v):
        assert x.stride(-1) == 1 or x.shape[-1] == 1
        assert not x.isnan().any()
    if case.layout != "broadcast":
        plain = checker.inputs(replace(case, layout="plain"))
        assert all(torch.equal(a, b) for a, b in zip((q, k, v), plain[:3], strict=True))


def test_a_kernel_may_have_twice_the_error_of_plain_pytorch_and_no_more() -> None:
    exact = torch.linspace(0.5, 1.0, 8, dtype=torch.float64).reshape(1, 1, 2, 4)
    plain = (exact + 1e-4).float()
    assert compare("out", (exact + 1.9e-4).float(), plain, exact).passed
    assert not compare("out", (exact + 2.2e-4).float(), plain, exact).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_single_bad_number_fails(bad: float) -> None:
    exact = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    found = exact.float()
    found[0, 1, 2, 3] = bad
    # A yardstick that overflows must not excuse anything.
    comparison = compare("out", found, found, exact)
    assert not comparison.passed
    assert comparison.position == (0, 1, 2, 3)
    assert "out[0, 1, 2, 3]" in Outcome(Case(), (comparison,)).describe()


def test_an_infinite_statistic_of_an_empty_row_is_right() -> None:
    exact = torch.full((1, 1, 2), -math.inf, dtype=torch.float64)
    assert compare("stats.lse", exact.float(), exact.float(), exact).passed


def test_shrinking_ends_at_a_smallest_case() -> None:
    class Fails(Checker):
        def __init__(self) -> None:
            pass

        def run(self, case: Case) -> Outcome:
            bad = case.M >= 5 and case.N >= 3 and case.H > case.G
            exact = torch.ones(1, dtype=torch.float64)
            found = torch.full((1,), math.nan if bad else 1.0)
            return Outcome(case, (compare("out", found, found, exact),))

    start = Case(M=257, N=129, H=6, G=2, q_start=64, layout="padded")
    smallest = Fails().shrink(Fails().run(start)).case
    assert (smallest.M, smallest.N, smallest.B, smallest.G) == (5, 3, 1, 1)
    assert (smallest.q_start, smallest.layout) == (0, "plain")


def test_right_kernels_pass() -> None:
    report = Checker(Causal()).report(draw_cases(0, 4, ("float32",)))
    assert report.passed, report.summary()


def test_wrong_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = Checker(Causal())
    right = checker.operator

    def off_by_one(q, k, v, *, q_start, **rest):  # type: ignore[no-untyped-def]
        return right(q, k, v, q_start=q_start + 1, **rest)

    monkeypatch.setattr(checker, "operator", off_by_one)
    report = checker.report([Case(M=63, N=129), Case(M=5, N=5)])
    assert len(report.failures) == 2
    smallest = checker.shrink(report.failures[0])
    assert (smallest.case.M, smallest.case.N) == (1, 2)


class Lost(Variant):
    """1e-9 is zero in float16, so rows whose weights are all zero there divide by it."""

    def score(self, s: Any, at: Any) -> Any:
        return s - 0.3 * (at.q - at.k)

    def mask(self, at: Any) -> Any:
        return causal(at)

    def normalize(self, s: Any, row: Any) -> Any:
        w = log(1.0 + exp(s))
        return w / (row.sum(w) + 1e-9)


# Some rows see only keys far away.
FAR = Case(B=1, H=1, G=1, M=125, N=20, D=31, Dv=16, dtype="float16", seed=9)


def test_float32_is_the_yardstick_where_float16_has_no_number() -> None:
    checker = Checker(Lost(), gradients=True)
    q, k, v, tensors = checker.inputs(FAR)
    plain = attncompiler.oracle.attention(checker.variant, q, k, v, tensors=tensors, dtype=None)
    assert plain.out.isnan().any()
    outcome = checker.run(FAR)
    assert outcome.passed, outcome.describe()
    assert all(c.plain_error > c.floor for c in outcome.comparisons if c.what == "grad.k")


def test_numbers_are_completed_only_where_the_exact_one_is_finite() -> None:
    plain = {"a": torch.tensor([1.0, math.nan, math.inf, 4.0], dtype=torch.float16)}
    exact = {"a": torch.tensor([1.0, 2.0, math.inf, 4.5], dtype=torch.float64)}
    found = completed(plain, exact, lambda: {"a": torch.tensor([9.0, 2.25, 9.0, 9.0])})
    assert found["a"].tolist() == [1.0, 2.25, math.inf, 4.0]
    whole = {"a": exact["a"].half()}
    assert completed(whole, exact, lambda: pytest.fail("nothing is missing"))["a"] is whole["a"]
