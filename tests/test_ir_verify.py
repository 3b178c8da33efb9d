"""The verifier names the slot and the broken rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    OldStat,
    Param,
    Score,
    Stat,
    Value,
)
from attncompiler.ir.program import ParamDecl, Program, Reduction, TensorDecl
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan
from attncompiler.ir.verify import VerifyError, verify_plan, verify_program

SHIFTED = Call("exp", (Call("sub", (Score(), Stat("m"))),))
FACTOR = Call("exp", (Call("sub", (OldStat("m"), Stat("m"))),))
GOOD = Program(
    "Good",
    params=(ParamDecl("cap", "float"),),
    tensors=(TensorDecl("bias", ("h",), "float"),),
    reductions=(Reduction("m", "max", Score()), Reduction("l", "sum", SHIFTED)),
    weight=Call("div", (SHIFTED, Stat("l"))),
    kept=(("lse", Stat("m")),),
)
PLAN = StreamingPlan(
    GOOD,
    (RowStat("m", "max", Score(), 0, 0), RowStat("l", "sum", SHIFTED, 0, 1, ("m",), FACTOR)),
    (Accumulator("acc", SHIFTED, Call("div", (Const(1.0), Stat("l"))), 0, 1, ("m",), FACTOR),),
    1,
)


def load(*indices: Expr) -> Expr:
    return Load("bias", indices, "float")


def test_good_levels_pass() -> None:
    verify_program(GOOD)
    verify_plan(PLAN)


BAD_PROGRAMS: dict[str, tuple[Program, str]] = {
    "undeclared parameter": (
        replace(GOOD, score=Param("x", "float")),
        "score: reads a parameter x",
    ),
    "parameter of another kind": (
        replace(GOOD, mask=Param("cap", "bool")),
        "mask: reads a parameter cap",
    ),
    "mask of numbers": (replace(GOOD, mask=Index("k")), "mask: is of kind int, not bool"),
    "mask of scores": (replace(GOOD, mask=Call("lt", (Dot(), Const(0.0)))), "mask: reads dot"),
    "score of itself": (replace(GOOD, score=Score()), "score: reads score"),
    "score along d": (
        replace(GOOD, score=Call("to_float", (Index("d"),))),
        "score: reads the index d",
    ),
    "too many indices": (replace(GOOD, score=load(Index("h"), Index("q"))), "fits no declaration"),
    "float index": (replace(GOOD, score=load(Dot())), "not an integer"),
    "later statistic": (
        replace(GOOD, reductions=GOOD.reductions[::-1]),
        "l: reads the statistic m, which is not computed yet",
    ),
    "statistic along keys": (
        replace(GOOD, kept=(("p", Call("to_float", (Index("k"),))),)),
        "keep p: reads the index k",
    ),
    "output of scores": (
        replace(GOOD, output=Call("mul", (Value(), Score()))),
        "output: reads score",
    ),
    "old statistic": (replace(GOOD, weight=OldStat("m")), "only rescale factors"),
    "two reductions of one name": (
        replace(GOOD, reductions=(*GOOD.reductions, Reduction("m", "min", Score()))),
        "a name is used twice",
    ),
    "no scale": (replace(GOOD, dot_factor=0.0), "dot_factor is 0.0"),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_a_bad_program_is_refused(name: str) -> None:
    program, problem = BAD_PROGRAMS[name]
    with pytest.raises(VerifyError, match=problem) as caught:
        verify_program(program)
    assert "program Good" in str(caught.value)


m, l, acc = PLAN.stats[0], PLAN.stats[1], PLAN.accumulators[0]  # noqa: E741  the letters of the literature
BAD_PLANS: dict[str, tuple[StreamingPlan, str]] = {
    "no such pass": (replace(PLAN, passes=0), "stands in pass 0 of 0"),
    "same sweep": (replace(PLAN, stats=(m, replace(l, sweep=0))), "no earlier sweep"),
    "later pass": (
        replace(PLAN, stats=(replace(m, pass_=1), l), passes=2),
        "which a later pass computes",
    ),
    "missing statistic": (replace(PLAN, stats=(l,)), "reads m, which no pass computes"),
    "running not listed": (
        replace(PLAN, stats=(m, replace(l, running=()))),
        "not listed correctly",
    ),
    "factor of the key": (
        replace(PLAN, stats=(m, replace(l, factor=SHIFTED))),
        "varies with the key",
    ),
    "coefficient of the key": (
        replace(PLAN, accumulators=(replace(acc, coefficient=Score()),)),
        "coefficient varies",
    ),
    "two of one name": (replace(PLAN, accumulators=(acc, acc)), "two accumulators"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_bad_plan_is_refused(name: str) -> None:
    plan, problem = BAD_PLANS[name]
    with pytest.raises(VerifyError, match=problem) as caught:
        verify_plan(plan)
    assert "plan Good" in str(caught.value)
