"""Plans before and kernels after ``lower``, as text: every value stands in the outermost loop that can compute it."""

from __future__ import annotations

import pytest

from attncompiler.ir.expr import Call, Dot, Expr, Index, Score, Stat
from attncompiler.ir.kernel import KernelPass
from attncompiler.ir.kernel_printer import print_kernel
from attncompiler.ir.parser import parse_program
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.lower import lower, never_positive
from attncompiler.ir.streaming import RowStat
from attncompiler.ir.verify_kernel import verify_kernel

DECLARATIONS = """\
program Test
  param cap: float
  param window: int
  tensor slope[h]: float
  tensor bias[b, h, q, k]: float
  tensor gate[h, k]: float
  tensor tag[k]: int
  tensor table[rows, 3]: float
"""


def lowered(*lines: str) -> str:
    """The text of the kernel of a program with the given formulas; ``weight = score`` unless one is given."""
    given = {line.split("=")[0].strip() for line in lines}
    before = [line for line in ("score = dot", "mask = true") if line.split()[0] not in given]
    order = {"score": 0, "mask": 1, "weight": 3, "output": 5}
    after = [x for x in ("weight = score", "output = value") if x.split()[0] not in given]

    def place(line: str) -> int:
        head = line.split()[0]
        return order.get(head, 4 if head == "keep" else 2)

    text = DECLARATIONS + "".join(f"  {x}\n" for x in sorted((*before, *lines, *after), key=place))
    kernel = lower(derive(parse_program(text)))
    verify_kernel(kernel)
    return print_kernel(kernel)


def body(text: str) -> str:
    """The lines from the uniform values to the accumulators, without their common indent."""
    lines = [
        line for line in text.splitlines() if not line.startswith(("kernel", "  param", "  tensor"))
    ]
    inner = [line for line in lines if not line.startswith("  tile")]
    end = inner.index("  finish")
    return "\n".join(line[2:] for line in inner[:end])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "score = dot - slope[h] * to_float(q - k)",
            """\
pass 0
  row r0_0 = slope[h * slope.stride0]
  row r0_1 = q
  score  = dot - r0_0 * to_float(r0_1 - k)
  sweep 0
    acc0   = sum(score * value)""",
            id="row values are computed once a row",
        ),
        pytest.param(
            "score = dot * (cap + 1.5)",
            """\
uniform u0 = cap + 1.5
pass 0
  score  = dot * u0
  sweep 0
    acc0   = sum(score * value)""",
            id="what no index changes is computed once",
        ),
        pytest.param(
            "score = dot + bias[b, h, q, k]",
            """\
pass 0
  row r0_0 = b * bias.stride0 + h * bias.stride1 + max(min(q, bias.extent2 - 1), 0) * bias.stride2
  key k0_0 = k * bias.stride3
  score  = dot + bias[r0_0 + k0_0]
  sweep 0
    acc0   = sum(score * value)""",
            id="a load splits into a row offset and a key offset; a query is clamped",
        ),
        pytest.param(
            "score = dot * gate[h, k]",
            """\
pass 0
  key k0_0 = gate[h * gate.stride0 + k * gate.stride1]
  score  = dot * k0_0
  sweep 0
    acc0   = sum(score * value)""",
            id="a load over heads and keys is one value a key",
        ),
        pytest.param(
            "score = dot + slope[tag[k]]",
            """\
pass 0
  key k0_0 = slope[max(min(tag[k * tag.stride0], slope.extent0 - 1), 0) * slope.stride0]
  score  = dot + k0_0
  sweep 0
    acc0   = sum(score * value)""",
            id="computed indices are clamped",
        ),
        pytest.param(
            "score = dot * slope[-2]",
            """\
uniform u0 = slope[max(min(slope.extent0 - 2, slope.extent0 - 1), 0) * slope.stride0]
pass 0
  score  = dot * u0
  sweep 0
    acc0   = sum(score * value)""",
            id="negative constant indices count from the end",
        ),
        pytest.param(
            "mask = k <= q and q - k < window",
            """\
pass 0
  row r0_0 = q
  score  = dot
  mask   = k <= r0_0 and r0_0 - k < window
  sweep 0
    acc0   = sum(score * value)""",
            id="a mask reads rows and keys",
        ),
    ],
)
def test_values_move_to_the_outermost_loop(before, after):
    assert body(lowered(before)) == after


def test_sweeps_follow_the_statistics():
    text = lowered(
        "m = max(score)",
        "l = sum(exp(score - m))",
        "weight = exp(score - m) / l",
        "keep lse = m + log(l)",
    )
    assert text.split("  pass 0\n")[1] == (
        """\
    score  = dot
    sweep 0
      m      = max(score)
    sweep 1
      lane v0_0 = where(abs(m) < inf, m, 0.0)
      let t0 = exp(old(m) - m)
      let t1 = where(abs(t0) < inf, t0, 0.0)
      let t2 = exp(score - v0_0)
      l      = sum(t2), rescaled by t1
      acc0   = sum(t2 * value), rescaled by t1
  finish
    c_acc0 = 1.0 / l
    keep lse = m + log(l)
    value  = c_acc0 * acc0, or 0.0 in a row without a key
    output = value
"""
    )


def test_statistics_of_earlier_passes_are_row_values():
    text = lowered(
        "n = sum(1.0)",
        "s = sum(score)",
        "l = sum(abs(score - s / n))",
        "weight = (score - s / n) ** 2.0 / l",
    )
    second = text.split("  pass 1\n")[1].split("  finish")[0]
    assert "    row r1_0 = s / n\n" in second
    assert "abs(score - r1_0)" in second
    assert "s / n" not in second.split("score  =")[1]


def test_features_come_last():
    text = lowered("r = sum_d(value * value)", "output = value / sqrt(r + cap) * slope[h]")
    assert text.split("  finish\n")[1] == (
        """\
    row e0 = slope[h * slope.stride0]
    c_acc0 = 1.0
    value  = c_acc0 * acc0, or 0.0 in a row without a key
    r      = sum_d(value * value)
    output = value / sqrt(r + cap) * e0
"""
    )


def test_arguments_are_those_that_are_read():
    text = lowered("score = dot * cap", "mask = tag[k] == 1 or k < window")
    head = text.splitlines()[1:4]
    assert head == ["  param cap: float", "  param window: int", "  tensor tag[k]: int"]


def test_tiles_are_classified_by_their_corners():
    lines = lowered("mask = k <= q and q - k < window").splitlines()
    assert "  tile certain  = q_lo >= k_hi and q_hi - k_lo < window" in lines


def passes_of(*lines: str) -> tuple[KernelPass, ...]:
    text = DECLARATIONS + "".join(f"  {line}\n" for line in lines)
    return lower(derive(parse_program(text))).passes


def call(op: str, *args: Expr) -> Expr:
    return Call(op, args)


def test_exponentials_below_a_maximum_are_never_positive():
    (only,) = passes_of(
        "score = dot", "mask = true", "m = max(score)", "l = sum(exp(score - m))",
        "weight = exp(score - m) / l", "output = value",
    )  # fmt: skip
    (update,) = only.sweeps[1].stats
    assert update.body in only.nonpositive
    (only,) = passes_of(
        "score = dot",
        "mask = true",
        "l = sum(exp(score))",
        "weight = exp(score) / l",
        "output = value",
    )
    assert not only.nonpositive


@pytest.mark.parametrize(
    ("expr", "answer"),
    [
        (call("exp", call("sub", Score(), Stat("m"))), True),
        (call("exp2", call("sub", Score(), call("max", Stat("m"), Dot()))), True),
        (call("exp", call("sub", Stat("lo"), Score())), True),
        (call("exp", call("sub", Stat("m"), Score())), False),
        (call("exp", call("sub", Score(), Stat("lo"))), False),
        (call("exp", call("sub", Score(), call("min", Stat("m"), Dot()))), False),
        (call("exp", call("sub", call("abs", Score()), Stat("m"))), False),
        (call("tanh", call("sub", Score(), Stat("m"))), False),
        (call("to_float", Index("k")), False),
    ],
)
def test_never_positive(expr, answer):
    stats = (RowStat("m", "max", Score(), 0, 0), RowStat("lo", "min", Score(), 0, 0))
    assert never_positive(expr, stats) is answer
