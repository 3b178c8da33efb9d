"""Turns a StreamingPlan and tensors into an output, tile by tile on torch: the meaning of a plan.

A ``Walk`` holds what all tiles share, a ``State`` what one part of the keys has contributed to one pass. States
absorb tiles and merge with each other by the laws of ``ir/streaming.py``; sequential streaming, split key ranges
and rings of machines are different orders of the same two operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attncompiler.ir.dense import clamped_loader, index_leaves, parameter_leaves
from attncompiler.ir.expr import (
    Dot,
    Expr,
    Index,
    OldStat,
    Score,
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

    ``stats`` and ``seen`` are [B, H, M, 1] (``seen``: the row met an allowed key), ``sums`` [B, H, M, Dv].
    """

    stats: dict[str, Tensor]
    sums: dict[str, Tensor]
    seen: Tensor


@dataclass(slots=True)
class Walk:
    """A plan with its inputs; ``finals`` are the statistics of closed passes, each [B, H, M, 1]."""

    plan: StreamingPlan
    query: Tensor
    key: Tensor
    value: Tensor
    q_start: int
    scale: float
    params: Mapping[str, Number]
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    finals: dict[Expr, Tensor] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """Query heads a key/value head."""
        return self.query.shape[1] // max(self.key.shape[1], 1)

    def start(self, pass_: int) -> State:
        """The state of a pass before any key."""
        import torch

        rows = (*self.query.shape[:3], 1)
        stats = {
            s.name: torch.full(rows, IDENTITY[s.op], dtype=self.dtype)
            for s in self.plan.stats_of(pass_)
        }
        zeros = torch.zeros((*rows[:3], self.value.shape[-1]), dtype=self.dtype)
        sums = {a.name: zeros for a in self.plan.accumulators_of(pass_)}
        return State(stats, sums, torch.zeros(rows, dtype=torch.bool))

    def absorb(self, pass_: int, state: State, keys: Tensor) -> State:
        """The state after the tile of the given key positions (int64, any order, may be empty)."""
        import torch

        program, shape = self.plan.program, (*self.query.shape[:3], keys.numel())
        leaves = self._tile_leaves(keys)

        def on_tile(expr: Expr) -> Tensor:
            return self._evaluate(expr, leaves).expand(shape)

        allowed = on_tile(program.mask)
        leaves[Score()] = on_tile(program.score)
        stats = dict(state.stats)
        for stat in self.plan.stats_of(pass_):
            tile = torch.where(
                allowed, on_tile(readable(stat.body, stat.running)), IDENTITY[stat.op]
            )
            start = self._rescaled(stat, state.stats, stats, state.stats[stat.name])
            stats[stat.name] = leaves[Stat(stat.name)] = _combine(stat.op, start, tile)
        sums = dict(state.sums)
        values = self.value[:, :, keys].to(self.dtype).repeat_interleave(self.group, dim=1)
        for acc in self.plan.accumulators_of(pass_):
            weights = torch.where(allowed, on_tile(readable(acc.body, acc.running)), 0.0)
            start = self._rescaled(acc, state.stats, stats, sums[acc.name])
            sums[acc.name] = start + weights @ values
        return State(stats, sums, state.seen | allowed.any(-1, keepdim=True))

    def merge(self, pass_: int, a: State, b: State) -> State:
        """The state of the union of two disjoint sets of keys."""
        stats: dict[str, Tensor] = {}
        for stat in self.plan.stats_of(pass_):
            x, y = (self._rescaled(stat, s.stats, stats, s.stats[stat.name]) for s in (a, b))
            stats[stat.name] = _combine(stat.op, x, y)
        sums: dict[str, Tensor] = {}
        for acc in self.plan.accumulators_of(pass_):
            x, y = (self._rescaled(acc, s.stats, stats, s.sums[acc.name]) for s in (a, b))
            sums[acc.name] = x + y
        return State(stats, sums, a.seen | b.seen)

    def close(self, state: State) -> None:
        """End a pass: its statistics are final for the passes after it."""
        self.finals |= {Stat(name): value for name, value in state.stats.items()}

    def finish(self, states: Sequence[State]) -> tuple[Tensor, dict[str, Tensor]]:
        """Output [B, H, M, Dv] and kept statistics [B, H, M] from the closed states of all passes."""
        import torch

        program = self.plan.program
        shape = (*self.query.shape[:3], self.value.shape[-1])
        leaves = self._row_leaves() | self.finals
        total: Tensor = torch.zeros(shape, dtype=self.dtype)
        for acc in self.plan.accumulators:
            total = (
                total + self._evaluate(acc.coefficient, leaves) * states[acc.pass_].sums[acc.name]
            )
        kept = {
            name: self._evaluate(e, leaves).expand(*shape[:3], 1)[..., 0]
            for name, e in program.kept
        }
        leaves[Value()] = torch.where(states[-1].seen, total, 0.0)
        for r in program.output_reductions:
            body = self._evaluate(r.body, leaves).expand(shape)
            start = torch.full((*shape[:3], 1), IDENTITY[r.op], dtype=self.dtype)
            leaves[Stat(r.name)] = _combine(r.op, start, body)
        return self._evaluate(program.output, leaves).expand(shape), kept

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
        leaves = self._row_leaves() | self.finals
        leaves |= {Stat(n): new[n] for n in part.running}
        leaves |= {OldStat(n): old[n] for n in part.running}
        scaled = value * self._evaluate(factor, leaves)
        if isinstance(part, Accumulator) or part.op == "sum":
            return scaled
        return torch.where(value == IDENTITY[part.op], value, scaled)

    def _row_leaves(self) -> dict[Expr, Tensor]:
        leaves = index_leaves(self.query, self.key, self.value, self.q_start)
        for name, value in self.params.items():
            leaves |= parameter_leaves(name, value, self.dtype)
        return leaves

    def _tile_leaves(self, keys: Tensor) -> dict[Expr, Tensor]:
        tile = self.key[:, :, keys].to(self.dtype).repeat_interleave(self.group, dim=1)
        dots = self.query.to(self.dtype) @ tile.transpose(-1, -2)
        scale = self.scale * self.plan.program.dot_factor
        return self._row_leaves() | self.finals | {Index("k"): keys, Dot(): dots * scale}

    def _evaluate(self, expr: Expr, leaves: Mapping[Expr, Tensor]) -> Tensor:
        return evaluate(expr, leaves, clamped_loader(self.tensors), self.dtype)


def _combine(op: ReduceOp, start: Tensor, terms: Tensor) -> Tensor:
    """``start`` [..., 1] combined with the terms along their last axis, which may be empty."""
    import torch

    if op == "sum":
        return start + terms.sum(-1, keepdim=True)
    both = torch.cat([start, terms], -1)
    return both.amax(-1, keepdim=True) if op == "max" else both.amin(-1, keepdim=True)


def run_plan(
    plan: StreamingPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    q_start: int = 0,
    scale: float | None = None,
    params: Mapping[str, Number] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    partition: Sequence[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output [B, H, M, Dv] and kept statistics [B, H, M] of a plan, streaming over tiles of keys.

    ``query`` is [B, H, M, D], ``key`` [B, G, N, D], ``value`` [B, G, N, Dv]. ``partition`` lists the key
    positions of each tile, together every key once (tiles of 64 in order unless given). ``scale`` is
    1/sqrt(D) unless given; ``dtype``, the type of all arithmetic, is float64 unless given.
    Raises KeyError for a missing parameter or tensor.
    """
    import torch

    real = dtype or torch.float64
    n = key.shape[2]
    tiles = partition or [torch.arange(at, min(at + 64, n)) for at in range(0, n, 64)]
    walk = Walk(
        plan=plan,
        query=query,
        key=key,
        value=value,
        q_start=q_start,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        params=params or {},
        tensors={
            name: x.to(real) if x.is_floating_point() else x for name, x in (tensors or {}).items()
        },
        dtype=real,
    )
    states = []
    for pass_ in range(plan.passes):
        state = walk.start(pass_)
        for keys in tiles:
            state = walk.absorb(pass_, state, keys)
        walk.close(state)
        states.append(state)
    return walk.finish(states)
