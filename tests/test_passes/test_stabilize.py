"""A maximum is subtracted exactly where no weight changes, and kept statistics keep their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from attncompiler.ir.parser import parse_program
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.passes.stabilize import explain_stabilize, stabilize
from attncompiler.ir.printer import print_program
from attncompiler.ir.program import Program
from attncompiler.ir.verify import verify_program
from tests.strategies import programs, run_random

TEMPLATE = """\
program Test
  param cap: float
  tensor slope[h]: float
  score  = dot
  mask   = k <= q
  {body}
  output = value
"""

INVARIANT = {
    "softmax": (
        """l      = sum(exp(score))
  weight = exp(score) / l
  keep lse = log(l)
  keep total = l""",
        """m      = max(score)
  l      = sum(exp(score - m))
  weight = exp(score - m) / l
  keep lse = log(l) + m
  keep total = l * exp(m)""",
    ),
    "base two of a scaled score": (
        """l      = sum(exp2(score * cap))
  weight = exp2(score * cap) / l
  keep lse = log2(l)""",
        """m      = max(score * cap)
  l      = sum(exp2(score * cap - m))
  weight = exp2(score * cap - m) / l
  keep lse = log2(l) + m""",
    ),
    "l2 norm of exponentials, with zeros": (
        """l      = sum(exp(score) * exp(score))
  weight = where(score > 0.0, exp(score), 0.0) / sqrt(l)""",
        """m      = max(score)
  let t0 = exp(score - m)
  l      = sum(t0 * t0)
  weight = where(score > 0.0, t0, 0.0) / sqrt(l)""",
    ),
    "relative to the mean": (
        """n      = sum(1.0)
  mu     = sum(score)
  l      = sum(exp(score - mu / n))
  weight = exp(score - mu / n) / l * slope[h]""",
        """n      = sum(1.0)
  mu     = sum(score)
  m      = max(score - mu / n)
  l      = sum(exp(score - mu / n - m))
  weight = exp(score - mu / n - m) / l * slope[h]""",
    ),
    "a maximum that the user has": (
        """top    = max(score)
  l      = sum(exp(score))
  weight = exp(score) / l * sigmoid(top)""",
        """top    = max(score)
  l      = sum(exp(score - top))
  weight = exp(score - top) / l * sigmoid(top)""",
    ),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_a_maximum_is_subtracted(name: str) -> None:
    before, after = (TEMPLATE.format(body=text) for text in INVARIANT[name])
    program = parse_program(before)
    found = stabilize(program)
    verify_program(found)
    assert print_program(found) == after
    assert stabilize(found) is found
    for old, new in zip(run_random(program), run_random(found), strict=True):
        torch.testing.assert_close(new, old)
    assert "relative to the row's maximum" in explain_stabilize(program)


@pytest.mark.parametrize(
    "body",
    [
        "m      = max(score)\n  l      = sum(exp(score - m))\n  weight = exp(score - m) / l",
        "l      = sum(exp(score))\n  weight = exp(score) / (1.0 + l)",
        "weight = exp(score)",
        "weight = 1.0 / (1.0 + exp(-score))",
        "l      = sum(exp(score))\n  weight = max(exp(score) / l - 0.1, l)",
        "l      = sum(exp(score))\n  weight = exp(score) * exp(score) / l",
    ],
)
def test_other_formulas_stay_as_written(body: str) -> None:
    program = parse_program(TEMPLATE.format(body=body))
    assert stabilize(program) is program
    assert "relative" not in explain_stabilize(program)


def test_large_scores_no_longer_overflow() -> None:
    text = TEMPLATE.format(body=INVARIANT["softmax"][0]).replace("= dot", "= dot * 1000.0")
    plain, *_ = run_random(parse_program(text))
    stable, *_ = run_random(stabilize(parse_program(text)))
    assert plain.isnan().any()
    assert stable.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(programs())
def test_random_programs_verify_and_a_second_run_changes_nothing(program: Program) -> None:
    found = stabilize(merge_reductions(canonicalize(program)))
    verify_program(found)
    assert stabilize(found) is found
