"""Program: what a variant computes, before any decision how.

Semantics, for every row (b, h, q) and the keys k for which ``mask`` holds::

    dot_k    = dot_factor * scale * <query, key_k>
    score_k  = score(dot_k)
    r_1 .. r_n: ordered reductions over the allowed keys; body_n may read the score and r_1 .. r_{n-1}
    w_k      = weight(score_k, r_1 .. r_n)              0 for keys that are not allowed
    o_d      = sum_k w_k * value_kd                     0 for a row without an allowed key
    e_1 ..   : ordered reductions over the value features d, reading o_d and r
    out_d    = output(o_d, r, e)
    kept     = named row statistics handed to the caller

A reduction over no keys gives its identity: -inf for max, +inf for min, 0 for sum. ``dot_factor`` is 1
unless a pass (``ir/passes/exp2.py``) moved a constant of the formulas into the scale; the runtime
multiplies it in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from attncompiler.ir.declared import Kind
from attncompiler.ir.declared import ParamDecl as ParamDecl
from attncompiler.ir.declared import TensorDecl as TensorDecl
from attncompiler.ir.expr import Const, Dot, Expr, Score, Value, rewrite
from attncompiler.ir.location import Location

ReduceOp = Literal["max", "min", "sum"]

# Parameters of every program, given by the call itself: the position of the first query.
IMPLICIT_PARAMS: dict[str, Kind] = {"q_start": "int"}


@dataclass(frozen=True, slots=True)
class Reduction:
    """``name = op(body)`` over the allowed keys of a row (or over d in the epilogue)."""

    name: str
    op: ReduceOp
    body: Expr


@dataclass(frozen=True, slots=True)
class Program:
    """One attention variant as formulas; see the module's text for what they mean."""

    name: str
    params: tuple[ParamDecl, ...] = ()
    tensors: tuple[TensorDecl, ...] = ()
    score: Expr = field(default_factory=Dot)
    mask: Expr = field(default_factory=lambda: Const(True))
    reductions: tuple[Reduction, ...] = ()
    weight: Expr = field(default_factory=Score)
    kept: tuple[tuple[str, Expr], ...] = ()
    output_reductions: tuple[Reduction, ...] = ()
    output: Expr = field(default_factory=Value)
    dot_factor: float = 1.0
    locations: dict[Expr, Location] = field(default_factory=dict, compare=False, repr=False)

    def expressions(self) -> Iterator[tuple[str, Expr]]:
        """Every formula with the name of its slot, in evaluation order."""
        yield "mask", self.mask
        yield "score", self.score
        for r in self.reductions:
            yield r.name, r.body
        yield "weight", self.weight
        yield from self.kept
        for r in self.output_reductions:
            yield r.name, r.body
        yield "output", self.output

    def rewritten(self, rule: Callable[[Expr], Expr]) -> Program:
        """Every formula rebuilt bottom-up by ``rule``; the same object when no formula changes.

        ``rule`` sees each node once, its operands already rewritten. Rewritten nodes keep the
        locations of the nodes they stand for.
        """
        memo: dict[Expr, Expr] = {}

        def new(expr: Expr) -> Expr:
            return rewrite(expr, rule, memo)

        def reductions(old: tuple[Reduction, ...]) -> tuple[Reduction, ...]:
            return tuple(replace(r, body=new(r.body)) for r in old)

        changed = replace(
            self,
            score=new(self.score),
            mask=new(self.mask),
            reductions=reductions(self.reductions),
            weight=new(self.weight),
            kept=tuple((name, new(e)) for name, e in self.kept),
            output_reductions=reductions(self.output_reductions),
            output=new(self.output),
        )
        if changed == self:
            return self
        moved = {memo[e]: at for e, at in self.locations.items() if e in memo}
        return replace(changed, locations=moved | self.locations)
