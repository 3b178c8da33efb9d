"""Decides whether parts of a row formula sum to 0 as an identity, by evaluating them on random numbers.

Every comparison counts as a free truth value and every statistic, tensor element and parameter as a free number, so
an identity that holds on the samples holds in every branch. A polynomial or rational identity that fails somewhere
fails at almost every point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Call, Const, Expr, Stat, children, kind_of, rewrite
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.passes.samples import is_comparison
from attncompiler.ir.streaming import finite_or_zero

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_COUNT = 512
_TOLERANCE = 1e-9
_ENOUGH = 32


def cancel(parts: Sequence[Expr], positive: frozenset[str]) -> bool:
    """Whether the parts (row formulas) sum to 0; ``positive`` names statistics that are never negative."""
    import torch

    parts = [rewrite(p, _unguarded) for p in parts]
    generator = torch.Generator().manual_seed(20260303)
    leaves = {n: _draw(n, positive, generator) for n in _free(parts)}
    values = torch.stack([evaluate(p, leaves).expand(_COUNT) for p in parts])
    total, scale = values.sum(0).abs(), values.abs().amax(0)
    telling = torch.isfinite(values).all(0) & (scale > 0)
    return int(telling.sum()) >= _ENOUGH and bool(
        (total <= _TOLERANCE * scale * len(parts))[telling].all()
    )


def _unguarded(node: Expr) -> Expr:
    """A guarded value where it is finite: an identity is looked for there."""
    match node:
        case Call("where", (_, value, Const(0.0))) if node is finite_or_zero(value):
            return value
        case _:
            return node


def _free(parts: Sequence[Expr]) -> list[Expr]:
    """The nodes that are drawn: comparisons and leaves."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = list(parts)
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Const):
            continue
        seen.add(node)
        if is_comparison(node) or not isinstance(node, Call):
            found[node] = None
        else:
            stack.extend(children(node))
    return list(found)


def _draw(node: Expr, positive: frozenset[str], generator: torch.Generator) -> Tensor:
    import torch

    match kind_of(node):
        case "bool":
            return torch.rand(_COUNT, generator=generator) < 0.5
        case "int":
            return torch.randint(1, 40, (_COUNT,), generator=generator)
        case "float":
            value = torch.randn(_COUNT, generator=generator, dtype=torch.float64)
            if isinstance(node, Stat) and node.name in positive:
                return value.abs() + 0.05
            # Half of the samples positive throughout, for formulas with roots and logarithms.
            value[: _COUNT // 2] = value[: _COUNT // 2].abs()
            return value
