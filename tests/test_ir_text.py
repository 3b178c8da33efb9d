"""The text form of programs and plans: readable, stable, and read back as an equal program."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from attncompiler.ir.expr import Call, Const, Expr, Index, Load, OldStat, Param, Score, Stat
from attncompiler.ir.formula_parser import ParseError
from attncompiler.ir.parser import parse_expression, parse_program
from attncompiler.ir.printer import print_expression, print_plan, print_program
from attncompiler.ir.program import ParamDecl, Program, Reduction, TensorDecl
from attncompiler.ir.spelling import quoted, unquoted
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan
from attncompiler.ir.verify import verify_plan, verify_program
from tests.strategies import programs

GEMMA = """\
program Gemma2Local
  param cap: float
  param window: int
  tensor sink[h]: float
  score  = cap * tanh(dot / cap)
  mask   = k <= q and q - k < window
  m0     = max(score)
  l0     = sum(exp(score - m0))
  weight = exp(score - m0) / (l0 + exp(sink[h] - m0))
  keep lse = m0 + log(l0)
  output = value
"""
EVERYTHING = """\
program Everything
  param c0: float lifted
  param on: bool
  tensor table[rows, 3, h]: int
  scale  = scale * 1.4426950408889634
  let t0 = sin(dot * 2.0)
  score  = where(on, t0 * t0, -inf)
  mask   = not q // 4 - k % 3 << 1 & 7 == 0 or (k < q) == on
  m      = max(max(score, -0.0))
  weight = -score ** 2.0 - (-1.0) ** score
  r      = sum_d(abs(value))
  let t1 = to_float(table[b, -1, h // G])
  output = value / r * (t1 - (1.0 - t1)) + nan
"""


@pytest.mark.parametrize("text", [GEMMA, EVERYTHING])
def test_text_is_read_and_printed_back(text: str) -> None:
    program = parse_program(text)
    verify_program(program)
    assert print_program(program) == text


@settings(max_examples=150, deadline=None)
@given(programs(depth=3))
def test_random_programs_are_read_back_equal(program: Program) -> None:
    text = print_program(program)
    again = parse_program(text)
    assert again == program, text
    assert print_program(again) == text


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (Call("neg", (Const(4),)), "-(4)"),
        (Call("neg", (Call("pow", (Const(4.0), Score())),)), "-(4.0 ** score)"),
        (Call("neg", (Call("neg", (Score(),)),)), "-(-score)"),
        (Call("pow", (Const(-4.0), Score())), "(-4.0) ** score"),
        (Call("sub", (Score(), Call("sub", (Score(), Score())))), "score - (score - score)"),
        (Call("sub", (Call("sub", (Score(), Score())), Score())), "score - score - score"),
        (Call("not", (Call("eq", (Index("q"), Const(-1))),)), "not q == -1"),
        (OldStat("m"), "old(m)"),
        (Const(False), "false"),
    ],
)
def test_expressions_are_written_with_the_fewest_parentheses(expr: Expr, text: str) -> None:
    assert print_expression(expr) == text
    assert parse_expression(text) is expr


def test_names_that_mean_something_else_are_quoted() -> None:
    names = [
        "k",
        "score",
        "exp",
        "m",
        "let",
        "it's",
        "a b",
        "größe",
        "param",
        "t0",
        "new\nline",
        "\\",
    ]
    large = Call("mul", (Call("exp", (Score(),)), Call("exp", (Score(),))))
    total: Expr = Call("add", (large, large))
    for name in names:
        total = Call("add", (total, Call("mul", (Param(name, "float"), Stat(name)))))
        total = Call("add", (total, Load(name, (Index("q"),), "float")))
    program = Program(
        name="sliding window",
        params=tuple(ParamDecl(n, "float") for n in names),
        tensors=tuple(TensorDecl(n, ("q",), "float") for n in names),
        reductions=tuple(Reduction(n, "max", Score()) for n in names),
        weight=total,
        kept=tuple((n, Stat(n)) for n in names),
    )
    verify_program(program)
    text = print_program(program)
    assert parse_program(text) == program, text
    assert "param'k' * stat'k'" in text
    assert all(unquoted(quoted(n)) == n for n in names)


def test_shared_formulas_do_not_grow_the_text() -> None:
    expr: Expr = Score()
    for _ in range(60):
        expr = Call("mul", (Call("exp", (expr,)), expr))
    program = Program("Deep", weight=expr)
    text = print_program(program)
    assert len(text) < 5000
    assert parse_program(text) == program


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("program X\n  score  = dot +", "unexpected 'end'"),
        ("program X\n  score  = dot dot", "expected ''"),
        ("program X\n  score  = dot $", "unexpected"),
        ("program X\n  score  = dot and k < q", "and cannot take"),
        ("program X\n  score  = t[q]", "no tensor 't'"),
        ("program X\n  param a: double", "no kind"),
        ("program X\n  m = mean(score)", "no reduction"),
        ("program X\n  nonsense", "unknown statement"),
    ],
)
def test_other_text_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ParseError, match=problem):
        parse_program(text)


def test_a_plan_shows_passes_factors_coefficients_and_reasons() -> None:
    program = parse_program(GEMMA)
    m0, l0 = program.reductions
    factor = Call("exp", (Call("sub", (OldStat("m0"), Stat("m0"))),))
    coefficient = Call("div", (Const(1.0), Stat("l0")))
    plan = StreamingPlan(
        program,
        (
            RowStat("m0", "max", m0.body, 0, 0),
            RowStat("l0", "sum", l0.body, 0, 1, ("m0",), factor),
        ),
        (Accumulator("acc0", l0.body, coefficient, 0, 1, ("m0",), factor),),
        1,
        ("m0 and l0 stream together",),
    )
    verify_plan(plan)
    expected = """\
plan Gemma2Local: 1 pass over the keys
  pass 0, sweep 0
    m0     = max(score)
  pass 0, sweep 1
    l0     = sum(exp(score - m0))
      rescaled by exp(old(m0) - m0)
    acc0   = sum(exp(score - m0) * value)
      rescaled by exp(old(m0) - m0)
  finally
    value  = (1.0 / l0) * acc0
    keep lse = m0 + log(l0)
    output = value
  because m0 and l0 stream together
"""
    assert print_plan(plan) == GEMMA + "\n" + expected
