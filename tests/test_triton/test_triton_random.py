"""Variants and formulas nobody wrote, in Triton's interpreter: outputs and gradients of what was drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from formulas import PARAMS, Inputs, dense, inputs
from hypothesis import HealthCheck, Phase, given, settings
from random_formulas import RandomFormula

from attncompiler.cases import Case
from attncompiler.compiler import compile_levels
from attncompiler.dsl import Tensor, Variant
from attncompiler.frontend import Trace, trace
from attncompiler.runtime.operator import Operator
from tests.random_variants import MASKS, NORMALIZERS, OUTPUTS, SCORES, Parts, cycled, variants
from tests.triton_calls import checker, use_tiles

Results = tuple[torch.Tensor, dict[str, torch.Tensor]]
CASE = Case(B=1, H=2, G=1, M=21, N=35, D=8, Dv=6, q_start=14, seed=1)
OTHERS = [
    Case(B=2, H=4, G=2, M=21, N=35, D=8, Dv=6, q_start=14, seed=1),
    Case(B=1, H=3, G=1, M=70, N=41, D=8, Dv=6, layout="swapped", seed=2),
]


def assert_right(variant: Parts, cases: list[Case]) -> None:
    mine = checker(variant)
    use_tiles(mine.operator, 16, 32)
    for case in cases:
        for c in (*mine.run(case).comparisons, *mine.gradients(case)):
            # Formulas put together blindly may cancel almost everything: what is left is judged by what went in.
            assert c.error <= max(c.limit, 100 * c.floor), (case, c)


# Odd numbers alone: every mask, half of the normalizers.
@pytest.mark.parametrize(
    "number",
    [pytest.param(i, marks=[] if i % 2 else [pytest.mark.slow]) for i in range(len(NORMALIZERS))],
)
def test_every_piece(number: int) -> None:
    assert len(NORMALIZERS) >= max(len(SCORES), len(MASKS), len(OUTPUTS))
    assert_right(cycled(number), [CASE])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("number", range(2 * len(NORMALIZERS)))
def test_every_piece_in_longer_calls(number: int, dtype: str) -> None:
    assert_right(cycled(number), [replace(case, dtype=dtype) for case in OTHERS])


@pytest.mark.slow
@settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(variants)
def test_drawn_variants(drawn: Parts) -> None:
    assert_right(drawn, [CASE])


class Declared(Variant):
    """The tensors that random formulas read; the parameters are added below."""

    sink = Tensor("h")
    gate = Tensor("h", "k")
    temp = Tensor("h", "q")
    tag = Tensor("k", dtype="int")
    slope = Tensor("h")
    bias = Tensor("k")


@cache
def declared() -> Trace:
    types = {name: type(value) for name, value in PARAMS.items()}
    return trace(type("Declared", (Declared,), {**PARAMS, "__annotations__": types})())


Numbers = dict[str, torch.Tensor]


def judged(call: Callable[[Numbers], Results], x: Inputs, dtype: torch.dtype) -> Numbers:
    """Output, the kept statistic and all gradients of a call that takes leaves of one type."""
    leaves = {"query": x.query, "key": x.key, "value": x.value}
    leaves |= {name: t for name, t in x.tensors.items() if t.is_floating_point()}
    leaves = {name: t.to(dtype).requires_grad_() for name, t in leaves.items()}
    out, kept = call(leaves)
    results = {"out": out, "last": kept["last"]}
    waves = {
        n: torch.arange(y.numel()).cos().to(dtype).reshape(y.shape) for n, y in results.items()
    }
    loss = sum((y * waves[n]).sum() for n, y in results.items() if y.requires_grad)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
    return {n: y.detach() for n, y in (results | gradients).items()}


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=[pytest.mark.slow] if i >= 4 else []) for i in range(120)]
)
def test_random_formulas(seed: int) -> None:
    """Ten times the error of plain PyTorch is allowed: some of these formulas are ill-conditioned in places."""
    program = RandomFormula(seed).program()
    op = Operator(compile_levels(replace(declared(), program=program)), "triton")
    use_tiles(op, 16, 16)
    x = inputs(seed, m=4, n=19, spread=1.0, q_start=3 + seed % 5)
    x = replace(x, query=x.query[:1], key=x.key[:1], value=x.value[:1])

    def formula(mine: Numbers) -> Results:
        tensors = {name: mine.get(name, t) for name, t in x.tensors.items()}
        return dense(program, Inputs(mine["query"], mine["key"], mine["value"], tensors, x.q_start))

    def kernels(mine: Numbers) -> Results:
        tensors = {name: mine.get(name, x.tensors[name]) for name in op._reads}
        q, k, v = (mine[name] for name in ("query", "key", "value"))
        found: Results = op(q, k, v, q_start=x.q_start, scale=1.0, return_stats=True, **tensors)
        return found

    exact, plain = (judged(formula, x, t) for t in (torch.float64, torch.float32))
    found = judged(kernels, x, torch.float32)
    for name, right in exact.items():
        if name not in found:
            assert not right.any(), name  # a gradient that is 0 everywhere
            continue
        good = right.isfinite() & plain[name].isfinite()
        error, usual = ((y.double() - right)[good].abs() for y in (found[name], plain[name]))
        if good.any():
            limit = 10 * usual.max() + 1e-5 * right[good].abs().max() + 1e-6
            assert bool((error <= limit).all()), (name, error.max(), limit)
