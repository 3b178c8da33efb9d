"""The dense evaluator against formulas written directly in torch."""

from __future__ import annotations

import pytest
import torch

from attncompiler.ir.dense import run_program
from attncompiler.ir.parser import parse_program

SOFTMAX = """\
program Softmax
  score  = dot
  mask   = k <= q
  m      = max(score)
  l      = sum(exp(score - m))
  weight = exp(score - m) / l
  keep lse = m + log(l)
  output = value
"""


def inputs(heads: int = 4, groups: int = 4, rows: int = 3, keys: int = 5) -> list[torch.Tensor]:
    shapes = (2, heads, rows, 8), (2, groups, keys, 8), (2, groups, keys, 6)
    return [
        torch.randn(*s, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for s in shapes
    ]


def test_causal_softmax_with_shared_keys_and_a_start() -> None:
    q, k, v = inputs(groups=2)
    out, kept = run_program(parse_program(SOFTMAX), q, k, v, q_start=2)
    allowed = torch.arange(5) <= torch.arange(3)[:, None] + 2
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=True)
    torch.testing.assert_close(out, expected)
    scores = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(kept["lse"], scores.logsumexp(-1))


@pytest.mark.parametrize("keys", [0, 2])
def test_rows_without_keys_are_output_of_zero(keys: int) -> None:
    text = SOFTMAX.replace("k <= q", "k < q - 1").replace("output = value", "output = value + 0.5")
    out, kept = run_program(parse_program(text), *inputs(keys=keys))
    assert (out[:, :, :2] == 0.5).all()
    assert (kept["lse"][:, :, :2] == -torch.inf).all()
    assert out.isfinite().all()


def test_loads_clamp_and_negative_constants_count_from_the_end() -> None:
    text = """\
program Loads
  param cap: float
  tensor table[4, 3]: float
  score  = dot * 0.0 + table[q + 100, -1] + table[q - 7, 0]
  mask   = true
  weight = score * cap
  r      = sum_d(value)
  output = value / r
"""
    table = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    q, k, v = inputs()
    out, _ = run_program(parse_program(text), q, k, v, params={"cap": 2}, tensors={"table": table})
    total = v.sum(-2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out, total / total.sum(-1, keepdim=True))
    with pytest.raises(KeyError):
        run_program(parse_program(text), q, k, v, tensors={"table": table})


def test_the_scale_and_the_type_are_honoured() -> None:
    q, k, v = inputs()
    program = parse_program(SOFTMAX.replace("  score", "  scale  = scale * 2.0\n  score", 1))
    doubled, _ = run_program(program, q, k, v, scale=0.25)
    plain, _ = run_program(parse_program(SOFTMAX), q, k, v, scale=0.5)
    torch.testing.assert_close(doubled, plain)
    single, kept = run_program(program, q, k, v, dtype=torch.float32)
    assert single.dtype == kept["lse"].dtype == torch.float32
