"""The derived gradient, evaluated by definition, equals float64 autograd of the user's own formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.ir.backward_run import run_backward
from attncompiler.ir.dense import run_program
from attncompiler.ir.expr import Stat, Value
from attncompiler.ir.gradient_run import Gradients, run_gradient
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.preparation import run_prepare
from attncompiler.variant import Variant
from attncompiler.variant_file import load_variant
from tests.example_table import files
from tests.gradients import row_major

CASE = Case(B=2, H=4, G=2, M=7, N=13, D=8, Dv=5, q_start=6, dtype="float64", seed=3)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_gradient_of_an_example_is_that_of_its_formula(path: Path) -> None:
    assert_gradients(row_major(load_variant(path)), CASE)


def assert_gradients(variant: Variant, case: Case) -> None:
    checker = Checker(variant)
    case = checker.fitted(case)
    trace = checker.operator.compilation.trace
    q, k, v, tensors = checker.inputs(case)
    params = trace.params
    with torch.no_grad():
        q, k, v, tensors = run_prepare(
            variant, q, k, v, tensors | trace.captured, params=params, q_start=case.q_start
        )
    gradient = differentiate(checker.operator.compilation.plan)
    names = [t.name for t in gradient.program.tensors if t.kind == "float"]
    leaves = [q, k, v, *(tensors[n].double() for n in names)]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    plain = type("Plain", (type(variant),), {"prepare": None})
    given = tensors | dict(zip(names, leaves[3:], strict=True))
    # prepare has run already: the rest of the variant is what the kernel computes.
    view = object.__new__(plain)
    view.__dict__.update(variant.__dict__)
    scale = params.get("scale", trace.scale)
    result = attncompiler.oracle.attention(
        view, *leaves[:3], q_start=case.q_start, tensors=given, scale=scale
    )
    generator = torch.Generator().manual_seed(case.seed)

    def noise(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    out_grad = noise(result.out)
    kept_grads = {name: noise(x) for name, x in result.stats.items()}
    loss = (result.out * out_grad).sum()
    for name, x in result.stats.items():
        loss = loss + torch.where(x.isfinite(), x * kept_grads[name], 0.0).sum()
    expected = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = run_gradient(
        gradient,
        *(x.detach() for x in leaves[:3]),
        out_grad,
        kept_grads=kept_grads,
        q_start=case.q_start,
        scale=scale,
        params=params,
        tensors={n: x.detach() for n, x in given.items()},
    )
    _same(found, expected, names)
    # The loops, from what a forward saves.
    values, stats = _saved(gradient, leaves, case.q_start, scale, params, given)
    backward = lower_gradient(gradient, frozenset(names))
    again = run_backward(
        backward,
        *(x.detach() for x in leaves[:3]),
        out_grad,
        value=values,
        saved=stats,
        kept_grads=kept_grads,
        q_start=case.q_start,
        scale=leaves[0].shape[-1] ** -0.5 if scale is None else scale,
        params=params,
        tensors={n: x.detach() for n, x in given.items()},
        block=5,
        tile=4,
    )
    _same(again, expected, names)


def _same(found: Gradients, expected: tuple[torch.Tensor | None, ...], names: list[str]) -> None:
    for name, exact in zip(["q", "k", "v", *names], expected, strict=True):
        mine = getattr(found, name) if name in ("q", "k", "v") else found.tensors.get(name)
        if mine is None or exact is None:
            assert mine is None or not mine.any(), name
            assert exact is None or not exact.any(), name
        else:
            torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-10, msg=name)


def _saved(gradient, leaves, q_start, scale, params, given):
    """The output row before the epilogue and the statistics of the forward program."""
    program = gradient.program
    bare = replace(
        program,
        kept=tuple((r.name, Stat(r.name)) for r in program.reductions),
        output_reductions=(),
        output=Value(),
    )
    with torch.no_grad():
        return run_program(
            bare, *leaves[:3], q_start=q_start, scale=scale, params=params, tensors=given
        )
