"""Turns a formula into what it becomes where the score is minus infinity: masked scores can stand for masked terms.

A kernel that sets the score of a pair to minus infinity need not mask what it computes from the score afterwards, if
that then is what a missing pair counts as: minus infinity for a maximum, 0 for a sum and for a weight.
"""

from __future__ import annotations

from typing import Literal

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Local,
    OldStat,
    Param,
    Score,
    Size,
    Stat,
    WeightGrad,
    kind_of,
    walk,
)

Limit = Literal["-inf", "0", "positive", "finite", "inf"]


def at_minus_infinity(expr: Expr) -> Limit | None:
    """The limit of a float formula of the score and of values that are finite; None where nothing is known.

    Row values, parameters and gradients of weights count as finite: where they are not, neither are the terms of
    allowed pairs. Elements of tensors of pairs or keys do not: a masked one may be anything.
    """
    limits: dict[Expr, Limit | None] = {}
    for node in walk(expr):
        limits[node] = _limit(node, limits)
    return limits[expr]


def _limit(node: Expr, limits: dict[Expr, Limit | None]) -> Limit | None:
    match node:
        case Score():
            return "-inf"
        case Const(value) if isinstance(value, float):
            if value in (float("inf"), float("-inf")):
                return "inf" if value > 0 else "-inf"
            return "0" if value == 0 else "positive" if value > 0 else "finite"
        case Local(_, "float", axes) if "k" not in axes:
            return "finite"
        case Stat() | OldStat() | WeightGrad() | Size():
            return "finite"
        case Param(_, "float"):
            return "finite"
        case Call(op, args) if kind_of(node) == "float":
            return _call(op, [limits[a] for a in args])
        case _:
            return None


_FINITE = ("0", "positive", "finite")


def _call(op: str, args: list[Limit | None]) -> Limit | None:
    match op, args:
        case "neg", [x]:
            opposite: dict[str, Limit] = {"-inf": "inf", "inf": "-inf", "0": "0"}
            return opposite.get(x or "", _only_finite(x))
        case "add", [x, y]:
            return _sum(x, y)
        case "sub", [x, y]:
            return _sum(x, _call("neg", [y]))
        case "mul", [x, y]:
            return _product(x, y)
        case "div", [x, y] if y == "positive":
            return x
        case "exp" | "exp2" | "sigmoid", ["-inf"]:
            return "0"
        case "exp" | "exp2", [x] if x in _FINITE:
            return "finite"
        case "max", [x, y]:
            return y if x == "-inf" else x if y == "-inf" else None
        case "tanh" | "erf", [_]:
            return "finite"
        case _:
            return None


def _only_finite(x: Limit | None) -> Limit | None:
    return "finite" if x in _FINITE else None


def _sum(x: Limit | None, y: Limit | None) -> Limit | None:
    if x in _FINITE and y in _FINITE:
        return "0" if x == y == "0" else "finite"
    for infinite in ("-inf", "inf"):
        if (x == infinite and y in (*_FINITE, infinite)) or (y == infinite and x in _FINITE):
            return infinite
    return None


def _product(x: Limit | None, y: Limit | None) -> Limit | None:
    if x in _FINITE and y in _FINITE:
        return "0" if "0" in (x, y) else "finite"
    for mine, other in ((x, y), (y, x)):
        if mine in ("-inf", "inf") and other == "positive":
            return mine
    return None


IDENTITY_LIMITS: dict[str, Limit] = {"sum": "0", "max": "-inf", "min": "inf"}
