"""Canonicalisation: rules by eye, exact values on infinities, NaN and zeros, and idempotence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from attncompiler.ir.expr import Call, Const, Expr, Index, Param, Score, Size, kind_of, rewrite
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.ops import Kind
from attncompiler.ir.parser import parse_expression, parse_program
from attncompiler.ir.passes.canonicalize import canonicalize, simplify
from attncompiler.ir.printer import print_expression, print_program
from attncompiler.ir.program import Program
from attncompiler.ir.verify import verify_program
from tests.strategies import expressions, programs

KINDS: dict[str, Kind] = {"x": "float", "w": "int", "on": "bool"}
TENSORS: dict[str, Kind] = {"table": "float"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("score * 1.0 / 1.0", "score"),
        ("1.0 + 2.0 * 3.0", "7.0"),
        ("score * -1.0", "-score"),
        ("score / 4.0", "score * 0.25"),
        ("score / 3.0", "score / 3.0"),
        ("2.0 * score", "score * 2.0"),
        ("score - 0.0", "score"),
        ("exp(score) + 0.0", "exp(score)"),
        ("x + -score", "x - score"),
        ("--score", "score"),
        ("score ** 2.0", "score * score"),
        ("score ** 4.0", "score * score * (score * score)"),
        ("score ** -1.0", "1.0 / score"),
        ("score ** 0.5", "sqrt(score)"),
        ("score ** 0.0", "1.0"),
        ("2.0 ** score", "exp2(score)"),
        ("abs(-score)", "abs(score)"),
        ("max(max(score, 1.0), 2.0)", "max(score, 2.0)"),
        ("max(score, -inf)", "score"),
        ("to_float(4) * score", "score * 4.0"),
        ("to_float(q - k) < 3.0", "q - k < 3"),
        ("q * 1 + 0", "q"),
        ("q * 0", "0"),
        ("q - 3 + 5", "q + 2"),
        ("q + -2", "q - 2"),
        ("q // 4 // 2", "q // 8"),
        ("k % 1", "0"),
        ("not k > q", "k <= q"),
        ("not x < score", "not x < score"),
        ("not not on", "on"),
        ("true and (k <= q or false)", "k <= q"),
        ("on and not on", "false"),
        ("on == false", "not on"),
        ("where(not on, score, x)", "where(on, x, score)"),
        ("where(on, true, k < q)", "on or k < q"),
        ("where(true, score, x)", "score"),
        ("floor(to_float(q // 2))", "to_float(q // 2)"),
    ],
)
def test_rules(before: str, after: str) -> None:
    found = rewrite(parse_expression(before, KINDS), simplify)
    assert print_expression(found) == after


@pytest.mark.parametrize(
    "text",
    [
        "score * 0.0",  # NaN when the score is infinite
        "score + 0.0",  # turns -0.0 into 0.0
        "0.0 - score",  # 0.0 for a score of 0.0, where -score is -0.0
        "score - score",
        "score / score",
        "score == score",  # false for NaN
        "-(score - x)",  # -0.0 where x - score is 0.0
        "max(score, inf)",  # NaN for NaN
        "score * 3.0 * 5.0",  # rounds twice
        "q // 0",
        "log(exp(score))",
    ],
)
def test_what_would_change_a_value_stays(text: str) -> None:
    expr = parse_expression(text, KINDS)
    assert rewrite(expr, simplify) is expr


def test_the_same_program_comes_back_when_nothing_applies() -> None:
    text = """\
program Causal
  score  = dot
  mask   = k <= q
  m      = max(score)
  weight = exp(score - m)
  output = value
"""
    program = parse_program(text)
    assert canonicalize(program) is program
    longer = parse_program(text.replace("k <= q", "true and q >= k - 0").replace("- m", "+ -m"))
    assert print_program(canonicalize(longer)) == text.replace("k <= q", "q >= k")


SPECIAL = torch.tensor(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.3,
        -2.5,
        4.0,
        1e300,
        -1e300,
        1e-300,
        float("inf"),
        float("-inf"),
        float("nan"),
    ],
    dtype=torch.float64,
)


def values(expr: Expr) -> torch.Tensor:
    leaves: dict[Expr, torch.Tensor] = {
        Score(): SPECIAL,
        Param("cap", "float"): SPECIAL[:, None],
        Param("c0", "float"): torch.tensor(-0.7, dtype=torch.float64),
        Param("window", "int"): torch.tensor(5),
        Param("on", "bool"): torch.tensor(True),
        Index("q"): torch.arange(4)[:, None, None],
        Index("k"): torch.arange(3)[:, None, None, None],
        Index("h"): torch.tensor(1),
        Size("N"): torch.tensor(3),
    }
    return evaluate(expr, leaves, lambda _name, _indices: SPECIAL.flip(0))


def torch_roots(node: Expr) -> Expr:
    """The one rule that follows torch's own choice instead of the power's limit."""
    match node:
        case Call("pow", (x, Const(0.5))):
            return Call("sqrt", (x,))
        case Call("pow", (x, Const(-0.5))):
            return Call("rsqrt", (x,))
        case _:
            return node


@pytest.mark.parametrize("kind", ["float", "int", "bool"])
def test_values_stay(kind: Kind) -> None:
    @settings(max_examples=250, deadline=None)
    @given(expressions(kind, "qk", (Score(),), 3))
    def check(expr: Expr) -> None:
        expr = rewrite(expr, torch_roots)
        found = rewrite(expr, simplify)
        assert kind_of(found) == kind
        torch.testing.assert_close(
            *torch.broadcast_tensors(values(found), values(expr)), equal_nan=True
        )

    check()


@settings(max_examples=100, deadline=None)
@given(programs())
def test_programs_verify_and_a_second_run_changes_nothing(program: Program) -> None:
    found = canonicalize(program)
    verify_program(program)
    verify_program(found)
    assert canonicalize(found) is found
