"""Turns expressions into functions of torch tensors: flex's score_mod and mask_mod, and the whole formula, dense."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncompiler.frontend import Trace
from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    Param,
    Score,
    Size,
    Stat,
    Value,
    walk,
)
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.program import Program, Reduction

if TYPE_CHECKING:
    from torch.fx import Graph


@dataclass(frozen=True, slots=True)
class Inputs:
    """One call: q [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], the variant's tensors; queries start at 0."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """The extents by their names in a variant."""
        b, h, m, d = self.q.shape
        g, n, dv = self.v.shape[1:]
        return {"B": b, "H": h, "G": g, "M": m, "N": n, "D": d, "Dv": dv}

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.q.shape[1] != self.k.shape[1]


def module(
    expr: Expr, traced: Trace, inputs: Inputs, arguments: tuple[str, ...]
) -> Callable[..., Tensor]:
    """A score_mod or mask_mod as its user would write it: torch operators, plain numbers for the parameters."""
    from torch.fx import Graph, GraphModule

    graph = Graph()
    leaves = {name: graph.placeholder(name) for name in arguments}
    sizes = inputs.sizes
    memo: dict[Expr, Any] = {}
    for node in walk(expr):
        match node:
            case Const(value):
                memo[node] = value
            case Param(name, _):
                memo[node] = traced.params[name]
            case Size(name):
                memo[node] = sizes[name]
            case Dot():
                memo[node] = leaves["score"]
            case Index("g"):
                memo[node] = graph.call_function(
                    operator.floordiv, (leaves["h"], sizes["H"] // sizes["G"])
                )
            case Index(axis):
                memo[node] = leaves[axis]
            case Load(name, indices, _):
                table = graph.get_attr(name)
                places = tuple(memo[i] for i in indices)
                memo[node] = (
                    graph.call_function(operator.getitem, (table, places)) if places else table
                )
            case Call(op, args):
                memo[node] = _emit(graph, op, [memo[a] for a in args])
            case _:
                raise TypeError(f"{node} cannot stand in a score or a mask")
    result = memo[expr]
    if isinstance(result, bool | int | float):
        result = graph.call_function(torch.full_like, (leaves["k"], result))
    graph.output(result)
    module = GraphModule({**inputs.tensors, **traced.captured}, graph)
    if len(arguments) == 5:
        return lambda score, b, h, q, k: module(score, b, h, q, k)
    return lambda b, h, q, k: module(b, h, q, k)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
    "abs": operator.abs,
    "pow": operator.pow,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "not": torch.logical_not,
    "bitand": operator.and_,
    "bitor": operator.or_,
    "bitxor": operator.xor,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "where": torch.where,
    "min": torch.minimum,
    "max": torch.maximum,
}


def _emit(graph: Graph, op: str, args: list[Any]) -> Any:
    """One operator: a node of the graph, or a number when all arguments are numbers."""
    from torch.fx import Node

    symbolic = [isinstance(a, Node) for a in args]
    if not any(symbolic):
        return evaluate(Call(op, tuple(Const(a) for a in args)), {}).item()
    match op:
        case "min" | "max" if not all(symbolic):
            number, node = args if symbolic[1] else reversed(args)
            return graph.call_method("clamp", (node,), {"min" if op == "max" else "max": number})
        case "to_float":
            return graph.call_method("to", (args[0], torch.float32))
        case "to_int":
            return graph.call_method("to", (args[0], torch.int64))
        case "to_bool":
            return graph.call_function(operator.ne, (args[0], 0))
        case _:
            return graph.call_function(_OPERATORS.get(op) or getattr(torch, op), tuple(args))


_REDUCE: dict[str, tuple[Callable[..., Tensor], float]] = {
    "max": (torch.amax, -torch.inf),
    "min": (torch.amin, torch.inf),
    "sum": (torch.sum, 0.0),
}


def dense(program: Program, traced: Trace, inputs: Inputs, scale: float) -> Tensor:
    """The formula as one would write it in PyTorch: whole matrices of scores and weights, in the inputs' dtype.

    Unlike the oracle it takes no care of values at forbidden pairs unless a gradient is wanted, so it is a fair rival.
    """
    real = inputs.q.dtype
    sizes = inputs.sizes
    group = sizes["H"] // sizes["G"]
    tables = {
        name: t.to(real) if t.is_floating_point() else t
        for name, t in {**inputs.tensors, **traced.captured}.items()
    }

    def axis(name: str, extent: int, place: int) -> Tensor:
        places = torch.arange(sizes[name], device=inputs.q.device)
        return places.view([extent if i == place else 1 for i in range(4)])

    h = axis("H", -1, 1)
    leaves: dict[Expr, Tensor] = {Size(n): torch.tensor(x) for n, x in sizes.items()}  # type: ignore[arg-type]
    leaves |= {
        Index("b"): axis("B", -1, 0),
        Index("h"): h,
        Index("g"): h // group,
        Index("q"): axis("M", -1, 2),
        Index("k"): axis("N", -1, 3),
    }
    for declared in program.params:
        value = traced.params[declared.name]
        dtype = real if declared.kind == "float" else None
        leaves[Param(declared.name, declared.kind)] = torch.tensor(value, dtype=dtype)

    def value_of(expr: Expr) -> Tensor:
        return evaluate(expr, leaves, lambda name, places: tables[name][places], real)

    def reduce(reduction: Reduction, mask: Tensor | None) -> None:
        function, identity = _REDUCE[reduction.op]
        body = value_of(reduction.body)
        if mask is not None:
            body = torch.where(mask, body, identity)
        elif reduction.op == "sum":
            body = body.expand(*body.shape[:3], sizes["Dv" if Value() in leaves else "N"])
        leaves[Stat(reduction.name)] = function(body, dim=-1, keepdim=True)

    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (inputs.k, inputs.v))
    leaves[Dot()] = scale * inputs.q @ k.transpose(-1, -2)
    leaves[Score()] = value_of(program.score)
    mask = None if program.mask is Const(True) else value_of(program.mask)
    if mask is not None and inputs.q.requires_grad:
        # Whoever trains masks the scores: an exponential that overflows at a forbidden pair has no gradient.
        leaves[Score()] = torch.where(mask, leaves[Score()], 0.0)
    for reduction in program.reductions:
        reduce(reduction, mask)
    weight = value_of(program.weight).expand_as(leaves[Dot()])
    if mask is not None:
        weight = torch.where(mask, weight, 0.0)
    leaves[Value()] = weight.to(real) @ v
    leaves[Index("d")] = axis("Dv", -1, 3)
    for reduction in program.output_reductions:
        reduce(reduction, None)
    return value_of(program.output).expand_as(leaves[Value()])
