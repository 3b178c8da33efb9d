"""Calls with values and tensors that look right and are not: each is refused by name, or means what it says."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

import attncompiler
from attncompiler.dsl import Variant
from attncompiler.errors import ParameterTypeError
from attncompiler.runtime.errors import ForwardModeError, TransformError, VariantTypeError

pytestmark = pytest.mark.usefixtures("quick_builds")


class Shifted(Variant):
    """A parameter of each kind."""

    gain: float = 1.0
    width: int = 5

    def score(self, s: Any, at: Any) -> Any:
        return s * self.gain

    def mask(self, at: Any) -> Any:
        return at.k <= at.q + self.width


@pytest.fixture(scope="module")
def op() -> Any:
    return attncompiler.compile(Shifted)


def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, 9, 16, generator=generator)
    k, v = torch.randn(2, 1, 2, 30, 16, generator=generator)
    return q, k, v


@pytest.mark.parametrize(
    "argument",
    [
        {"width": 2**63},
        {"gain": 10**400},
        {"q_start": 1.5},
        {"q_start": None},
        {"q_start": True},
        {"scale": "a"},
        {"scale": torch.ones(2)},
    ],
    ids=str,
)
def test_values_of_another_type(op: Any, argument: dict[str, object]) -> None:
    with pytest.raises(ParameterTypeError, match=next(iter(argument))):
        op(*qkv(), **argument)


def test_numbers_may_be_tensors(op: Any) -> None:
    q, k, v = qkv()
    given = op(q, k, v, q_start=torch.tensor(3), scale=torch.tensor(0.5), gain=torch.tensor(2.0))
    assert torch.equal(given, op(q, k, v, q_start=3, scale=0.5, gain=2))


def test_transforms_are_refused(op: Any) -> None:
    q, k, v = qkv()
    with pytest.raises(
        TransformError, match=r"^q is inside a transform(?s:.*)first axis is the batch"
    ):
        torch.vmap(lambda x: op(x, k, v))(q[None])
    with pytest.raises(TransformError, match=r"^v is inside"):
        torch.func.grad(lambda x: op(q, k, x).sum())(v)


def test_fake_tensors_give_fake_results(op: Any) -> None:
    q, k, v = qkv()
    with FakeTensorMode() as mode:
        out = op(*(mode.from_tensor(x) for x in (q, k, v)))
    assert isinstance(out, FakeTensor)
    assert (out.shape, out.dtype, out.stride()) == (q.shape, q.dtype, q.stride())


def test_a_negated_view_means_its_values(op: Any) -> None:
    q, k, v = qkv()
    negated = torch._neg_view(q)
    assert negated.is_neg()
    assert torch.equal(op(negated, k, v), op(-q, k, v))


def test_subclasses_of_tensor_are_tensors(op: Any) -> None:
    class Named(torch.Tensor):
        pass

    q, k, v = qkv()
    assert torch.equal(op(q.as_subclass(Named), k, v).as_subclass(torch.Tensor), op(q, k, v))


def test_forward_derivatives_are_not_dropped(op: Any) -> None:
    q, k, v = qkv()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ForwardModeError):
        op(torch.autograd.forward_ad.make_dual(q, q), k, v)  # type: ignore[no-untyped-call]


def test_operators_can_be_copied_and_pickled(op: Any) -> None:
    q, k, v = qkv()
    expected = op(q, k, v)
    for other in (copy.deepcopy(op), copy.copy(op), pickle.loads(pickle.dumps(op))):
        assert torch.equal(other(q, k, v), expected)


def test_compile_takes_variants_only() -> None:
    with pytest.raises(VariantTypeError, match="no variant"):
        attncompiler.compile(3)  # type: ignore[call-overload]
    with pytest.raises(VariantTypeError, match="no variant"):
        attncompiler.compile(torch.nn.Linear)  # type: ignore[call-overload]
