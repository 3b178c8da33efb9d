"""Tuning of Triton kernels, in the interpreter with times that are made up: winners are kept and put first."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attncompiler.cli import main
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, causal
from attncompiler.runtime import triton_engine
from attncompiler.runtime.tilings import Tilings
from attncompiler.runtime.triton_launch import Tiling
from attncompiler.timing import Timing
from attncompiler.tuning import records, tuner
from tests.triton_calls import engine_of

USUAL, OTHER = Tiling(64, 64, 4, 2), Tiling(32, 16, 4, 2)


class Past(Variant):
    def mask(self, at: Any) -> Any:
        return causal(at)


class Cubed(Past):
    def score(self, s: Any, at: Any) -> Any:
        return s * s * s


@pytest.fixture(autouse=True)
def compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Two tilings for each kernel, of which the second wins; counts comparisons."""
    monkeypatch.setattr(records, "cache_folder", lambda: tmp_path / "cache")

    def two(*arguments: Any, **more: Any) -> Tilings:
        return Tilings([USUAL, OTHER])

    monkeypatch.setattr(triton_engine, "tilings", two)
    counts: list[int] = []

    def interleaved(calls: Mapping[str, Callable[[], Any]], **more: Any) -> dict[str, Timing]:
        counts.append(len(calls))
        return {n: Timing((1.0 if n == "0" else 0.5,) * 3) for n in calls}

    monkeypatch.setattr(tuner, "interleaved", interleaved)
    return counts


def tokens(length: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, length, 16, requires_grad=True) for _ in range(3))
    return q, k, v


def gradients(op: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    out = op(q, k, v)
    return (out, *torch.autograd.grad(out.sin().sum(), (q, k, v)))


def current(op: Any) -> list[Tiling]:
    """What the kernels of an operator are launched with, after one call with gradients."""
    engine = engine_of(op)
    (site,) = engine._sites.values()
    (pair,) = engine._gradient_sites.values()
    return [site.tilings.current, *(t.current for _, t in pair)]


def test_a_winner_is_found_again(compared: list[int]) -> None:
    inputs = tokens()
    usual, tuned = compile_variant(Past, "triton"), compile_variant(Past, "triton", tune=True)
    wanted = gradients(usual, *inputs)
    found = gradients(tuned, *inputs)
    assert len(compared) == 6, "a look and a last comparison, for three kernels"
    assert current(usual) == [USUAL] * 3
    assert current(tuned) == [OTHER] * 3
    later = compile_variant(Past, "triton")
    again = gradients(later, *inputs)
    assert len(compared) == 6
    assert current(later) == [OTHER] * 3
    for a, b, c in zip(wanted, found, again, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(b, c, rtol=0, atol=0)


def test_others_are_left_alone() -> None:
    gradients(compile_variant(Past, "triton", tune=True), *tokens())
    far, other, loose = (
        compile_variant(Past, "triton"),
        compile_variant(Cubed, "triton"),
        compile_variant(Past, "triton", deterministic=False),
    )
    gradients(far, *tokens(100))
    gradients(other, *tokens())
    gradients(loose, *tokens())
    for op in (far, other, loose):
        assert current(op) == [USUAL] * 3


def test_tune_says_what_it_found() -> None:
    op = compile_variant(Past, "triton")
    inputs = tokens()
    gradients(op, *inputs)
    first = op.tune(*inputs, backward=True)
    assert [(t.kind, t.winner, t.ratio, t.known) for t in first] == [
        (kind, OTHER, 0.5, False) for kind in ("forward", "rows", "columns")
    ]
    gradients(op, *inputs)
    assert current(op) == [OTHER] * 3
    assert [t.known for t in op.tune(*inputs, backward=True)] == [True] * 3


def test_a_choice_that_is_gone_is_not_taken() -> None:
    options = Tilings([USUAL, OTHER])
    options.prefer(Tiling(16, 16, 4, 1))
    assert options.current == USUAL
    options.prefer(OTHER)
    assert options.current == OTHER
    assert options.refuse(OTHER)
    options.prefer(OTHER)
    assert options.current == USUAL


PAST = """
from attncompiler.dsl import Variant, causal


class Past(Variant):
    def mask(self, at):
        return causal(at)
"""


def test_a_package_carries_what_tuning_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tokens()
    compile_variant(Past, "triton").tune(*inputs, backward=True)
    (tmp_path / "past.py").write_text(PAST)
    folder = tmp_path / "tuned_past_gpu"
    options = ["--backend", "triton", "--head-dim", "16", "--backward"]
    with pytest.raises(SystemExit) as ended:
        main(["build", str(tmp_path / "past.py"), "--out", str(folder), *options])
    assert ended.value.code == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = [t for kernel in manifest["kernels"] for t in kernel.get("tuned", ())]
    assert [t["kind"] for t in listed] == ["forward", "rows", "columns"]
    for one in listed:
        assert one["tiling"] == asdict(OTHER)
        assert one["device"] == "an interpreter"
        assert (one["calls"]["queries"], one["tf32"]) == (32, False)

    monkeypatch.syspath_prepend(str(tmp_path))
    package = importlib.import_module("tuned_past_gpu")
    support = f"{package.__name__}.support.runtime"
    theirs = importlib.import_module(f"{support}.triton_engine")
    mine, tilings = (
        importlib.import_module(f"{support}.{n}") for n in ("triton_launch", "tilings")
    )
    usual, other = (mine.Tiling(**asdict(t)) for t in (USUAL, OTHER))
    monkeypatch.setattr(theirs, "tilings", lambda *_, **__: tilings.Tilings([usual, other]))
    engine = package._operator._run._engines._engines["cuda"]

    def chosen(length: int) -> list[Any]:
        engine.forget()
        q, k, v = tokens(length)
        torch.autograd.grad(package.attention(q, k, v).sum(), (q, k, v))
        (site,) = engine._sites.values()
        (pair,) = engine._gradient_sites.values()
        return [site.tilings.current, *(t.current for _, t in pair)]

    assert chosen(40) == [other] * 3
    assert chosen(100) == [usual] * 3
    for name in [n for n in sys.modules if n.startswith("tuned_past_gpu")]:
        sys.modules.pop(name)
