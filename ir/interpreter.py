"""Evaluates expressions on torch tensors: the reference meaning of every operator of ``ir/ops.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Call, Const, Expr, Load, walk

if TYPE_CHECKING:
    from torch import Tensor

Loader = Callable[[str, tuple["Tensor", ...]], "Tensor"]


def evaluate(
    expr: Expr, leaves: Mapping[Expr, Tensor], load: Loader | None = None, dtype: object = None
) -> Tensor:
    """The value of ``expr`` where ``leaves`` gives the values of its leaf nodes.

    ``leaves`` maps Param, Size, Index, Dot, Score, Stat, OldStat and Value nodes (or whole subexpressions) to
    tensors that broadcast against each other: floating for kind float, int64 for int, bool for bool. ``load``
    resolves tensor loads from the name and the evaluated indices. ``dtype`` is the type of float constants and
    of int-to-float conversions (float64 unless given). Raises KeyError for a leaf without a value.
    """
    import torch

    real = torch.float64 if dtype is None else dtype
    assert isinstance(real, torch.dtype)
    functions = _functions(real)
    memo: dict[Expr, Tensor] = dict(leaves)
    for node in walk(expr, known=leaves):
        match node:
            case Const(value):
                memo[node] = torch.tensor(value, dtype=real if isinstance(value, float) else None)
            case Call(op, args):
                memo[node] = functions[op](*(memo[a] for a in args))
            case Load(tensor, indices, _) if load is not None:
                memo[node] = load(tensor, tuple(memo[i] for i in indices))
            case _:
                raise KeyError(node)
    return memo[expr]


def _functions(real: object) -> dict[str, Callable[..., Tensor]]:
    import torch

    assert isinstance(real, torch.dtype)

    def bit_length(x: Tensor) -> Tensor:
        length = torch.zeros_like(x)
        rest = x.abs()
        for _ in range(63):
            length = length + (rest > 0)
            rest = rest >> 1
        return length

    def divided(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """A division in which an integer zero divisor gives 0."""

        def total(x: Tensor, y: Tensor) -> Tensor:
            if x.is_floating_point():
                return rule(x, y)
            return rule(x, torch.where(y == 0, 1, y)) * (y != 0)

        return total

    def truncate(x: Tensor) -> Tensor:
        return x.trunc().to(torch.int64) if x.is_floating_point() else x.to(torch.int64)

    return {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "floordiv": divided(partial(torch.div, rounding_mode="floor")),
        "mod": divided(torch.remainder),
        "neg": torch.neg,
        "abs": torch.abs,
        "min": torch.minimum,
        "max": torch.maximum,
        "sign": torch.sign,
        "pow": torch.pow,
        "exp": torch.exp,
        "exp2": torch.exp2,
        "expm1": torch.expm1,
        "log": torch.log,
        "log2": torch.log2,
        "log1p": torch.log1p,
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "erf": torch.erf,
        "sin": torch.sin,
        "cos": torch.cos,
        "floor": torch.floor,
        "ceil": torch.ceil,
        "trunc": torch.trunc,
        "round": torch.round,
        "eq": torch.eq,
        "ne": torch.ne,
        "lt": torch.lt,
        "le": torch.le,
        "gt": torch.gt,
        "ge": torch.ge,
        "and": torch.logical_and,
        "or": torch.logical_or,
        "not": torch.logical_not,
        "bitand": torch.bitwise_and,
        "bitor": torch.bitwise_or,
        "bitxor": torch.bitwise_xor,
        "shl": torch.bitwise_left_shift,
        "shr": torch.bitwise_right_shift,
        "bit_length": bit_length,
        "where": torch.where,
        "to_float": lambda x: x.to(real),
        "to_int": truncate,
        "to_bool": lambda x: x != 0,
    }
