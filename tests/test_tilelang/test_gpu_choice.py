"""The choice between Triton and TileLang by measurement, both on the CPU with times that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor as Declared
from attncompiler.dsl import Variant, causal
from attncompiler.runtime import engines
from attncompiler.runtime.gpu_choice import GpuChoice
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.timing import Timing
from attncompiler.tuning import records, tuner

# Seconds of each backend's calls, for comparisons of two.
Times = dict[str, float]


class Past(Variant):
    bias = Declared("h")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.h] * at.k

    def mask(self, at: Any) -> Any:
        return causal(at)


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Times:
    """Where CUDA tensors would have their choice, CPU tensors have it here; TileLang takes half of Triton's time."""
    monkeypatch.setitem(engines.CHOICE, "cpu", "gpu")
    monkeypatch.setattr(records, "cache_folder", lambda: tmp_path / "cache")
    found = {"triton": 1.0, "tilelang": 0.5, "comparisons": 0.0}

    def interleaved(calls: Mapping[str, Callable[[], Any]], **more: Any) -> dict[str, Timing]:
        found["comparisons"] += len(calls) == 2
        seconds = [found["triton"], found["tilelang"]]
        return {n: Timing((seconds[int(n)],) * 3) for n in calls}

    monkeypatch.setattr(tuner, "interleaved", interleaved)
    return found


def tokens(length: int = 40, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16).to(dtype).requires_grad_() for _ in range(3))
    return {"q": q, "k": k, "v": v, "bias": torch.randn(2, requires_grad=True)}


def gradients(op: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    out = op(**inputs)
    return (out, *torch.autograd.grad(out.sin().sum(), tuple(inputs.values())))


def choice_of(op: Any) -> GpuChoice:
    assert isinstance(op, Operator)
    found = op._engines["cpu"]
    assert isinstance(found, GpuChoice)
    return found


def chosen(op: Any) -> tuple[str, str]:
    """Which backend ran the one forward and the one backward that an operator met."""
    choice = choice_of(op)
    (forward,) = choice._forwards.values()
    (backward,) = choice._backwards.values()
    return forward, backward


def test_the_usual_backend_runs_what_was_not_measured(times: Times) -> None:
    op = compile_variant(Past)
    gradients(op, tokens())
    assert chosen(op) == ("triton", "triton")
    assert times["comparisons"] == 0


def test_the_faster_backend_is_kept(times: Times) -> None:
    inputs = tokens()
    usual, tuned = compile_variant(Past), compile_variant(Past, tune=True)
    wanted = gradients(usual, inputs)
    found = gradients(tuned, inputs)
    assert chosen(tuned) == ("tilelang", "tilelang")
    compared = times["comparisons"]
    assert compared == 4, "a look and a last comparison, for the forward and the backward"
    later = compile_variant(Past)
    again = gradients(later, inputs)
    assert chosen(later) == ("tilelang", "tilelang")
    assert times["comparisons"] == compared
    for a, b, c in zip(wanted, found, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b, c, rtol=0, atol=0)
    words = op_explains(later)
    assert "Forward of q [1, 2, 40, 16] and k [1, 2, 40, 16], torch.float32: tilelang." in words
    assert "Gradients of q [1, 2, 40, 16] and k [1, 2, 40, 16], torch.float32: tilelang." in words


def op_explains(op: Any) -> str:
    return str(op.explain())


def test_each_direction_has_its_own_winner(times: Times) -> None:
    """A forward of one backend keeps what the backward of the other reads."""
    inputs = tokens()
    op = compile_variant(Past, tune=True)
    wanted = gradients(compile_variant(Past), inputs)
    with torch.no_grad():
        op(**inputs)
    times["tilelang"] = 2.0
    found = gradients(op, inputs)
    assert chosen(op) == ("tilelang", "triton")
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_backend_that_refuses_loses(times: Times) -> None:
    """TileLang's kernels for the CPU know float32 only."""
    op = compile_variant(Past, tune=True)
    gradients(op, tokens(dtype=torch.bfloat16))
    assert chosen(op) == ("triton", "triton")


def test_a_backend_with_another_result_loses(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = TritonEngine.forward, TritonEngine.backward

    def wrong_forward(self: TritonEngine, *call: Any) -> Any:
        out, *rest = forward(self, *call)
        if self.backend == "tilelang":
            out[0, 1, 7, 3] += 0.01
        return out, *rest

    def wrong_backward(self: TritonEngine, *call: Any, **named: Any) -> Any:
        found = backward(self, *call, **named)
        if self.backend == "tilelang":
            found.tensors["bias"][1] = torch.nan
        return found

    monkeypatch.setattr(TritonEngine, "forward", wrong_forward)
    monkeypatch.setattr(TritonEngine, "backward", wrong_backward)
    op = compile_variant(Past, tune=True)
    with pytest.warns(UserWarning, match="differs between backends") as told:
        gradients(op, tokens())
    assert chosen(op) == ("triton", "triton")
    forwards, backwards = (str(w.message) for w in told)
    assert (
        "forward of Past differs between backends: tilelang and triton are 0.01 apart" in forwards
    )
    assert (
        "backward of Past differs between backends: tilelang and triton are inf apart" in backwards
    )


def test_what_a_record_is_for(times: Times) -> None:
    """Other lengths, other formulas and another order of sums have records of their own."""
    gradients(compile_variant(Past, tune=True), tokens())

    class Other(Past):
        def normalize(self, s: Any, at: Any) -> Any:
            return s

    far, other = compile_variant(Past), compile_variant(Other)
    loose = compile_variant(Past, deterministic=False)
    gradients(far, tokens(100))
    gradients(other, tokens())
    gradients(loose, tokens())
    assert [chosen(op) for op in (far, other, loose)] == [("triton", "triton")] * 3


def test_tune_tells_of_the_comparison(times: Times) -> None:
    op = compile_variant(Past)
    inputs = tokens()
    gradients(op, inputs)
    q, k, v, bias = inputs.values()
    heard = []
    first = op.tune(
        q, k, v, bias=bias, backward=True, progress=lambda kind, step: heard.append(kind)
    )
    compared = [t for t in first if t.kind.endswith("backend")]
    assert [(t.kind, t.winner, t.ratio, t.known) for t in compared] == [
        ("forward backend", "tilelang", 0.5, False),
        ("backward backend", "tilelang", 0.5, False),
    ]
    assert {"forward backend", "backward backend"} <= set(heard)
    gradients(op, inputs)
    assert chosen(op) == ("tilelang", "tilelang")
    second = op.tune(q, k, v, bias=bias, backward=True)
    assert [t.known for t in second if t.kind.endswith("backend")] == [True, True]


def test_without_tilelang_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name == "tilelang" else found(name, *more)
    )
    op = compile_variant(Past)
    assert isinstance(op, Operator)
    assert not isinstance(op._engines["cpu"], GpuChoice)
