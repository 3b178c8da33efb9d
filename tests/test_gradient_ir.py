"""The derived gradient, evaluated by definition, equals float64 autograd of the user's own formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.ir.gradient_run import run_gradient
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.preparation import run_prepare
from attncompiler.variant import Variant
from attncompiler.variant_file import load_variant
from tests.example_table import files

CASE = Case(B=2, H=4, G=2, M=7, N=13, D=8, Dv=5, q_start=6, dtype="float64", seed=3)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_gradient_of_an_example_is_that_of_its_formula(path: Path) -> None:
    assert_gradients(load_variant(path), CASE)


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
    for name, mine, theirs in zip(
        ["q", "k", "v", *names],
        [*found[:3], *(found.tensors[n] for n in names)],
        expected,
        strict=True,
    ):
        wanted = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(
            mine, wanted, rtol=1e-9, atol=1e-10, msg=lambda m: f"{name}: {m}"
        )
