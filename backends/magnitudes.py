"""How large an integer expression can become: what decides the width in which it is computed."""

from __future__ import annotations

from collections.abc import Mapping

from attncompiler.ir.expr import Call, Const, Expr, Index, Load, Local, Param, Size, kind_of, walk

POSITION_LIMIT = 2**30
INT32_MAX = 2**31 - 1
WIDE = 2**63
# The largest absolute values of element types that are narrower than the widest integer.
INT_BOUNDS = {"int32": 2**31, "int16": 2**15, "int8": 2**7, "uint8": 2**8, "bool": 1}


def bound(expr: Expr, tensor_bounds: Mapping[str, int]) -> int:
    """An upper limit of the absolute value of an integer expression; ``WIDE`` when nothing is known."""
    memo: dict[Expr, int] = {}
    for node in walk(expr):
        if kind_of(node) == "int":
            memo[node] = min(WIDE, _bound(node, memo, tensor_bounds))
    return memo[expr]


def _bound(node: Expr, memo: dict[Expr, int], tensor_bounds: Mapping[str, int]) -> int:
    match node:
        case Const(value):
            return abs(int(value))
        case Index():
            return POSITION_LIMIT - 1
        case Size():
            return POSITION_LIMIT
        case Local(name) | Param(name):
            return tensor_bounds.get(name, WIDE)
        case Load(tensor):
            return tensor_bounds.get(tensor, WIDE)
        case Call(op, args):
            ints = [memo[a] for a in args if kind_of(a) == "int"]
            match op:
                case "add" | "sub":
                    return ints[0] + ints[1]
                case "mul":
                    return ints[0] * ints[1]
                case "floordiv" if isinstance(args[1], Const) and args[1].value:
                    return ints[0] // abs(int(args[1].value)) + 1
                case "neg" | "abs" | "floordiv":
                    return ints[0]
                case "min" | "max" | "where":
                    return max(ints)
                case "mod":
                    return ints[1]
                case "sign":
                    return 1
                case "bit_length":
                    return 64
                case "bitand" | "bitor" | "bitxor":
                    return 1 << max(x.bit_length() for x in ints)
    return WIDE
