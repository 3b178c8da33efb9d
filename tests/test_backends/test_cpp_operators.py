"""Every operator of the table is spelled in C++, for scalars and lanes of each kind, as the interpreter means it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from cpp_harness import BUILDS, Array, Function, library, runs_here

from attncompiler.backends.cpp_expr import LanePrinter, ScalarPrinter, Text
from attncompiler.ir.expr import Call, Expr, Param, kind_of
from attncompiler.ir.interpreter import _functions, evaluate
from attncompiler.ir.ops import CONVERSIONS, OPS, Kind

FLOATS = np.array(
    [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 0.1, 0.3, 7.3, -7.3, 1e-40, 3e8, math.inf, -math.inf, math.nan]
)  # fmt: skip
NARROW = np.array([0, 1, -1, 2, -3, 7, -8, 2**30 - 1, -(2**30) + 1])
WIDE = np.array([0, 1, -3, 7, -8, 2**31 - 1, 2**31, -(2**31) - 1, 5 * 2**40 + 3, -(2**61), 2**61])
# A product of two must fit 64 bits.
FACTORS = np.array([0, 1, -3, 2**30, -(2**31) - 1, 2**31 + 7])
SHIFTS = np.array([0, 1, 5, 31, 33, 62])
VALUES: dict[str, Array] = {"f": FLOATS, "i": NARROW, "w": WIDE, "m": np.array([False, True])}
KINDS: dict[str, Kind] = {"f": "float", "i": "int", "w": "int", "m": "bool"}
ROUNDED = {op for op, row in OPS.items() if row.rule == "float"} - {"div"} - CONVERSIONS


def argument(position: int, lane: str) -> Param:
    return Param(f"{lane}{position}", KINDS[lane])


def signatures(op: str) -> Iterator[tuple[str, ...]]:
    """Every combination of lanes an operator takes: f floats, i and w ints of 32 and 64 bits, m bools."""
    arity, rule = OPS[op].arity, OPS[op].rule
    if op in CONVERSIONS:
        lanes: list[str] = ["f", "i", "w", "m"]
        yield from ((x,) for x in lanes)
        return
    kinds: list[str] = {
        "float": ["f"], "int": ["iw"], "bool": ["m"], "numeric": ["f", "iw"], "same": ["f", "iw"],
        "logic": ["m"], "compare": ["f", "iw", "m"], "where": ["f", "iw", "m"],
    }[rule]  # fmt: skip
    for kind in kinds:
        if op == "where":
            yield from (("m", *rest) for rest in itertools.product(kind, repeat=2))
        else:
            yield from itertools.product(kind, repeat=arity)


CALLS = [
    Call(op, tuple(argument(i, lane) for i, lane in enumerate(lanes)))
    for op in OPS
    for lanes in signatures(op)
]


def label(call: Call) -> str:
    return "_".join((call.op, *(a.name[0] for a in call.args if isinstance(a, Param))))


def lane_function(call: Call, narrow: bool) -> Function:
    def leaf(expr: Expr) -> Text:
        assert isinstance(expr, Param)
        lane = expr.name[0]
        return Text(expr.name, lane if narrow or lane != "w" else "i")  # type: ignore[arg-type]

    bounds = {f"i{n}": 2**30 for n in range(3)}
    types = {"f": "vreal", "i": "vint", "w": "vwide" if narrow else "vint", "m": "vint"}
    text = LanePrinter(leaf, bounds, narrow)(call)
    arguments = tuple((types[a.name[0]], a.name) for a in call.args if isinstance(a, Param))
    return Function("lane_" + label(call), text.code, arguments, types[text.lane])


def scalar_function(call: Call) -> Function:
    types = {"f": "real", "i": "long long", "w": "long long", "m": "bool"}
    code = ScalarPrinter(lambda e: e.name if isinstance(e, Param) else "")(call)
    arguments = tuple((types[a.name[0]], a.name) for a in call.args if isinstance(a, Param))
    result = {"float": "real", "int": "long long", "bool": "bool"}[kind_of(call)]
    return Function("one_" + label(call), code, arguments, result)


def inputs(call: Call) -> list[Array]:
    """All combinations of the interesting values of each argument, where the result is defined."""
    pools = [VALUES[a.name[0]] for a in call.args if isinstance(a, Param)]
    if call.op == "mul" and pools[0].dtype.kind == "i":
        pools = [FACTORS if p is WIDE else p for p in pools]
    if call.op in ("shl", "shr"):
        pools[1] = SHIFTS
    if call.op == "shl":
        pools[0] = np.array([0, 1, -1, 3])
        pools[1] = SHIFTS[:-1]
    if call.op in ("floordiv", "mod") and pools[0] is FLOATS:
        pools = [FLOATS[np.abs(FLOATS) != 1e-40]] * 2  # torch's own vectors overflow there
    if call.op == "to_int" and pools[0] is FLOATS:
        pools[0] = FLOATS[np.isfinite(FLOATS)]
    return [np.array(column) for column in zip(*itertools.product(*pools), strict=True)]


def expected(call: Call, values: list[Array], dtype: torch.dtype) -> Array:
    leaves: dict[Expr, torch.Tensor] = {}
    for leaf, value in zip(call.args, values, strict=True):
        tensor = torch.from_numpy(value)
        leaves[leaf] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return evaluate(call, leaves, dtype=dtype).numpy()


def check(call: Call, name: str, found: Array, wanted: Array, values: list[Array]) -> None:
    if call.op in ROUNDED:
        same = np.isclose(
            found, wanted, rtol=4 * np.finfo(wanted.dtype).eps, atol=0, equal_nan=True
        )
        with np.errstate(invalid="ignore"):
            same |= np.abs(found - wanted) <= 4 * np.finfo(wanted.dtype).smallest_subnormal
    else:
        same = (found == wanted) | ((found != found) & (wanted != wanted))
        if wanted.dtype.kind == "f" and call.op not in ("max", "min"):
            same &= (np.signbit(found) == np.signbit(wanted)) | (wanted != 0)
    wrong = np.flatnonzero(~same)
    shown = [(*(v[i] for v in values), "gives", found[i], "not", wanted[i]) for i in wrong[:5]]
    assert not wrong.size, f"{name}: {shown}"


def test_the_interpreter_knows_every_operator() -> None:
    assert set(_functions(torch.float64)) == set(OPS)


def test_every_kind_of_operator_is_covered() -> None:
    assert {c.op for c in CALLS} == set(OPS)
    assert {kind_of(c) for c in CALLS} == set(get_args(Kind))


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("build", BUILDS)
def test_operators_mean_what_the_interpreter_says(real: str, build: str) -> None:
    if not runs_here(build):
        pytest.skip(f"this machine has no {build} instructions")
    dtype = torch.float32 if real == "float" else torch.float64
    # 64-bit lanes know one width of integers.
    calls = [c for c in CALLS if real == "float" or not any(a.name[0] == "w" for a in c.args)]  # type: ignore[union-attr]
    lanes = [(c, lane_function(c, real == "float")) for c in calls]
    scalars = [(c, scalar_function(c)) for c in calls]
    functions = library(real, build, [f for _, f in (*lanes, *scalars)])
    for call, function in (*lanes, *scalars):
        values = inputs(call)
        vector = function.name.startswith("lane")
        given = [-v.astype(int) if vector and v.dtype == bool else v for v in values]
        found = functions[function.name](
            *(v.astype(np.float32) if real == "float" and v.dtype.kind == "f" else v for v in given)
        )
        wanted = expected(call, values, dtype)
        if wanted.dtype == bool and vector:
            wanted = -wanted.astype(int)
        check(call, function.name, found, wanted, values)
