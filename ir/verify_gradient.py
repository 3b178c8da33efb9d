"""Turns a Gradient into nothing, or into a VerifyError that names the formula and shows the gradient's text.

What is checked: every formula reads only what exists when it is computed, kinds are right, what is one value a row
does not vary with the key or the feature, names are unique, and each tensor gradient stands at a level where its
indices exist.
"""

from __future__ import annotations

from collections.abc import Iterator

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    OldStat,
    OutGrad,
    Score,
    Size,
    Stat,
    Value,
    WeightGrad,
    kind_of,
    walk,
)
from attncompiler.ir.gradient import Gradient, TensorGradient
from attncompiler.ir.gradient_printer import print_gradient
from attncompiler.ir.printer import print_expression
from attncompiler.ir.verify import VerifyError, verify_program

_ROW, _ELEMENT, _PAIR = "bhgq", "bhgqd", "bhgqk"
_LEAVES: dict[str, tuple[type[Expr], ...]] = {
    _ROW: (),
    _ELEMENT: (Value, OutGrad),
    _PAIR: (Dot, Score, WeightGrad),
}
_PLACES = {"element": _ELEMENT, "epilogue": _ROW, "row": _ROW, "key": _PAIR, "pair": _PAIR}


def verify_gradient(gradient: Gradient) -> None:
    """Raise VerifyError unless the gradient is well formed."""
    verify_program(gradient.program)
    for slot, problem in _problems(gradient):
        raise VerifyError(slot, problem, print_gradient(gradient))


def _problems(gradient: Gradient) -> Iterator[tuple[str, str]]:
    known = {*gradient.saved, *(stat for _, stat in gradient.kept)}
    extra = known - {r.name for r in gradient.program.reductions}
    extra -= {stat for _, stat in gradient.kept}
    if extra:
        yield "saved", f"{', '.join(sorted(extra))} is no statistic of the forward"
    if [name for name, _ in gradient.kept] != [name for name, _ in gradient.program.kept]:
        yield "kept", "the kept statistics are not those of the program"

    def define(name: str) -> Iterator[tuple[str, str]]:
        if name in known:
            yield name, "is defined twice"
        known.add(name)

    for r in gradient.features:
        yield from _formula(r.name, r.body, _ELEMENT, known)
        yield from define(r.name)
    yield from _formula("value_grad", gradient.value_grad, _ELEMENT, known)
    for t in gradient.tensors:
        if t.level in ("element", "epilogue"):
            yield from _tensor(gradient, t, known)
    for stage in gradient.stages:
        for name, expr in stage.rows:
            yield from _formula(name, expr, _ROW, known)
            yield from define(name)
        before = set(known)
        for r in stage.reductions:
            yield from _formula(r.name, r.body, _PAIR, before)
            yield from define(r.name)
    if any(r.op != "sum" for r in gradient.stages[-1].reductions):
        yield "last walk", "has another reduction than a sum"
    before = known - {r.name for r in gradient.stages[-1].reductions}
    for name, expr in (("weight", gradient.weight), ("d_dot", gradient.dot_grad)):
        yield from _formula(name, expr, _PAIR, before)
    for t in gradient.tensors:
        if t.level in ("key", "pair"):
            yield from _tensor(gradient, t, before)
        elif t.level == "row":
            yield from _tensor(gradient, t, known)


def _tensor(gradient: Gradient, t: TensorGradient, known: set[str]) -> Iterator[tuple[str, str]]:
    name, axes = f"d_{t.tensor}", _PLACES[t.level]
    declared = {d.name: d for d in gradient.program.tensors}.get(t.tensor)
    if declared is None or declared.kind != "float" or len(declared.axes) != len(t.indices):
        yield name, "fits no declaration of a floating tensor"
    yield from _formula(name, t.value, axes, known)
    indices = axes.replace("q", "") if t.level == "key" else axes
    for index in t.indices:
        yield from _formula(f"index of {name}", index, indices, known, kind="int")


def _formula(
    slot: str, expr: Expr, axes: str, known: set[str], kind: str = "float"
) -> Iterator[tuple[str, str]]:
    if kind_of(expr) != kind:
        yield slot, f"is of kind {kind_of(expr)}, not {kind}"
    leaves = _LEAVES.get(axes, ())
    for node in walk(expr):
        match node:
            case Index(axis) if axis not in axes:
                yield slot, f"reads the index {axis}, which it does not have"
            case Stat(name) if name not in known:
                yield slot, f"reads {name}, which is not known yet"
            case OldStat(name):
                yield slot, f"reads the old value of {name}"
            case Dot() | Score() | WeightGrad() | Value() | OutGrad() if not isinstance(
                node, leaves
            ):
                yield slot, f"reads {print_expression(node)}"
            case Const() | Size() | Call() | Load():
                pass
