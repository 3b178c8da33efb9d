"""Turns a body and its moving statistics into a verdict on the edges: branches that move, infinite maxima.

A body with the right factor on ordinary values may still be wrong to stream where a maximum has met nothing but
-inf, or where keys change branch as statistics move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attncompiler.ir.expr import (
    Call,
    Expr,
    OldStat,
    Score,
    Stat,
    is_row_only,
    kind_of,
    stats_in,
    walk,
)
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.passes.samples import COUNT, Samples, is_comparison
from attncompiler.ir.program import Reduction
from attncompiler.ir.streaming import IDENTITY, readable, row_parts

if TYPE_CHECKING:
    from torch import Tensor


def switches(body: Expr, running: frozenset[str], samples: Samples) -> bool:
    """Whether a comparison of key and running statistics comes out otherwise after they moved.

    Such a body may look separable when an outer maximum hides most of the switches from the samples.
    """
    import torch

    difference: Expr
    for node in walk(body):
        if is_row_only(node) or not running & stats_in(node):
            continue
        match node:
            case Call("max" | "min", (x, y)):
                difference = Call("sub", (x, y))
            case Call(_, (x, y)) if is_comparison(node) and kind_of(x) == "float":
                difference = Call("sub", (x, y))
            case Call("abs" | "sign", (x,)):
                difference = x
            case _:
                continue
        old, new = samples.values(difference).unbind(1)
        if bool((torch.sign(old) * torch.sign(new) < 0).any()):
            return True
    return False


def vanishes(body: Expr, extrema: dict[str, Reduction], positive: frozenset[str]) -> bool:
    """Whether a key that leaves maxima or minima at their identity contributes 0, read by the law of reading.

    Keys with scores of -inf and +inf are drawn; a drawn set of statistics at their identity counts only
    where this key's own terms of them are the identity too, and where the formula is finite at all once
    the statistics are.
    """
    import torch

    names = frozenset(extrema)
    samples = Samples([body, *(r.body for r in extrema.values())], names, positive)
    leaves, g = samples.leaves, samples.generator
    if Score() in leaves:
        kind = torch.randint(0, 4, (4 * COUNT,), generator=g)
        score = leaves[Score()].clone()
        score[kind == 0], score[kind == 1] = -torch.inf, torch.inf
        leaves[Score()] = score
    regular = values_of(body, leaves).isfinite()
    possible = regular.clone()
    for name, r in extrema.items():
        identity = IDENTITY[r.op]
        untouched = torch.rand((4 * COUNT,), generator=g) < 0.6
        own = values_of(r.body, leaves).reshape(-1) == identity
        possible &= (~untouched | own).reshape(2, 2, COUNT)
        leaves[Stat(name)] = torch.where(untouched, identity, leaves[Stat(name)])
    blind = torch.zeros_like(possible)
    for part in row_parts(body, names):
        if kind_of(part) == "float":
            blind |= ~values_of(part, leaves).isfinite()
    if not bool((values_of(readable(body, names), leaves)[possible & blind] == 0).all()):
        return False
    return all(_follows(body, r, samples) for r in extrema.values())


def _follows(body: Expr, r: Reduction, samples: Samples) -> bool:
    """Whether the law of reading is right at a key that takes an extremum to the far infinity, as +inf does a maximum.

    An exponential of the score minus its maximum is NaN there, and so is the whole row; one that only bounds
    the score is not, and needs the infinite maximum that the law reads as 0.
    """
    import torch

    far = -IDENTITY[r.op]
    leaves = dict(samples.leaves)
    reached = values_of(r.body, leaves) == far
    leaves[Stat(r.name)] = torch.full_like(leaves[Stat(r.name)], far)
    true = values_of(body, leaves)
    read = values_of(readable(body, [r.name]), leaves)
    return bool((read == true)[reached & true.isfinite()].all())


def with_old(samples: Samples) -> dict[Expr, Tensor]:
    """The sampled leaves with OldStat leaves added, every state-0 value beside its state-1 value."""
    leaves = dict(samples.leaves)
    for leaf, value in samples.leaves.items():
        if isinstance(leaf, Stat):
            states = value.reshape(2, 2, COUNT)
            leaves[OldStat(leaf.name)] = states[:, :1].expand(2, 2, COUNT).reshape(-1)
    return leaves


def values_of(expr: Expr, leaves: Mapping[Expr, Tensor]) -> Tensor:
    """The value of an expression for sampled leaves, shape [2 keys, 2 states, COUNT]."""
    import torch

    return torch.broadcast_to(evaluate(expr, leaves), (4 * COUNT,)).reshape(2, 2, COUNT)
