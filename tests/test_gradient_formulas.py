"""Gradients of formulas at the compiler's own levels: written cases, random ones, and closed forms of papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from formula_cases import CASES
from formulas import PARAMS, Inputs, dense, inputs
from random_formulas import RandomFormula

from attncompiler.compiler import compile_levels
from attncompiler.dsl import Tensor, Variant, exp, log, maximum, relu, sigmoid, sign, where
from attncompiler.frontend import trace
from attncompiler.ir.backward_run import run_backward
from attncompiler.ir.expr import Stat, Value
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.gradient_run import Gradients, run_gradient
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.exp2 import use_exp2
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.passes.stabilize import stabilize
from attncompiler.ir.program import Program
from attncompiler.ir.verify_gradient import verify_gradient


def gradient_of(program: Program) -> Gradient:
    for run in (canonicalize, merge_reductions, stabilize, use_exp2):
        program = run(program)
    gradient = differentiate(derive(program))
    verify_gradient(gradient)
    return gradient


def autograd(
    program: Program, x: Inputs, out_grad: torch.Tensor, stat_grads: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients of q, k, v and the floating tensors, by torch, of the dense definition."""
    leaves = {"q": x.query, "k": x.key, "v": x.value}
    leaves |= {n: t for n, t in x.tensors.items() if t.is_floating_point()}
    leaves = {n: t.clone().requires_grad_() for n, t in leaves.items()}
    tensors = x.tensors | {n: t for n, t in leaves.items() if n in x.tensors}
    y = Inputs(leaves["q"], leaves["k"], leaves["v"], tensors, x.q_start)
    out, stats = dense(program, y)
    loss = (out * out_grad).sum()
    for name, stat in stats.items():
        loss = loss + torch.where(stat.isfinite(), stat * stat_grads[name], 0.0).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        n: torch.zeros_like(t) if g is None else g
        for (n, t), g in zip(leaves.items(), found, strict=True)
    }


def saved_by_forward(gradient: Gradient, x: Inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    program = gradient.program
    stats = tuple((r.name, Stat(r.name)) for r in program.reductions)
    return dense(replace(program, kept=stats, output_reductions=(), output=Value()), x)


def both_levels(
    gradient: Gradient, x: Inputs, out_grad: torch.Tensor, stat_grads: dict[str, torch.Tensor]
) -> list[Gradients]:
    call = {"kept_grads": stat_grads, "q_start": x.q_start, "scale": 1.0, "params": PARAMS}
    tensors = {"tensors": x.tensors}
    first = run_gradient(gradient, x.query, x.key, x.value, out_grad, **call, **tensors)
    wanted = frozenset(n for n, t in x.tensors.items() if t.is_floating_point())
    value, saved = saved_by_forward(gradient, x)
    second = run_backward(
        lower_gradient(gradient, wanted),
        x.query,
        x.key,
        x.value,
        out_grad,
        value=value,
        saved=saved,
        block=3,
        tile=8,
        **call,
        **tensors,
    )
    return [first, second]


def assert_gradients(program: Program, x: Inputs, tolerance: float = 1e-8) -> None:
    gradient = gradient_of(program)
    generator = torch.Generator().manual_seed(5)
    shape = (*x.query.shape[:3], x.value.shape[-1])
    out_grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    stat_grads = {
        name: torch.randn(shape[:3], generator=generator, dtype=torch.float64)
        for name, _ in program.kept
    }
    expected = autograd(program, x, out_grad, stat_grads)
    finite = [e[e.isfinite()].abs() for e in expected.values()]
    largest = max((e.max().item() for e in finite if e.numel()), default=1.0)
    for level, found in zip(
        ("gradient", "loops"), both_levels(gradient, x, out_grad, stat_grads), strict=True
    ):
        for name, exact in expected.items():
            mine = getattr(found, name) if name in "qkv" else found.tensors.get(name)
            if mine is None:
                assert not exact.any(), (level, name)
                continue
            # torch itself gives NaN where 0 meets infinity in a branch that was not taken.
            good = exact.isfinite()
            error = (mine - exact)[good].abs()
            limit = tolerance * (exact[good].abs() + 1e-3 * largest + 1e-6)
            assert bool((error <= limit).all()), (level, name, error.max(), largest)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("q_start", [0, 9])
def test_written_formulas(name: str, q_start: int) -> None:
    assert_gradients(CASES[name].program, inputs(3, q_start=q_start))


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=[pytest.mark.slow] if i >= 60 else []) for i in range(300)]
)
def test_random_formulas(seed: int) -> None:
    program = RandomFormula(seed).program()
    assert_gradients(program, inputs(seed, m=4, n=11, spread=1.0, q_start=3 + seed % 5), 1e-6)


# -- closed forms, written down by hand for the gradient of the score -------------------------------------------------


class Cog(Variant):
    """The sign of the score times a softmax of its magnitude."""

    def normalize(self, s, row):
        e = exp(abs(s) - row.max(abs(s)))
        return sign(s) * e / row.sum(e)


class Gated(Variant):
    """A gate that only the numerator sees."""

    gate = Tensor("k")

    def normalize(self, s, row):
        e = exp(s - row.max(s))
        return self.gate[row.k] * e / row.sum(e)


class Weighted(Variant):
    """A gate that numerator and denominator see."""

    gate = Tensor("k")

    def normalize(self, s, row):
        e = exp(s - row.max(s)) * sigmoid(self.gate[row.k])
        return e / row.sum(e)


class Elementwise(Variant):
    """No state a row."""

    def normalize(self, s, row):
        return sigmoid(s)


class SumNormalized(Variant):
    """A positive map over its sum."""

    def normalize(self, s, row):
        phi = relu(s) + 0.25
        return phi / row.sum(phi)


class SignedClamp(Variant):
    """A signed sum, clamped away from zero."""

    def normalize(self, s, row):
        return s / maximum(abs(row.sum(s)), 1.0)


class Classes(Variant):
    """Three classes of keys; the third is scaled by the share of the second."""

    def normalize(self, s, row):
        e = exp(s - row.max(s))
        p = e / row.sum(e)
        second = row.sum(where(row.k % 3 == 1, p, 0.0))
        third = row.sum(where(row.k % 3 == 2, p, 0.0))
        scaled = where(row.k % 3 == 1, 0.6 * p, p * (1 + 0.4 * second / third))
        return where(row.k % 3 == 0, p, scaled)


class Sink(Variant):
    """A learned logit in the denominator."""

    sink = Tensor("h")

    def normalize(self, s, row):
        m = maximum(row.max(s), self.sink[row.h])
        e = exp(s - m)
        row.keep("lse", m + log(row.sum(e) + exp(self.sink[row.h] - m)))
        return e / (row.sum(e) + exp(self.sink[row.h] - m))


Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _delta(w: torch.Tensor, dw: torch.Tensor) -> torch.Tensor:
    return (w * dw).sum(-1, keepdim=True)


def _cog(s, dw, gate, sink):
    p = s.abs().softmax(-1)
    return p * (dw - s.sign() * _delta(p * s.sign(), dw))


def _gated(s, dw, gate, sink):
    p = s.softmax(-1)
    return p * (gate * dw - _delta(p * gate, dw))


def _weighted(s, dw, gate, sink):
    w = s.exp() * gate.sigmoid()
    w = w / w.sum(-1, keepdim=True)
    return w * (dw - _delta(w, dw))


def _elementwise(s, dw, gate, sink):
    return s.sigmoid() * (1 - s.sigmoid()) * dw


def _sum_normalized(s, dw, gate, sink):
    phi = s.relu() + 0.25
    total = phi.sum(-1, keepdim=True)
    return (dw - _delta(phi / total, dw)) / total * (s > 0)


def _signed_clamp(s, dw, gate, sink):
    total = s.sum(-1, keepdim=True)
    limit = total.abs().clamp(min=1)
    active = (total.abs() > 1).double() * total.sign()
    return (dw - active * _delta(s / limit, dw)) / limit


def _classes(s, dw, gate, sink):
    p = s.softmax(-1)
    masks = [(torch.arange(s.shape[-1]) % 3 == c).double() for c in range(3)]
    share = [(p * m).sum(-1, keepdim=True) for m in masks]
    factors = [1.0, 0.6, 1 + 0.4 * share[1] / share[2]]
    third = 0.4 * (p * masks[2] * dw).sum(-1, keepdim=True)
    extra = [torch.zeros_like(third), third / share[2], -third * share[1] / share[2] ** 2]
    inner = sum(m * (f * dw + x) for m, f, x in zip(masks, factors, extra, strict=True))
    return p * (inner - (p * inner).sum(-1, keepdim=True))


def _sink(s, dw, gate, sink):
    p = torch.cat([sink[None, :, None, None].expand(*s.shape[:3], 1), s], -1).softmax(-1)[..., 1:]
    return p * (dw - _delta(p, dw))


@pytest.mark.parametrize(
    ("variant", "rule", "walks"),
    [
        (Cog, _cog, 1),
        (Gated, _gated, 1),
        (Weighted, _weighted, 1),
        (Elementwise, _elementwise, 1),
        (SumNormalized, _sum_normalized, 1),
        (SignedClamp, _signed_clamp, 1),
        (Classes, _classes, None),
        (Sink, _sink, 1),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else None,
)
def test_closed_forms(variant: type[Variant], rule: Rule, walks: int | None) -> None:
    """The derived gradient is the one on paper, in as many walks over the keys as the paper needs."""
    x = inputs(11, m=6, n=13, spread=1.5)
    generator = torch.Generator().manual_seed(2)
    out_grad = torch.randn(2, 4, 6, 2, generator=generator, dtype=torch.float64)
    gate = torch.randn(13, generator=generator, dtype=torch.float64)
    sink = torch.randn(4, generator=generator, dtype=torch.float64)
    compilation = compile_levels(trace(variant()))
    gradient = compilation.gradient
    assert walks in (None, len(gradient.stages))
    tensors = {"gate": gate, "sink": sink}
    tensors = {n: t for n, t in tensors.items() if n in variant._tensors}
    found = run_gradient(
        gradient, x.query, x.key, x.value, out_grad, scale=1.0, tensors=tensors,
        params=compilation.trace.params,
    )  # fmt: skip
    key, value = (t.repeat_interleave(2, 1) for t in (x.key, x.value))
    s, dw = x.query @ key.transpose(-1, -2), out_grad @ value.transpose(-1, -2)
    ds = rule(s, dw, gate, sink)
    torch.testing.assert_close(found.q, ds @ key, rtol=1e-9, atol=1e-9)
    by_head = ds.transpose(-1, -2) @ x.query
    torch.testing.assert_close(found.k, by_head.unflatten(1, (2, 2)).sum(2), rtol=1e-9, atol=1e-9)
    p = s.softmax(-1)
    if variant is Gated:
        torch.testing.assert_close(found.tensors["gate"], (p * dw).sum((0, 1, 2)))
    if variant is Sink:
        all_p = torch.cat([sink[None, :, None, None].expand(*s.shape[:3], 1), s], -1).softmax(-1)
        expected = (-all_p[..., 0] * _delta(all_p[..., 1:], dw)[..., 0]).sum((0, 2))
        torch.testing.assert_close(found.tensors["sink"], expected)
