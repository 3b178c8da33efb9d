"""Random programs for property tests: typed formulas over everything a slot may read."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from attncompiler.ir.dense import run_program
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
)
from attncompiler.ir.ops import OPS, Kind
from attncompiler.ir.program import ParamDecl, Program, Reduction, TensorDecl

PARAMS = (
    ParamDecl("cap", "float"),
    ParamDecl("window", "int"),
    ParamDecl("on", "bool"),
    ParamDecl("c0", "float", lifted=True),
)
TENSORS = (
    TensorDecl("slope", ("h",), "float"),
    TensorDecl("bias", ("q", "k"), "float"),
    TensorDecl("length", ("b",), "int"),
    TensorDecl("table", ("rows", 3), "float"),
)
_FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    0.5,
    0.3,
    4.0,
    1e-05,
    1e16,
    float("inf"),
    float("-inf"),
    float("nan"),
]
_UNARY = [
    op.name
    for op in OPS.values()
    if op.arity == 1 and op.rule in ("float", "same") and op.name != "to_float"
]
_BINARY = ["add", "sub", "mul", "div", "min", "max", "floordiv", "mod"]
_COMPARE = ["lt", "le", "gt", "ge", "eq", "ne"]


def call(op: str, *args: Expr) -> Expr:
    """An operator applied to expressions."""
    return Call(op, args)


@cache
def expressions(
    kind: Kind, axes: str, leaves: tuple[Expr, ...] = (), depth: int = 3
) -> SearchStrategy[Expr]:
    """Formulas of one kind over the given index axes and further leaves of kind float."""

    def inner(k: Kind) -> SearchStrategy[Expr]:
        return st.deferred(lambda: expressions(k, axes, leaves, depth - 1))

    table = Load("table", (Index("h"), Const(-1)), "float")
    atoms: dict[Kind, SearchStrategy[Expr]] = {
        "float": st.one_of(
            st.sampled_from([*leaves, Param("cap", "float"), Param("c0", "float"), table]),
            st.sampled_from(_FLOATS).map(Const),
        ),
        "int": st.one_of(
            st.sampled_from([*map(Index, axes), Size("N"), Param("window", "int")]),
            st.integers(-9, 70).map(Const),
        ),
        "bool": st.one_of(st.just(Param("on", "bool")), st.booleans().map(Const)),
    }
    if depth == 0:
        return atoms[kind]
    same = st.sampled_from(["add", "sub", "mul", "min", "max"])
    where = st.builds(call, st.just("where"), inner("bool"), inner(kind), inner(kind))
    shared = st.builds(lambda op, x: call(op, x, x), same, inner(kind)) if kind != "bool" else where
    match kind:
        case "float":
            power = st.sampled_from([2.0, 3.0, -1.0, 0.5, -0.5, 0.0, 1.5])
            rules = [
                st.builds(call, st.sampled_from(_UNARY), inner("float")),
                st.builds(call, st.sampled_from(_BINARY), inner("float"), inner("float")),
                st.builds(lambda x, n: call("pow", x, Const(n)), inner("float"), power),
                st.builds(call, st.just("to_float"), inner("int")),
                st.builds(call, st.just("to_float"), inner("bool")),
            ]
        case "int":
            divisor = st.sampled_from([1, 2, 7, -3]).map(Const)
            bits = st.sampled_from(["bitand", "bitor", "bitxor"])
            rules = [
                st.builds(call, same, inner("int"), inner("int")),
                st.builds(call, bits, inner("int"), inner("int")),
                st.builds(
                    call, st.sampled_from(["neg", "abs", "sign", "bit_length"]), inner("int")
                ),
                st.builds(call, st.sampled_from(["floordiv", "mod"]), inner("int"), divisor),
                st.builds(
                    call,
                    st.sampled_from(["shl", "shr"]),
                    inner("int"),
                    st.integers(0, 4).map(Const),
                ),
                st.builds(call, st.just("to_int"), inner("bool")),
            ]
        case "bool":
            rules = [
                st.builds(call, st.sampled_from(_COMPARE), inner("int"), inner("int")),
                st.builds(call, st.sampled_from(_COMPARE), inner("float"), inner("float")),
                st.builds(
                    call, st.sampled_from(["and", "or", "eq", "ne"]), inner("bool"), inner("bool")
                ),
                st.builds(call, st.just("not"), inner("bool")),
                st.builds(call, st.just("to_bool"), inner("int")),
            ]
    return st.one_of(atoms[kind], where, shared, *rules)


@st.composite
def programs(draw: st.DrawFn, depth: int = 2) -> Program:
    """Whole programs with up to three reductions, a kept statistic and a reduction over d."""
    loads = (Load("slope", (Index("h"),), "float"), Load("table", (Index("g"), Const(1)), "float"))
    names = draw(
        st.lists(st.sampled_from(["m", "l", "q", "cap", "t0", "sum"]), max_size=3, unique=True)
    )
    reductions: list[Reduction] = []
    stats: list[Expr] = []
    for name in names:
        op = draw(st.sampled_from(["max", "min", "sum"]))
        body = draw(expressions("float", "bhgqk", (Score(), *loads, *stats), depth))
        reductions.append(Reduction(name, op, body))
        stats.append(Stat(name))
    features = draw(expressions("float", "bhqd", (Value(), *stats), depth))
    return Program(
        name="Random",
        params=PARAMS,
        tensors=TENSORS,
        score=draw(expressions("float", "bhgqk", (Dot(), *loads), depth)),
        mask=draw(expressions("bool", "bhgqk", loads, depth)),
        reductions=tuple(reductions),
        weight=draw(expressions("float", "bhgqk", (Score(), *stats), depth)),
        kept=(("lse", draw(expressions("float", "bhgq", tuple(stats), depth))),),
        output_reductions=(Reduction("e", "sum", features),),
        output=draw(expressions("float", "bhqd", (Value(), Stat("e"), *stats), depth)),
        dot_factor=draw(st.sampled_from([1.0, 1.4426950408889634])),
    )


def run_random(program: Program, seed: int = 0) -> list[torch.Tensor]:
    """Output and kept statistics of a program on one small random input that gives all it declares."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    extents: dict[str | int, int] = {"b": 2, "h": 4, "g": 2, "q": 3, "k": 5, "d": 6, "rows": 4}
    tensors = {}
    for t in program.tensors:
        shape = [
            extents.get(axis, axis) if isinstance(axis, int) else extents[axis] for axis in t.axes
        ]
        values = normal(*map(int, shape))
        tensors[t.name] = values if t.kind == "float" else (values * 3).to(torch.int64)
    defaults: dict[str, float | int | bool] = {"float": 0.7, "int": 3, "bool": True}
    params = {p.name: defaults[p.kind] for p in program.params}
    out, kept = run_program(
        program,
        normal(2, 4, 3, 8),
        normal(2, 2, 5, 8),
        normal(2, 2, 5, 6),
        q_start=1,
        params=params,
        tensors=tensors,
    )
    return [out, *kept.values()]
