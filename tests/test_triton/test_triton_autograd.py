"""Triton operators as torch ops: opcheck, checkpoints, torch.compile, and gradients that only some inputs want."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import attncompiler
from attncompiler.dsl import Variant
from tests.test_autograd import CALLS, Full, Plain, gradients, leaves, loss_of
from tests.triton_calls import use_tiles


def operator(variant: type[Variant]) -> Any:
    op = attncompiler.compile(variant, backend="triton")
    use_tiles(op, 16, 16)
    return op


@pytest.mark.parametrize("variant", CALLS)
def test_gradients_are_those_of_the_oracle(variant: type[Variant]) -> None:
    found = []
    for op in (operator(variant), attncompiler.compile(variant, backend="dense")):
        given = leaves(variant)
        loss_of(op, given).backward()
        found.append(gradients(given))
    assert set(found[0]) == set(found[1]) >= {"q", "k", "v"}
    for name, mine in found[0].items():
        torch.testing.assert_close(mine, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", [Plain, pytest.param(Full, marks=pytest.mark.slow)])
def test_opcheck(variant: type[Variant]) -> None:
    op, given = operator(variant), leaves(variant)
    names = ("q", "k", "v", *(t.name for t in op.compilation.kernel.tensors))
    numbers = [op._params[p.name] for p in op.compilation.kernel.params]
    arguments = [
        *(given[n][:1] if n in ("q", "k", "v", "gate", "ids") else given[n] for n in names)
    ]
    arguments = [x.detach().requires_grad_(x.is_floating_point()) for x in arguments]
    ops = op._registered
    torch.library.opcheck(ops.forward, (*arguments, 1, 0.3, *numbers, True, True))


@pytest.mark.parametrize("wanted", [("k",), ("sink", "gate")])
def test_only_what_is_wanted_gets_a_gradient(wanted: tuple[str, ...]) -> None:
    op, every = operator(Full), leaves(Full)
    loss_of(op, every).backward()
    some = {
        n: x.detach().requires_grad_(n in wanted) if isinstance(x, Tensor) and n != "ids" else x
        for n, x in leaves(Full).items()
    }
    loss_of(op, some).backward()
    found = gradients(some)
    assert set(found) == set(wanted)
    for name, x in found.items():
        torch.testing.assert_close(x, every[name].grad, rtol=1e-5, atol=1e-6)


def test_checkpoints() -> None:
    op, plain, saved = operator(Full), leaves(Full), leaves(Full)
    loss_of(op, plain).backward()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return loss_of(op, saved | {"q": q, "k": k, "v": v})

    checkpoint(run, saved["q"], saved["k"], saved["v"], use_reentrant=False).backward()
    assert gradients(saved).keys() == gradients(plain).keys()
    assert all(torch.equal(x, gradients(plain)[n]) for n, x in gradients(saved).items())


def test_compiles_in_one_graph() -> None:
    torch.compiler.reset()
    op = operator(Full)

    def step(given: dict[str, Any]) -> Tensor:
        out, stats = op(**given, return_stats=True)
        return out.square().sum() + sum(
            torch.where(s.isfinite(), s, 0.0).sum() for s in stats.values()
        )

    eager, compiled = leaves(Full), leaves(Full)
    losses = step(eager), torch.compile(step, fullgraph=True, backend="eager")(compiled)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for name, x in gradients(compiled).items():
        torch.testing.assert_close(x, gradients(eager)[name], rtol=1e-4, atol=1e-5)


def test_a_second_backward_is_the_first_again() -> None:
    op, given = operator(Plain), leaves(Plain)
    loss = loss_of(op, given)
    loss.backward(retain_graph=True)
    first = given["q"].grad.clone()
    loss.backward()
    assert torch.equal(given["q"].grad, 2 * first)


def test_backends_do_not_share_an_op() -> None:
    """Through torch, where a call is one registered op, each runs its own kernels."""
    ops = [attncompiler.compile(Plain, backend=b) for b in ("triton", "cpp", "auto")]
    assert ops[0]._registered is not ops[1]._registered
    results = []
    for op in ops:
        given = leaves(Plain)
        loss_of(op, given).backward()
        results.append(given["k"].grad)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-4, atol=1e-5)
