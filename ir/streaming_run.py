"""Turns a StreamingPlan and tensors into an output, tile by tile on torch: the meaning of a plan.

A ``Walk`` holds what all tiles share, a ``State`` what one part of the keys has contributed to one pass. States
absorb tiles and merge with each other by the laws of ``ir/streaming.py``; sequential streaming, split key ranges
and rings of machines are different orders of the same two operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attncompiler.ir.expr import (
    Dot,
    Expr,
    Index,
    OldStat,
    Param,
    Score,
    Size,
    SizeName,
    Stat,
    Value,
)
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.program import ReduceOp
from attncompiler.ir.streaming import (
    IDENTITY,
    Accumulator,
    RowStat,
    StreamingPlan,
    readable,
    rescaling,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Number = float | int | bool


@dataclass(slots=True)
class State:
    """What the keys seen so far gave to one pass.

    ``stats`` and ``seen`` are [B, H, M] (``seen``: the row met an allowed key), ``sums`` [B, H, M, Dv].
    """

    stats: dict[str, Tensor]
    sums: dict[str, Tensor]
    seen: Tensor


@dataclass(slots=True)
class Walk:
    """A plan with its inputs; ``finals`` are the statistics of finished passes, [B, H, M]."""

    plan: StreamingPlan
    query: Tensor
    key: Tensor
    value: Tensor
    q_start: int
    scale: float
    params: Mapping[str, Number]
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    finals: dict[str, Tensor] = field(default_factory=dict)

    def start(self, pass_: int) -> State:
        """The state of a pass before any key."""
        import torch

        b, h, m = self.query.shape[:3]

        def full(value: float) -> Tensor:
            return torch.full((b, h, m), value, dtype=self.dtype)

        stats = {s.name: full(IDENTITY[s.op]) for s in self.plan.stats_of(pass_)}
        zeros = full(0.0)[..., None].expand(b, h, m, self.value.shape[-1])
        sums = {a.name: zeros for a in self.plan.accumulators_of(pass_)}
        return State(stats, sums, torch.zeros((b, h, m), dtype=torch.bool))

    def absorb(self, pass_: int, state: State, keys: Tensor) -> State:
        """The state after the tile of the given key positions (int64, any order, may be empty)."""
        import torch

        leaves = self._tile_leaves(keys)
        allowed = self._on_tile(self.plan.program.mask, leaves, keys).to(torch.bool)
        score = self._on_tile(self.plan.program.score, leaves, keys)
        leaves[Score()] = score
        stats = dict(state.stats)
        for stat in self.plan.stats_of(pass_):
            body = self._body(stat, leaves, stats, keys)
            tile = torch.where(allowed, body, IDENTITY[stat.op])
            stats[stat.name] = _reduce(
                stat.op, self._rescaled(stat, state.stats, stats, state.stats[stat.name]), tile
            )
        sums = dict(state.sums)
        group = self.query.shape[1] // self.key.shape[1]
        values = self.value[:, :, keys].to(self.dtype).repeat_interleave(group, dim=1)
        for acc in self.plan.accumulators_of(pass_):
            weights = torch.where(allowed, self._body(acc, leaves, stats, keys), 0.0)
            old = self._rescaled(acc, state.stats, stats, sums[acc.name])
            sums[acc.name] = old + weights @ values
        return State(stats, sums, state.seen | allowed.any(-1))

    def merge(self, pass_: int, a: State, b: State) -> State:
        """The state of the union of two disjoint sets of keys."""
        import torch

        stats: dict[str, Tensor] = {}
        for stat in self.plan.stats_of(pass_):
            sides = [self._rescaled(stat, x.stats, stats, x.stats[stat.name]) for x in (a, b)]
            stats[stat.name] = _reduce(stat.op, sides[0], sides[1][..., None])
        sums: dict[str, Tensor] = {}
        for acc in self.plan.accumulators_of(pass_):
            first, second = (self._rescaled(acc, x.stats, stats, x.sums[acc.name]) for x in (a, b))
            sums[acc.name] = first + second
        return State(stats, sums, torch.logical_or(a.seen, b.seen))

    def finish(self, states: Sequence[State]) -> tuple[Tensor, dict[str, Tensor]]:
        """Output [B, H, M, Dv] and kept statistics [B, H, M] from the final states of all passes."""
        import torch

        plan, program = self.plan, self.plan.program
        finals = {Stat(name): value for state in states for name, value in state.stats.items()}
        rows = self._row_leaves() | finals
        total: Tensor = torch.zeros((*self.query.shape[:3], self.value.shape[-1]), dtype=self.dtype)
        for acc in plan.accumulators:
            coefficient = self._evaluate(acc.coefficient, rows)
            total = total + coefficient[..., None] * states[acc.pass_].sums[acc.name]
        total = torch.where(states[-1].seen[..., None], total, 0.0)
        shape = self.query.shape[:3]
        kept = {
            name: torch.broadcast_to(self._evaluate(e, rows), shape) for name, e in program.kept
        }
        leaves = {leaf: v[..., None] if v.ndim == 3 else v for leaf, v in rows.items()}
        leaves |= {Stat(name): v[..., None] for name, v in kept.items()}
        leaves |= {Value(): total, Index("d"): torch.arange(self.value.shape[-1])}
        for r in program.output_reductions:
            body = torch.broadcast_to(self._evaluate(r.body, leaves), total.shape)
            leaves[Stat(r.name)] = _reduce(r.op, None, body)[..., None]
        return torch.broadcast_to(self._evaluate(program.output, leaves), total.shape), kept

    def _body(
        self,
        part: RowStat | Accumulator,
        leaves: dict[Expr, Tensor],
        stats: dict[str, Tensor],
        keys: Tensor,
    ) -> Tensor:
        known = {Stat(n): v[..., None] for n, v in (self.finals | stats).items()}
        return self._on_tile(readable(part.body, part.running), leaves | known, keys)

    def _rescaled(
        self,
        part: RowStat | Accumulator,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        value: Tensor,
    ) -> Tensor:
        """What was summed, carried from old running statistics to new ones."""
        import torch

        factor = rescaling(part)
        if factor is None:
            return value
        leaves = self._row_leaves() | {Stat(n): v for n, v in self.finals.items()}
        leaves |= {Stat(n): new[n] for n in part.running}
        leaves |= {OldStat(n): old[n] for n in part.running}
        h = self._evaluate(factor, leaves)
        if isinstance(part, Accumulator):
            return value * h[..., None]
        infinite = value == IDENTITY[part.op] if part.op != "sum" else torch.tensor(False)
        return torch.where(infinite, value, value * h)

    def _row_leaves(self) -> dict[Expr, Tensor]:
        """Values of indices, sizes and parameters; rows broadcast as [B, H, M]."""
        import torch

        b, h, m, d = self.query.shape
        g, n, dv = self.key.shape[1], self.key.shape[2], self.value.shape[3]
        heads = torch.arange(h)
        sizes: dict[SizeName, int] = {"B": b, "H": h, "G": g, "M": m, "N": n, "D": d, "Dv": dv}
        leaves: dict[Expr, Tensor] = {Size(s): torch.tensor(x) for s, x in sizes.items()}
        leaves[Index("b")] = torch.arange(b)[:, None, None]
        leaves[Index("h")] = heads[:, None]
        leaves[Index("g")] = torch.div(heads, max(h // g, 1), rounding_mode="floor")[:, None]
        leaves[Index("q")] = torch.arange(m) + self.q_start
        leaves[Param("q_start", "int")] = torch.tensor(self.q_start)
        for p in self.plan.program.params:
            kind = {"float": self.dtype, "int": torch.int64, "bool": torch.bool}[p.kind]
            leaves[Param(p.name, p.kind)] = torch.tensor(self.params[p.name], dtype=kind)
        return leaves

    def _tile_leaves(self, keys: Tensor) -> dict[Expr, Tensor]:
        """Row leaves as [B, H, M, 1], with the key positions and scaled dot products of a tile."""
        leaves = {x: v[..., None] if v.ndim else v for x, v in self._row_leaves().items()}
        group = self.query.shape[1] // self.key.shape[1]
        tile = self.key[:, :, keys].to(self.dtype).repeat_interleave(group, dim=1)
        dots = self.query.to(self.dtype) @ tile.transpose(-1, -2)
        leaves[Index("k")] = keys
        leaves[Dot()] = dots * (self.scale * self.plan.program.dot_factor)
        return leaves

    def _on_tile(self, expr: Expr, leaves: dict[Expr, Tensor], keys: Tensor) -> Tensor:
        import torch

        return torch.broadcast_to(
            self._evaluate(expr, leaves), (*self.query.shape[:3], keys.numel())
        )

    def _evaluate(self, expr: Expr, leaves: Mapping[Expr, Tensor]) -> Tensor:
        return evaluate(expr, leaves, self._load, self.dtype)

    def _load(self, name: str, indices: tuple[Tensor, ...]) -> Tensor:
        """Elements of a captured tensor; positions outside it are moved in, as kernels do."""
        tensor = self.tensors[name]
        inside = [i.clamp(0, n - 1) for i, n in zip(indices, tensor.shape, strict=True)]
        element = tensor[tuple(inside)] if inside else tensor
        return element.to(self.dtype) if element.is_floating_point() else element


def _reduce(op: ReduceOp, start: Tensor | None, terms: Tensor) -> Tensor:
    """``start`` combined with the terms along their last axis; infinite identities for no terms."""
    import torch

    if op == "sum":
        return terms.sum(-1) if start is None else start + terms.sum(-1)
    if terms.shape[-1] == 0:
        assert start is not None
        return start
    if op == "max":
        return terms.amax(-1) if start is None else torch.maximum(start, terms.amax(-1))
    return terms.amin(-1) if start is None else torch.minimum(start, terms.amin(-1))


def run_plan(
    plan: StreamingPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    q_start: int = 0,
    scale: float = 1.0,
    params: Mapping[str, Number] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    partition: Sequence[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output [B, H, M, Dv] and kept statistics [B, H, M] of a plan, streaming over tiles of keys.

    ``query`` is [B, H, M, D], ``key`` [B, G, N, D], ``value`` [B, G, N, Dv]. ``partition`` lists the key
    positions of each tile, together every key once (tiles of 64 in order unless given). ``dtype`` is the
    type of all arithmetic, float64 unless given. Raises KeyError for a missing parameter or tensor.
    """
    import torch

    n = key.shape[2]
    tiles = partition or [torch.arange(at, min(at + 64, n)) for at in range(0, n, 64)]
    walk = Walk(
        plan, query, key, value, q_start, scale, params or {}, tensors or {}, dtype or torch.float64
    )
    states = []
    for pass_ in range(plan.passes):
        state = walk.start(pass_)
        for keys in tiles:
            state = walk.absorb(pass_, state, keys)
        walk.finals |= state.stats
        states.append(state)
    return walk.finish(states)
