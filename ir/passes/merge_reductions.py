"""Turns a Program into one where equal reductions are computed once, and only if something reads them.

Takes any program; leaves reductions with distinct bodies, all of which the weight, the output or
a kept statistic needs. Example: ``a = max(score); b = max(score); weight = exp(score - b)``
becomes ``a = max(score); weight = exp(score - a)``.
"""

from __future__ import annotations

from dataclasses import replace

from attncompiler.ir.expr import Expr, Stat, stats_in, substitute
from attncompiler.ir.program import Program, ReduceOp, Reduction


def merge_reductions(program: Program) -> Program:
    """Merge equal reductions and drop those that nothing reads; the same object when there are none."""
    same: dict[Expr, Expr] = {}

    def renamed(expr: Expr) -> Expr:
        return substitute(expr, same)

    rows = _merged(program.reductions, same)
    features = _merged(program.output_reductions, same)
    kept = tuple((name, renamed(e)) for name, e in program.kept)
    weight, output = renamed(program.weight), renamed(program.output)
    features = _read(features, [output])
    rows = _read(rows, [weight, output, *(e for _, e in kept), *(r.body for r in features)])
    merged = replace(
        program,
        reductions=rows,
        weight=weight,
        kept=kept,
        output_reductions=features,
        output=output,
    )
    return program if merged == program else merged


def _merged(reductions: tuple[Reduction, ...], same: dict[Expr, Expr]) -> tuple[Reduction, ...]:
    """One reduction for each operator and body; ``same`` learns what stands for the others."""
    first: dict[tuple[ReduceOp, Expr], Reduction] = {}
    for r in reductions:
        body = substitute(r.body, same)
        found = first.setdefault((r.op, body), replace(r, body=body))
        if found.name != r.name:
            same[Stat(r.name)] = Stat(found.name)
    return tuple(first.values())


def _read(reductions: tuple[Reduction, ...], readers: list[Expr]) -> tuple[Reduction, ...]:
    """The reductions that the readers need, directly or through others."""
    needed = set(stats_in(*readers))
    found: list[Reduction] = []
    for r in reversed(reductions):
        if r.name in needed:
            needed |= stats_in(r.body)
            found.insert(0, r)
    return tuple(found)
