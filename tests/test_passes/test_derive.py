"""Derivation: which statistics stream, by which factors, in how many passes, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from formula_cases import CASES
from formulas import F, Formula, H, K, S, call, exp, log, param, tensor, where
from hypothesis import given
from hypothesis import strategies as st

from attncompiler.ir.expr import Const, OldStat, Stat, is_row_only, kind_of, stats_in, walk
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.rescale import Refused, Rescaler, Streams
from attncompiler.ir.passes.split import split
from attncompiler.ir.printer import print_expression
from attncompiler.ir.program import Reduction
from attncompiler.ir.streaming import StreamingPlan, readable, row_parts

M, L = F(Stat("m")), F(Stat("l"))
E = exp(S - M)


def plan_of(name: str) -> StreamingPlan:
    return derive(CASES[name].program)


@pytest.mark.parametrize("name", CASES)
def test_passes_and_accumulators(name):
    plan = plan_of(name)
    assert (plan.passes, len(plan.accumulators)) == (CASES[name].passes, CASES[name].accumulators)


@pytest.mark.parametrize("name", CASES)
def test_plans_are_well_formed(name):
    plan = plan_of(name)
    at = {s.name: s for s in plan.stats}
    assert [s.name for s in plan.stats] == sorted(
        at, key=lambda n: (at[n].pass_, at[n].sweep, list(at).index(n))
    )
    assert {r.name: (r.op, r.body) for r in plan.program.reductions} == {
        s.name: (s.op, s.body) for s in plan.stats
    }
    for part in (*plan.stats, *plan.accumulators):
        assert 0 <= part.pass_ < plan.passes
        read = stats_in(part.body)
        assert set(part.running) == {n for n in read if at[n].pass_ == part.pass_}
        assert all(at[n].pass_ < part.pass_ or at[n].sweep < part.sweep for n in read)
        if part.factor is not None:
            assert part.running
            assert kind_of(part.factor) == "float"
            olds = {n.name for n in walk(part.factor) if isinstance(n, OldStat)}
            assert olds <= set(part.running)
            assert is_row_only(part.factor)
    for acc in plan.accumulators:
        assert acc.pass_ == plan.passes - 1
        assert is_row_only(acc.coefficient)


def test_softmax_in_one_pass_with_one_exponential():
    plan = plan_of("softmax")
    m, l = plan.stats  # noqa: E741
    (acc,) = plan.accumulators
    assert (m.sweep, l.sweep, acc.sweep) == (0, 1, 1)
    assert acc.body is l.body
    assert l.factor is acc.factor
    assert print_expression(acc.factor) == "exp(old(m) - m)"
    assert print_expression(acc.coefficient) == "1.0 / total"


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("learned sink", "exp(max(old(m), sink[h]) - max(m, sink[h]))"),
        ("signed", "exp(old(m) - m)"),
        ("anti", "exp(lo - old(lo))"),
        ("temperature of a tensor", "exp(temp[h, q] * (old(m) - m))"),
        ("clipped base 2", "exp2(old(m) - m)"),
        ("top-theta on the score", "exp(old(m) - m)"),
        ("maximum of maxima", "exp(max(old(m1), old(m2)) - max(m1, m2))"),
        ("product of softmaxes", "exp(old(m1) + old(m2) - m1 - m2)"),
    ],
)
def test_rescale_factors_are_differences_inside_the_exponential(name, factor):
    (acc,) = plan_of(name).accumulators
    assert print_expression(acc.factor) == factor


@pytest.mark.parametrize(
    "name", ["affine-scaled", "log-domain", "temperature", "z-scored", "off by one"]
)
def test_an_accumulator_shares_the_body_of_its_sum(name):
    plan = plan_of(name)
    assert plan.accumulators[0].body in {s.body for s in plan.stats if s.op == "sum"}


def test_statistics_stand_as_late_as_possible():
    plan = plan_of("log count")
    assert {s.name: s.pass_ for s in plan.stats} == {"n": 0, "m": 1, "total": 1}
    assert all(s.pass_ == 0 for s in plan_of("threshold on the weight").stats)


def test_what_nothing_reads_is_dropped_and_what_is_kept_is_not():
    f = Formula("unused")
    m = f.max("m", S)
    f.sum("unused", exp(S - m))
    plan = derive(f.program(call("sigmoid", S)))
    assert plan.stats == plan.program.reductions == ()
    f = Formula("kept")
    m = f.max("m", S)
    total = f.sum("total", exp(S - m))
    plan = derive(f.program(call("sigmoid", S), kept={"lse": m + log(total)}))
    assert [s.name for s in plan.stats] == ["m", "total"]


def test_the_epilogue_may_read_statistics():
    f = Formula("epilogue")
    m = f.max("m", S)
    plan = derive(f.program(call("sigmoid", S), output=F(Stat("m")) * m))
    assert [s.name for s in plan.stats] == ["m"]


def test_equal_sums_become_one_once_their_factors_are_out():
    f = Formula("equal")
    m = f.max("m", S)
    total = f.sum("total", exp(S - m))
    mass = f.sum("mass", exp(S - m) / total)
    plan = derive(f.program(exp(S - m) / mass))
    assert [s.name for s in plan.stats] == ["m", "total"]


def test_reasons_name_the_factor_and_the_obstacle():
    text = "\n".join(plan_of("softmax").reasons)
    assert (
        "total = sum(exp(score - m)) streams with m: what was summed is multiplied by exp(old(m) - m)"
        in text
    )
    assert text.endswith("1 pass over the keys, 1 sum of values")
    text = "\n".join(plan_of("z-scored").reasons)
    assert "l = sum(" in text
    assert "needs its own pass after n, s1, s2" in text
    assert "has no factor free of the key's score when n or s1 or s2 changes" in text
    text = "\n".join(plan_of("not vanishing").reasons)
    assert text.endswith("2 passes over the keys, 1 sum of values")


def test_more_classes_than_accumulators_take_another_pass():
    f = Formula("six classes")
    m = f.max("m", S)
    total = f.sum("total", exp(S - m))
    tag = tensor("tag", K, kind="int")
    factor = F(Const(1.0))
    for i in range(6):
        factor = where(tag.equals(i), total + float(i), factor)
    plan = derive(f.program(factor * exp(S - m)))
    assert (plan.passes, len(plan.accumulators)) == (2, 1)


def test_deriving_twice_gives_the_same_plan():
    for name in ("redistribution", "z-scored with a maximum"):
        assert plan_of(name) == plan_of(name)
        plan = plan_of(name)
        assert derive(plan.program).stats == plan.stats


def rescaler(*reductions: tuple[str, str, F]) -> Rescaler:
    result = Rescaler()
    for name, op, body in reductions:
        result.learn(Reduction(name, op, body.expr))  # type: ignore[arg-type]
    return result


def test_verdicts():
    r = rescaler(("m", "max", S), ("l", "sum", E))
    assert isinstance(r.verdict(E.expr, frozenset({"m"})), Streams)
    refused = r.verdict(exp((S - M) / L).expr, frozenset({"m", "l"}))
    assert refused == Refused("has no factor free of the key's score when l changes")
    zero = r.verdict(exp(S - M - log(L)).expr, frozenset({"m", "l"}))
    assert zero == Refused("follows l, and a sum may take any value before its last key")
    other = r.verdict(exp(tensor("bias", K) - M).expr, frozenset({"m"}))
    assert other == Refused("does not vanish while m is still infinite")
    assert r.verdict(exp((S - M) / L).expr, frozenset({"m"})) != refused


def test_a_tiny_constant_beside_an_exponential_is_noticed():
    r = rescaler(("m", "max", S))
    assert isinstance(r.verdict((E + param("al")).expr, frozenset({"m"})), Refused)
    assert isinstance(r.verdict((E + 1e-6).expr, frozenset({"m"})), Refused)


def test_a_branch_that_moves_is_noticed_even_where_a_maximum_hides_it():
    r = rescaler(("m", "max", call("abs", S)))
    hidden = call("max", S * S + 1e9, where(S > M, S, call("tanh", S)))
    refused = r.verdict(hidden.expr, frozenset({"m"}))
    assert refused == Refused("takes another branch for some keys when m changes")


@pytest.mark.parametrize(
    ("weight", "terms"),
    [
        (E / L, [("1.0 / l", "exp(score - m)")]),
        (exp(S - (M + log(L))), [("1.0 / l", "exp(score - m)")]),
        (param("al") * (E / L) + 0.5, [("al / l", "exp(score - m)"), ("0.5", "1.0")]),
        (call("max", E / L, 0.0), [("1.0 / l", "max(exp(score - m), 0.0)")]),
        (-(E / L), [("-1.0 / l", "exp(score - m)")]),
        (call("sqrt", E / L), [("1.0 / sqrt(l)", "sqrt(exp(score - m))")]),
        (S * tensor("gate", H, K), [("1.0", "score * gate[h, k]")]),
    ],
)
def test_split(weight, terms):
    found = split(weight.expr, distribute=True, positive=frozenset({"l"}))
    assert [(print_expression(t.coefficient), print_expression(t.body)) for t in found] == terms


def test_row_parts_are_what_a_row_computes_once():
    sink = tensor("sink", H)
    body = exp((S - call("max", M, sink)) / (L + 1.0)).expr
    parts = row_parts(body, ["m", "l"])
    assert [print_expression(p) for p in parts] == ["max(m, sink[h])", "l + 1.0"]
    guarded = print_expression(readable(E.expr, ["m"]))
    assert guarded == "exp(score - where(abs(m) < inf, m, 0.0))"
    assert readable(E.expr, []) is E.expr


def test_importing_needs_neither_torch_nor_sympy():
    code = (
        "import sys, attncompiler.ir.passes.derive, attncompiler.ir.streaming_run;"
        "sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SCALARS = st.sampled_from([S, S * 0.5, S - 1.0, call("abs", S), call("tanh", S), S * param("al")])
KEYS = st.sampled_from(
    [F(Const(1.0)), tensor("gate", H, K), call("sign", S), S, where(K > 4, S, 1.0)]
)


@st.composite
def exponential_families(draw):
    """A weight built from one shifted exponential and anything that does not involve its maximum."""
    x, g, h = draw(SCALARS), draw(KEYS), draw(KEYS)
    f = Formula("family")
    m = f.max("m", x)
    e = exp(x - m)
    total = f.sum("total", e * call("abs", h))
    return f.program(g * e / (total + 0.5))


@given(exponential_families())
def test_weights_of_one_shifted_exponential_stream(program):
    plan = derive(program)
    assert (plan.passes, len(plan.accumulators)) == (1, 1)
    assert print_expression(plan.accumulators[0].factor) == "exp(old(m) - m)"


def test_a_program_without_anything_to_change_is_kept():
    program = CASES["softmax"].program
    assert derive(program).program is program
    assert derive(replace(program, kept=())).stats == derive(program).stats
