"""Renames positions: turns a program over the user's order of tokens into one over the order of a layout.

Where the kernel stands at position p of the layout's order, the formulas stand at the token ``order[p]``. Example:
``k <= q`` becomes ``order_k[k] <= order_q[q]``, and ``bias[q]`` reads ``bias[order_q[q]]``.
"""

from __future__ import annotations

from dataclasses import replace

from attncompiler.ir.expr import Call, Expr, Index, Load, Param, substitute, walk
from attncompiler.ir.program import Program, TensorDecl

_ROW = Call("sub", (Index("q"), Param("q_start", "int")))


def arrange(program: Program, queries: str, keys: str) -> Program:
    """The program whose positions are looked up in the int tensors ``queries`` over q and ``keys`` over k.

    Positions of queries start at 0. The same object when no formula reads a position.
    """
    query, key = Load(queries, (_ROW,), "int"), Load(keys, (Index("k"),), "int")
    new: dict[Expr, Expr] = {_ROW: query, Index("q"): query, Index("k"): key}
    read = set(walk(*(e for _, e in program.expressions())))
    if not read & {Index("q"), Index("k")}:
        return program

    def moved(expr: Expr) -> Expr:
        return substitute(expr, new)

    declared = []
    if Index("q") in read:
        declared.append(TensorDecl(queries, ("q",), "int"))
    if Index("k") in read:
        declared.append(TensorDecl(keys, ("k",), "int"))
    return replace(
        program,
        tensors=(*program.tensors, *declared),
        score=moved(program.score),
        mask=moved(program.mask),
        reductions=tuple(replace(r, body=moved(r.body)) for r in program.reductions),
        weight=moved(program.weight),
        kept=tuple((name, moved(e)) for name, e in program.kept),
        output_reductions=tuple(replace(r, body=moved(r.body)) for r in program.output_reductions),
        output=moved(program.output),
        locations={moved(e): at for e, at in program.locations.items()} | program.locations,
    )
