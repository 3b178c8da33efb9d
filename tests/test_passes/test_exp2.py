"""exp becomes exp2 with the factor in the scale, where no element pays for it."""

from __future__ import annotations

import pytest
import torch

from attncompiler.ir.parser import parse_program
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.exp2 import LN_2, LOG2_E, use_exp2
from attncompiler.ir.printer import print_program
from attncompiler.ir.verify import verify_program
from tests.strategies import run_random

TEMPLATE = """\
program Test
  param cap: float
  tensor slope[h]: float
{scale}  score  = {score}
  mask   = k <= q
  {rest}
  output = value
"""

SOFTMAX = """m      = max(score)
  l      = sum(exp(score - m))
  weight = exp(score - m) / l
  keep lse = m + log(l)"""
SOFTMAX_2 = """m      = max(score)
  l      = sum(exp2(score - m))
  weight = exp2(score - m) / l
  keep lse = m * LN_2 + log(l)"""

CHANGED = {
    "softmax": ("dot", SOFTMAX, True, "dot", SOFTMAX_2),
    "slopes": (
        "dot + slope[h] * to_float(k - q)",
        SOFTMAX,
        True,
        "dot + slope[h] * LOG2_E * to_float(k - q)",
        SOFTMAX_2,
    ),
    "soft cap": (
        "cap * tanh(dot / cap)",
        SOFTMAX,
        False,
        "cap * LOG2_E * tanh(dot / cap)",
        SOFTMAX_2,
    ),
    "user's own -inf": (
        "where(dot > cap, dot, -inf)",
        SOFTMAX,
        True,
        "where(dot > cap * LOG2_E, dot, -inf)",
        SOFTMAX_2,
    ),
    "temperature": ("dot / cap", SOFTMAX, True, "dot / cap", SOFTMAX_2),
    "learned sink": (
        "dot",
        "top    = max(score)\n  let t0 = max(top, slope[h])\n  l      = sum(exp(score - t0))\n"
        "  weight = exp(score - t0) / (l + exp(slope[h] - t0))",
        True,
        "dot",
        "top    = max(score)\n  l      = sum(exp2(score - max(top, slope[h] * LOG2_E)))\n"
        "  let t0 = slope[h] * LOG2_E\n  let t1 = max(top, t0)\n"
        "  weight = exp2(score - t1) / (l + exp2(t0 - t1))",
    ),
    "signed": (
        "dot",
        "m      = max(abs(score))\n  l      = sum(exp(abs(score) - m))\n"
        "  weight = sign(score) * exp(abs(score) - m) / l",
        True,
        "dot",
        "m      = max(abs(score))\n  l      = sum(exp2(abs(score) - m))\n"
        "  weight = sign(score) * exp2(abs(score) - m) / l",
    ),
    "relative to the mean": (
        "dot",
        "n      = sum(1.0)\n  mu     = sum(score)\n  l      = sum(exp(score - mu / n))\n"
        "  weight = exp(score - mu / n) / l",
        True,
        "dot",
        "n      = sum(1.0)\n  mu     = sum(score)\n  l      = sum(exp2(score - mu / n))\n"
        "  weight = exp2(score - mu / n) / l",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_the_factor_moves_to_where_it_costs_nothing(name: str) -> None:
    score, rest, in_scale, new_score, new_rest = CHANGED[name]
    program = canonicalize(parse_program(TEMPLATE.format(scale="", score=score, rest=rest)))
    scale = f"  scale  = scale * {LOG2_E!r}\n" if in_scale else ""
    expected = TEMPLATE.format(scale=scale, score=new_score, rest=new_rest)
    expected = expected.replace("LOG2_E", repr(LOG2_E)).replace("LN_2", repr(LN_2))
    found = use_exp2(program)
    verify_program(found)
    assert print_program(found) == expected
    assert use_exp2(found) is found
    for old, new in zip(run_random(program), run_random(found), strict=True):
        torch.testing.assert_close(new, old, equal_nan=True)


@pytest.mark.parametrize(
    ("score", "rest"),
    [
        ("dot", "weight = sigmoid(score)"),
        ("dot", "l      = sum(score * score)\n  weight = score / sqrt(l)"),
        ("dot", "m      = max(score)\n  weight = exp(score - m) * score"),
        ("tanh(dot)", SOFTMAX),
        ("dot + sin(to_float(q - k))", SOFTMAX),
        ("dot", SOFTMAX_2.replace("LN_2", repr(LN_2))),
    ],
)
def test_where_an_element_would_pay_nothing_changes(score: str, rest: str) -> None:
    program = parse_program(TEMPLATE.format(scale="", score=score, rest=rest))
    assert use_exp2(program) is program
