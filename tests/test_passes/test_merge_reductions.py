"""Equal reductions become one, unread ones disappear, and values stay."""

from __future__ import annotations

import torch
from hypothesis import given, settings

from attncompiler.ir.parser import parse_program
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.printer import print_program
from attncompiler.ir.program import Program
from attncompiler.ir.verify import verify_program
from tests.strategies import programs, run_random


def test_equal_reductions_become_one() -> None:
    before = parse_program("""\
program Twice
  score  = dot
  mask   = true
  m      = max(score)
  n      = max(score)
  l      = sum(exp(score - m))
  j      = sum(exp(score - n))
  unread = sum(score * l)
  weight = exp(score - n) / j
  keep lse = m + log(l)
  e      = sum_d(value)
  f      = sum_d(value)
  output = value / f
""")
    after = merge_reductions(before)
    assert (
        print_program(after)
        == """\
program Twice
  score  = dot
  mask   = true
  m      = max(score)
  l      = sum(exp(score - m))
  weight = exp(score - m) / l
  keep lse = m + log(l)
  e      = sum_d(value)
  output = value / e
"""
    )
    assert merge_reductions(after) is after


@settings(max_examples=60, deadline=None)
@given(programs())
def test_values_stay(program: Program) -> None:
    merged = merge_reductions(program)
    verify_program(merged)
    assert merge_reductions(merged) is merged
    for before, after in zip(run_random(program), run_random(merged), strict=True):
        torch.testing.assert_close(after, before, equal_nan=True, rtol=0, atol=0)
