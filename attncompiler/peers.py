"""Turns a variant into the calls of PyTorch that compute the same thing, or says why there is none.

Which peer can express a variant is read off its traced program: expressions are interned, so "the score is left as
it is" or "the weights are a softmax" is an identity of objects, not a guess from names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.dsl import Variant, causal
from attncompiler.frontend import Trace, trace
from attncompiler.ir.expr import Call, Const, Dot, Expr, Index, Load, Param, Size, walk
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.program import Program

if TYPE_CHECKING:
    from torch.fx import Graph

PEERS = ("sdpa", "flex", "dense")

Attention = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One call: q [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], the variant's tensors; queries start at 0."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: Mapping[str, Tensor]

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a peer cannot express a variant."""

    reason: str


class _Causal(Variant):
    """What ``is_causal=True`` means."""

    def mask(self, at: Any) -> Any:
        return causal(at)


def peer(name: str, variant: Variant, inputs: Inputs) -> Attention | Refusal:
    """The call of one of PEERS, ready to be timed; compiled FlexAttention compiles here, on its first run."""
    match name:
        case "sdpa":
            return _sdpa(variant, inputs)
        case "flex":
            return _flex(variant, inputs)
        case "dense":
            return lambda: (
                attncompiler.oracle.attention(
                    variant, inputs.q, inputs.k, inputs.v, tensors=dict(inputs.tensors), dtype=None
                ).out
            )
        case _:
            raise ValueError(f"unknown peer {name!r}, known are {', '.join(PEERS)}")


def _program(variant: Variant) -> Program:
    return canonicalize(trace(variant).program)


def _no_softmax(variant: Variant, program: Program) -> str | None:
    """Why a program is no plain softmax of its score, None when it is one."""
    plain = _program(Variant())
    if getattr(variant, "prepare", None) is not None:
        return "it has a prepare step"
    if (program.weight, program.reductions) != (plain.weight, plain.reductions):
        return "its weights are no softmax"
    if (program.output, program.output_reductions) != (plain.output, plain.output_reductions):
        return "it has an output step"
    return None


def _sdpa(variant: Variant, inputs: Inputs) -> Attention | Refusal:
    program = _program(variant)
    reason = _no_softmax(variant, program)
    if reason is not None:
        return Refusal(reason)
    if program.score is not Dot():
        return Refusal("it changes the score")
    causal_mask = program.mask is _program(_Causal()).mask
    if program.mask is not Const(True) and not causal_mask:
        return Refusal("its mask is neither full nor causal")
    scale = _scale(variant, inputs)
    return lambda: torch.nn.functional.scaled_dot_product_attention(
        inputs.q, inputs.k, inputs.v, is_causal=causal_mask, scale=scale, enable_gqa=inputs.grouped
    )


def _scale(variant: Variant, inputs: Inputs) -> float:
    return inputs.q.shape[-1] ** -0.5 if variant.scale is None else float(variant.scale)


def _flex(variant: Variant, inputs: Inputs) -> Attention | Refusal:
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    traced = trace(variant)
    program = canonicalize(traced.program)
    reason = _no_softmax(variant, program)
    if reason is not None:
        return Refusal(reason)
    score_mod = block_mask = None
    if program.score is not Dot():
        score_mod = _module(program.score, traced, inputs, ("score", "b", "h", "q", "k"))
    if program.mask is not Const(True):
        sizes = inputs.sizes
        varies = {
            axis for node in walk(program.mask) if isinstance(node, Index) for axis in node.axis
        }
        block_mask = create_block_mask(
            _module(program.mask, traced, inputs, ("b", "h", "q", "k")),
            sizes["B"] if "b" in varies else None,
            sizes["H"] if varies & {"h", "g"} else None,
            sizes["M"],
            sizes["N"],
            device=inputs.q.device,
        )
    scale = _scale(variant, inputs)
    # Each variant and shape is a compilation of its own; the default limit of eight is for one model's loop.
    config.recompile_limit = 1024
    config.accumulated_recompile_limit = 4096
    compiled = torch.compile(flex_attention, dynamic=False)

    def call() -> Tensor:
        out = compiled(
            inputs.q,
            inputs.k,
            inputs.v,
            score_mod=score_mod,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=inputs.grouped,
        )
        assert isinstance(out, Tensor)
        return out

    try:
        with torch.no_grad():
            call()
    # What torch's compiler cannot do surfaces as RuntimeError (its own classes) or as one of these.
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
        return Refusal(f"its compilation fails: {str(error).strip().splitlines()[0][:120]}")
    return call


def _module(
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
