"""Gradients through flex_attention: to q, k, v and to every tensor that a body reads, against autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

from attncompiler import flex_attention
from tests.flex_cases import DistanceDecay, documents, sequence_lengths
from tests.flex_reference import Body, causal, dense, window_of

pytestmark = pytest.mark.usefixtures("quick_builds")

S = 37
Case = tuple[Body | None, Body | None, list[Tensor]]


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def plain() -> Case:
    return None, causal, []


def slopes_of_heads() -> Case:
    slopes = doubles(4)
    return lambda s, b, h, i, j: s + slopes[h] * (j - i), causal, [slopes]


def several_indexings() -> Case:
    """One table read three times, once more through a view, and a scalar read twice."""
    table, factor = doubles(4, 2 * S), doubles()

    def score_mod(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        near = table[h, i - j + S] * factor
        return s * factor + near + table[0, j] * table[1][i]

    return score_mod, window_of(11), [table, factor]


def pair_bias() -> Case:
    bias = doubles(2, 1, S, S)
    return lambda s, b, h, i, j: torch.tanh(s) + bias[b, 0, i, j], None, [bias]


def gates_by_row_and_key() -> Case:
    rows, keys = doubles(2, 4, S), doubles(2, S)
    return lambda s, b, h, i, j: s * torch.sigmoid(rows[b, h, i]) + keys[b, j], causal, [rows, keys]


def learned_sink() -> Case:
    sink = doubles(4)
    return lambda s, b, h, i, j: torch.where(j == 0, sink[h], s), causal, [sink]


def empty_rows() -> Case:
    slopes = doubles(4)
    lengths = sequence_lengths()[1]
    return lambda s, b, h, i, j: s + slopes[h] * i, lengths, [slopes]


def masked_by_score() -> Case:
    bias = torch.where(torch.rand(S, S) < 0.5, 0.0, -math.inf).double()
    bias[3] = -math.inf
    bias.requires_grad_()
    return (
        lambda s, b, h, i, j: torch.where(i >= j, s * s + bias[i, j], -float("inf")),
        None,
        [bias],
    )


def module_body() -> Case:
    body = DistanceDecay().double()
    return body, causal, list(body.parameters())


CASES = [
    plain,
    slopes_of_heads,
    several_indexings,
    pair_bias,
    gates_by_row_and_key,
    learned_sink,
    empty_rows,
    masked_by_score,
    module_body,
]


@pytest.fixture
def float64_everywhere() -> Iterator[None]:
    """Torch turns integers into the default type; the definition must not be less exact than the kernel."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_everywhere")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_gradients(case: Callable[[], Case]) -> None:
    score_mod, mask_mod, tensors = case()
    q, k, v = doubles(2, 4, S, 8), doubles(2, 2, S, 8), doubles(2, 2, S, 12)
    every = [q, k, v, *tensors]
    out, aux = flex_attention(
        q, k, v, score_mod, mask_mod=mask_mod, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    wanted = dense(q, k, v, score_mod, mask_mod)
    weight, other = torch.randn_like(out), torch.randn_like(aux.lse)
    other = torch.where(wanted.lse == -math.inf, 0.0, other)
    found = torch.autograd.grad((out * weight).sum() + finite(aux.lse, other), every)
    exact = torch.autograd.grad((wanted.out * weight).sum() + finite(wanted.lse, other), every)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def finite(lse: Tensor, weight: Tensor) -> Tensor:
    return (lse[weight != 0] * weight[weight != 0]).sum()


def test_gradients_through_block_lists() -> None:
    """Empty blocks give no gradient, whatever mask_mod would say."""
    document_id = documents([20, 17, 27])
    slopes = doubles(4)

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i >= j) & (document_id[i] == document_id[j])

    def score_mod(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + slopes[h] * (j - i)

    q, k, v = (doubles(2, 4, 64, 8) for _ in range(3))
    block_mask = create_block_mask(mask_mod, None, None, 64, 64, "cpu", BLOCK_SIZE=16)
    block_mask.kv_num_blocks[0, 0, 2] -= 1  # the last partial block of this row
    dropped = int(block_mask.kv_indices[0, 0, 2, block_mask.kv_num_blocks[0, 0, 2]])
    at = torch.arange(64)
    allowed = ~((at[:, None] // 16 == 2) & (at // 16 == dropped)).expand(2, 4, 64, 64)
    out = flex_attention(q, k, v, score_mod, block_mask)
    wanted = dense(q, k, v, score_mod, mask_mod, allowed)
    weight = torch.randn_like(out)
    found, exact = (
        torch.autograd.grad((o * weight).sum(), (q, k, v, slopes)) for o in (out, wanted.out)
    )
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_parameters_train_without_new_operators() -> None:
    """The closure is made anew in each step, as in the forward of a module."""
    import attncompiler.flex

    torch.manual_seed(0)
    slopes = nn.Parameter(torch.zeros(4))
    q, k, v, goal = torch.randn(4, 1, 4, 50, 8).unbind()
    optimizer = torch.optim.SGD([slopes], lr=0.5)
    losses, operators = [], set()
    for step in range(8):

        def score_mod(s: Any, b: Any, h: Any, i: Any, j: Any, scale: int = step + 1) -> Any:
            return s + slopes[h] * (j - i) * (0.1 / scale) * scale

        loss = (flex_attention(q, k, v, score_mod, mask_mod=causal) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        operators.add(len(attncompiler.flex._OPERATORS))
    assert losses[-1] < losses[0]
    assert len(operators) == 1
