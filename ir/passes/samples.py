"""Turns expressions into vectors of random values of their leaves, to test identities between formulas.

Conditions on indices and tensors count as independent random booleans and tensor elements as independent
numbers, so an identity that holds on the samples holds for every class of keys, not only for likely ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    OldStat,
    Score,
    Stat,
    children,
    is_row_only,
    kind_of,
    stats_in,
    walk,
)
from attncompiler.ir.interpreter import evaluate

if TYPE_CHECKING:
    from torch import Tensor

# 4 * 512 values a vector: torch hands longer ones to its thread pool, which costs more than it saves here.
COUNT = 512


def atoms(*roots: Expr) -> tuple[Expr, ...]:
    """The nodes that are sampled: leaves, tensor elements and conditions without score or statistics."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Const):
            continue
        seen.add(node)
        if _is_atom(node):
            found[node] = None
        else:
            stack.extend(reversed(children(node)))
    return tuple(found)


def _is_atom(node: Expr) -> bool:
    match node:
        case Call():
            return is_comparison(node) and not any(
                isinstance(n, Score | Stat | OldStat) for n in walk(node)
            )
        case _:
            return True


def is_comparison(node: Expr) -> bool:
    """Whether a node makes a truth value out of numbers."""
    match node:
        case Call(_, args):
            return kind_of(node) == "bool" and any(kind_of(a) != "bool" for a in args)
        case _:
            return False


class Samples:
    """Random values for two keys (0 and 1) under two states of the running statistics (0 old, 1 new).

    Every value is a vector of ``4 * COUNT`` samples, laid out as [key, state, sample]: what depends on
    neither is drawn once and repeated. ``positive`` names statistics that are never negative.
    """

    def __init__(
        self, roots: Iterable[Expr], running: frozenset[str], positive: frozenset[str]
    ) -> None:
        import torch

        self.running, self.positive = running, positive
        self.generator = torch.Generator().manual_seed(20260101)
        self.leaves: dict[Expr, Tensor] = {atom: self._draw(atom) for atom in atoms(*roots)}

    def values(self, expr: Expr) -> Tensor:
        """The value of an expression, shape [2 keys, 2 states, COUNT]."""
        import torch

        value = evaluate(expr, self.leaves)
        return torch.broadcast_to(value, (4 * COUNT,)).reshape(2, 2, COUNT)

    def _draw(self, atom: Expr) -> Tensor:
        import torch

        keys = 1 if is_row_only(atom) else 2
        states = 2 if self.running & stats_in(atom) else 1
        shape, g = (keys, states, COUNT), self.generator
        match kind_of(atom):
            case "bool":
                value = torch.rand(shape, generator=g) < 0.5
                # In half of the samples both keys are of one class: a body may be 0 for all others.
                value[-1, :, ::2] = value[0, :, ::2]
            case "int":
                value = torch.randint(1, 40, shape, generator=g)
            case "float":
                value = torch.randn(shape, generator=g, dtype=torch.float64)
                # Small and large values beside each other, to meet the branches of maxima and conditions.
                value = value * torch.tensor([0.4, 1.5, 1.5, 3.0], dtype=torch.float64).repeat(
                    COUNT // 4
                )
                # Half of the samples are positive throughout, for formulas with roots and logarithms.
                value[..., : COUNT // 2] = value[..., : COUNT // 2].abs()
                if isinstance(atom, Stat) and atom.name in self.positive:
                    value = value.abs() + 0.05
        return value.expand(2, 2, COUNT).reshape(-1)


def key_atoms(expr: Expr) -> tuple[Expr, ...]:
    """The sampled nodes that differ from key to key."""
    return tuple(a for a in atoms(expr) if not is_row_only(a))
