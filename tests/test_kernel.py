"""Kernels: what their loops compute, their text, and what the verifier refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from formula_cases import CASES
from formulas import DOT, PARAMS, F, H, Inputs, K, Q, call, inputs, param, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TENSORS, expressions, programs

from attncompiler.ir.expr import Call, Const, Dot, Expr, Index, Load, Local, OldStat, Param, Stat
from attncompiler.ir.kernel import Kernel, KeyRanges, Let
from attncompiler.ir.kernel_printer import print_kernel
from attncompiler.ir.kernel_run import run_kernel
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.lower import lower
from attncompiler.ir.program import Program
from attncompiler.ir.spans import Span
from attncompiler.ir.streaming_run import run_plan
from attncompiler.ir.tiles import CORNERS
from attncompiler.ir.verify import VerifyError
from attncompiler.ir.verify_kernel import verify_kernel


def ranges(lo: Expr) -> KeyRanges:
    return KeyRanges((Span(lo, Const(9), 1, True, Const(True)),), Const(True))


SCORES = {
    "dot": DOT,
    "alibi": DOT - tensor("slope", H) * call("to_float", Q - K),
    "bias of a key": DOT + tensor("bias", K),
    "relative bias": DOT + tensor("bias", Q - K + 5),
    "gate of a head and key": DOT * tensor("gate", H, K),
    "temperature": DOT * tensor("temp", H, Q),
    "table of a key": DOT + tensor("bias", tensor("tag", K, kind="int")),
}
MASKS = {
    "all": K >= 0,
    "none": K < 0,
    "causal": K <= Q,
    "window": (K <= Q) & (param("sinks", "int") > Q - K),
    "dilated": (Q - K) % 3 < 1,
    "document": tensor("tag", K, kind="int").equals(1) | (K < 2),
    "heads": (K <= Q) & (H % 2 < 1),
}


def relaid(x: Inputs, draw: st.DataObject) -> dict[str, torch.Tensor]:
    """The tensors of an input in other memory: transposed, in the middle of a larger one, or with stride 0."""

    def other(t: torch.Tensor) -> torch.Tensor:
        match draw.draw(st.sampled_from(["same", "transposed", "inside", "stride 0"])):
            case "transposed":
                return t.mT.contiguous().mT if t.ndim > 1 else t.clone()
            case "inside":
                wide = torch.stack([t + 9, t, t + 9], -1)
                return wide[..., 1]
            case "stride 0":
                return t[:1].expand(t.shape)
            case _:
                return t

    return {name: other(t) for name, t in x.tensors.items()}


def assert_same(got: tuple, want: tuple) -> None:
    for a, b in [(got[0], want[0]), *((got[1][n], want[1][n]) for n in want[1])]:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)


@settings(max_examples=60)
@given(st.data())
def test_blocks_and_tiles_of_any_size_give_the_plan_s_result(data):
    case = CASES[data.draw(st.sampled_from(sorted(CASES)))].program
    score = data.draw(st.sampled_from(sorted(SCORES)))
    mask = data.draw(st.sampled_from(sorted(MASKS)))
    program = canonicalize(replace(case, score=SCORES[score].expr, mask=MASKS[mask].expr))
    plan = derive(program)
    kernel = lower(plan)
    verify_kernel(kernel)
    m, n = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 40))
    x = inputs(
        data.draw(st.integers(0, 9)), m=m, n=max(n, 4), q_start=data.draw(st.integers(0, 30))
    )
    x = replace(x, key=x.key[:, :, :n], value=x.value[:, :, :n])
    call = {"q_start": x.q_start, "params": PARAMS, "tensors": relaid(x, data), "scale": 0.7}
    got = run_kernel(
        kernel,
        x.query,
        x.key,
        x.value,
        block=data.draw(st.sampled_from([1, 2, 7, 16])),
        tile=data.draw(st.sampled_from([1, 3, 8, 64])),
        **call,
    )
    assert_same(got, run_plan(plan, x.query, x.key, x.value, **call))


@settings(max_examples=60)
@given(st.data())
def test_random_scores_and_masks_give_the_plan_s_result(data):
    loads = (Load("slope", (Index("h"),), "float"), Load("table", (Index("g"), Const(1)), "float"))
    score = data.draw(expressions("float", "bhgqk", (Dot(), *loads)))
    softmax = CASES["softmax"].program
    mask = data.draw(expressions("bool", "bhgqk", loads))
    random = data.draw(programs(depth=0))
    bounded = Call("max", (Call("min", (score, Const(50.0))), Const(-50.0)))
    program = canonicalize(
        replace(softmax, params=random.params, tensors=TENSORS, score=bounded, mask=mask)
    )
    kernel = lower(derive(program))
    verify_kernel(kernel)
    x = inputs(1, m=5, n=19)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "slope": normal(4),
        "bias": normal(5, 19),
        "length": torch.tensor([3, 17]),
        "table": normal(6, 3),
    }
    params = {"cap": 1.5, "window": 4, "on": True, "c0": -0.25}
    call = {"q_start": 3, "params": params, "tensors": tensors, "scale": 0.7}
    got = run_kernel(kernel, x.query, x.key, x.value, block=3, tile=5, **call)
    assert_same(got, run_plan(kernel.plan, x.query, x.key, x.value, **call))


@settings(max_examples=40)
@given(programs(depth=2))
def test_kernels_of_random_programs_are_well_formed_and_print_stably(program: Program):
    kernel = lower(derive(canonicalize(program)))
    verify_kernel(kernel)
    again = lower(derive(canonicalize(program)))
    assert print_kernel(kernel) == print_kernel(again)


def test_a_read_outside_a_tensor_is_caught():
    kernel = kernel_of("gated by a tensor")
    (kernel_pass,) = kernel.passes
    (gate,) = kernel_pass.keys
    far = Let(gate.local, Load("gate", (Call("sub", (Index("k"), Const(1))),), "float"))
    x = inputs(0)
    with pytest.raises(IndexError, match="gate"):
        run_kernel(
            replace(kernel, passes=(replace(kernel_pass, keys=(far,)),)),
            x.query,
            x.key,
            x.value,
            tensors=x.tensors,
        )


def kernel_of(name: str) -> Kernel:
    return lower(derive(CASES[name].program))


def test_text():
    program = replace(CASES["learned sink"].program, score=SCORES["alibi"].expr)
    program = replace(program, name="sinks", mask=MASKS["window"].expr)
    assert print_kernel(lower(derive(program))) == (
        """\
kernel sinks: 1 pass over the keys; a block holds rows of several heads
  param sinks: int
  tensor sink[h]: float
  tensor slope[h]: float
  tile keys     : max(q_lo - sinks + 1, 0) <= k < q_hi + 1, if sinks > 0
  tile possible = q_hi >= k_lo and q_lo - k_hi < sinks and sinks > 0
  tile certain  = q_lo >= k_hi and q_hi - k_lo < sinks
  pass 0
    row r0_0 = slope[h * slope.stride0]
    row r0_1 = q
    row r0_2 = sink[h * sink.stride0]
    score  = dot - r0_0 * to_float(r0_1 - k)
    mask   = k <= r0_1 and sinks > r0_1 - k
    sweep 0
      m      = max(score)
    sweep 1
      lane v0_0 = where(abs(max(m, r0_2)) < inf, max(m, r0_2), 0.0)
      let t0 = exp(max(old(m), r0_2) - max(m, r0_2))
      let t1 = where(abs(t0) < inf, t0, 0.0)
      let t2 = exp(score - v0_0)
      l      = sum(t2), rescaled by t1
      acc0   = sum(t2 * value), rescaled by t1
  finish
    let t0 = sink[h * sink.stride0]
    c_acc0 = 1.0 / (l + exp(t0 - max(m, t0)))
    value  = c_acc0 * acc0, or 0.0 in a row without a key
    output = value
"""
    )


R, FLOAT = Local("r0_0", "int", "bhq"), Local("x", "float", "bhq")


def in_pass(**parts: object) -> Callable[[Kernel], Kernel]:
    return lambda kernel: replace(kernel, passes=(replace(kernel.passes[0], **parts),))


def body(expr: Expr, sweep: int = 0, **more: object) -> Callable[[Kernel], Kernel]:
    """Replace the body of the statistic of one sweep."""

    def change(kernel: Kernel) -> Kernel:
        sweeps = list(kernel.passes[0].sweeps)
        (stat,) = sweeps[sweep].stats
        sweeps[sweep] = replace(sweeps[sweep], stats=(replace(stat, body=expr, **more),))
        return in_pass(sweeps=tuple(sweeps))(kernel)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (in_pass(rows=()), "reads r0_0, which no enclosing loop has computed"),
        (in_pass(rows=(Let(R, Index("k")),)), "reads the index k, which does not exist"),
        (in_pass(rows=(Let(R, Const(1.0)),)), "1.0 is of kind float, not int"),
        (in_pass(keys=(Let(FLOAT, Call("to_float", (Index("q"),))),)), "reads the index q"),
        (in_pass(keys=(Let(FLOAT, Call("to_float", (R,))),)), "no enclosing loop has computed"),
        (in_pass(score=Stat("m")), "reads the statistic m, which does not exist yet"),
        (in_pass(score=(DOT + call("to_float", F(R))).expr), "once a row will do"),
        (in_pass(score=(DOT + call("to_float", K)).expr), "once a key will do"),
        (in_pass(score=Param("nobody", "float")), "parameter nobody of kind float"),
        (in_pass(score=Load("sink", (Index("k"),), "float")), "a tensor sink of kind float"),
        (body(OldStat("m")), "reads the old value of m, which has not moved"),
        (body(Stat("total"), sweep=1), "reads the statistic total, which does not exist yet"),
        (body(Dot()), "reads dot"),
        (body(Const(1.0), sweep=1, factor=Const(1)), "1 is of kind int, not float"),
        (body(Const(1.0), sweep=1, name="m"), "defines a statistic twice"),
        (lambda k: replace(k, possible=(Q < 3).expr), "reads the index q"),
        (
            lambda k: replace(k, ranges=ranges(CORNERS["k"][0])),
            "computes a range of keys from k_lo",
        ),
        (lambda k: replace(k, ranges=ranges(Const(True))), "true is of kind bool, not int"),
        (lambda k: replace(k, uniform=(Let(FLOAT, Stat("m")),)), "reads the statistic m"),
        (lambda k: replace(k, finish=replace(k.finish, output=R)), "kind int, not float"),
        (lambda k: replace(k, finish=replace(k.finish, kept=())), "keeps are , the plan's lse"),
        (lambda k: replace(k, passes=()), "has 0 passes, the plan 1"),
    ],
)
def test_a_broken_kernel_is_refused(change, problem):
    kernel = kernel_of("softmax")
    verify_kernel(kernel)
    with pytest.raises(VerifyError, match=problem):
        verify_kernel(change(kernel))


def test_a_key_value_of_one_head_needs_blocks_of_one_head():
    kernel = kernel_of("gated by a tensor")
    assert not kernel.packs_heads
    with pytest.raises(VerifyError, match="reads the index h"):
        verify_kernel(replace(kernel, packs_heads=True))


def test_loads_are_flat():
    kernel = kernel_of("gated by a tensor")
    (gate,) = kernel.passes[0].keys
    with pytest.raises(VerifyError, match="whose index is not one offset"):
        verify_kernel(
            in_pass(keys=(Let(gate.local, Load("gate", (Index("g"), Index("k")), "float")),))(
                kernel
            )
        )
