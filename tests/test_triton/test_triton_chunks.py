"""Backwards that multiply the rows of wide heads a few features at a time, against those of whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attncompiler
from attncompiler.backends.tile_config import summed_width
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, relu, sigmoid
from tests.test_gradients_edges import Extrema
from tests.triton_calls import checker, failures, use_tiles


class Window(Variant):
    """Rows whose gradient is that of the output; rows without keys, empty and partial tiles."""

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < 20)


class Gated(Variant):
    """Rows have a gradient of their own, which the first kernel leaves and reads again; a gradient of pairs."""

    gate = Input("b", "q", "d")
    bias = Input("h", "q", "k")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.h, at.q, at.k]

    def mask(self, at: Any) -> Any:
        return at.k <= at.q + 3

    def output(self, o: Any, at: Any) -> Any:
        return o * sigmoid(self.gate[at.b, at.q, at.d])


class TwoWalks(Variant):
    """A sum of gradients of rows is found before the walk for dq."""

    def normalize(self, s: Any, row: Any) -> Any:
        weight = relu(s) + 0.1
        return weight / (row.sum(weight) + row.max(s))


@pytest.mark.parametrize(
    ("variant", "chunk"), [(Window, 16), (Gated, 32), (Extrema, 16), (TwoWalks, 64)]
)
def test_gradients(variant: type[Variant], chunk: int) -> None:
    """Head dimensions that end within a chunk, that are a few chunks and that are less than one."""
    mine = checker(variant)
    use_tiles(mine.operator, 16, 32, chunk=chunk)
    dtype = "bfloat16" if variant is Window else "float32"
    case = Case(B=1, H=2, G=1, M=37, N=45, D=40, Dv=16, q_start=20, dtype=dtype)
    if variant is Gated:
        case = Case(B=1, H=1, G=1, M=37, N=45, D=64, Dv=72, q_start=3)
    assert not failures(mine, [case])


@pytest.mark.parametrize("dims", [(8, 40), (40, 8)], ids=str)
def test_gradients_of_heads_of_which_one_side_is_narrow(dims: tuple[int, int]) -> None:
    """Its sums are kept in tiles that are wider than the head, and than a chunk."""
    assert summed_width(16, "columns", 32, 16) == 64 > summed_width(16, "columns", 32, 0)
    mine = checker(Window)
    use_tiles(mine.operator, 16, 32, chunk=16)
    assert not failures(mine, [Case(B=1, H=2, G=1, M=37, N=45, D=dims[0], Dv=dims[1], q_start=8)])


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("variant", [Window, Gated])
def test_chunks_add_up_to_whole_rows(variant: type[Variant], deterministic: bool) -> None:
    """Where floats are added as they come, the kernel of the columns adds up dq chunk by chunk as well."""
    op = attncompiler.compile(variant, backend="triton", deterministic=deterministic)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 40, requires_grad=True) for n in (37, 45, 45))
    tensors: dict[str, Tensor] = {}
    if variant is Gated:
        tensors["gate"] = torch.randn(1, 37, 40, requires_grad=True)
        tensors["bias"] = torch.randn(2, 37, 45, requires_grad=True)

    def gradients(chunk: int) -> tuple[Tensor, ...]:
        use_tiles(op, 16, 32, chunk=chunk)  # type: ignore[arg-type]
        out = op(q, k, v, **tensors)
        wave = torch.arange(out.numel()).cos().reshape(out.shape)
        return torch.autograd.grad((out * wave).sum(), (q, k, v, *tensors.values()))

    for found, wanted in zip(gradients(16), gradients(0), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
