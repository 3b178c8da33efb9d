"""Tuning of C++ kernels from end to end: a winner is kept, found again by other operators, and carried by packages."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor as Elements

from attncompiler import cli
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_schedule import space
from attncompiler.block_sparse import BlockSparse
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, causal
from attncompiler.errors import ArgumentsError, AttnCompilerError
from attncompiler.runtime.operator import Operator
from attncompiler.timing import Timing
from attncompiler.tuning import cpp_tuner, records, tuner
from attncompiler.variant_file import load_variant

FILE = '''
from attncompiler.dsl import Variant, causal


class Past(Variant):
    """Softmax attention to the past."""

    def mask(self, at):
        return causal(at)
'''


class Past(Variant):
    def mask(self, at: Any) -> Any:
        return causal(at)


def others(kind: Any, machine: Any, spec: Any) -> list[Schedule]:
    """The default and one more; for a backward others."""
    usual = space(kind, machine, spec)[0]
    return [usual, replace(usual, tile=64 if kind == "forward" else 32, tasks=2)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A search space of two, of which the second wins; counts comparisons."""
    # Records of its own; what is built stays in the cache of all tests.
    monkeypatch.setattr(records, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", "-O1")
    monkeypatch.setattr(cpp_tuner, "space", others)
    compared: list[int] = []

    def interleaved(calls: Mapping[str, Callable[[], Any]], **more: Any) -> dict[str, Timing]:
        compared.append(len(calls))
        return {n: Timing((1.0 if n == "0" else 0.5,) * 3) for n in calls}

    monkeypatch.setattr(tuner, "interleaved", interleaved)
    return compared


def tokens(length: int = 96, **more: Any) -> tuple[Elements, Elements, Elements]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16, **more) for _ in range(3))
    return q, k, v


def cuts(operator: Operator) -> dict[str, Schedule | None]:
    """How the kernels are cut that an operator has loaded."""
    kernels = operator._kernels
    found: dict[str, Schedule | None] = {}
    for _, cut in kernels._libraries:
        found["forward"] = cut
    for _, _, cut in kernels._backward_libraries:
        found["backward"] = cut
    return found


def gradients(operator: Operator, q: Elements, k: Elements, v: Elements) -> tuple[Elements, ...]:
    out = operator(q, k, v)
    return (out, *torch.autograd.grad(out.sin().sum(), (q, k, v)))


def test_a_winner_is_found_again(small: list[int]) -> None:
    inputs = tokens(requires_grad=True)
    usual = gradients(compile_variant(Past), *inputs)
    tuned = gradients(compile_variant(Past, tune=True), *inputs)
    searched = len(small)
    later = compile_variant(Past)
    again = gradients(later, *inputs)
    assert searched == 4, "a look and a last comparison, for two kernels"
    assert len(small) == searched
    found = cuts(later)
    assert found["forward"] is not None
    assert found["forward"].tile == 64
    assert found["backward"] is not None
    assert found["backward"].tile == 32
    for a, b, c in zip(usual, tuned, again, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(b, c, rtol=0, atol=0)


def test_it_is_for_calls_of_its_class_only() -> None:
    compile_variant(Past, tune=True)(*tokens())
    near, far, other = (compile_variant(Past) for _ in range(3))
    near(*tokens(110))
    far(*tokens(300))
    other(*(x.double() for x in tokens()))
    assert cuts(near)["forward"] is not None
    assert cuts(far)["forward"] is None
    assert cuts(other)["forward"] is None


def test_another_formula_has_records_of_its_own() -> None:
    class Twice(Past):
        def score(self, s: Any, at: Any) -> Any:
            return 2.0 * s

    compile_variant(Past, tune=True)(*tokens())
    other = compile_variant(Twice)
    other(*tokens())
    assert cuts(other)["forward"] is None


def test_what_is_known_is_not_measured_again(small: list[int]) -> None:
    op = compile_variant(Past)
    (first,) = op.tune(*tokens())
    count = len(small)
    (second,) = op.tune(*tokens())
    assert (first.known, second.known) == (False, True)
    assert len(small) == count
    assert second.winner == first.winner
    (third,) = op.tune(*tokens(), again=True)
    assert not third.known
    assert len(small) > count


def test_an_interrupted_search_goes_on(small: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(kind: str, step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_variant(Past).tune(*tokens(), progress=stop)
    op = compile_variant(Past)
    op(*tokens())
    assert cuts(op)["forward"] is None, "nothing has won yet"
    count = len(small)
    (found,) = compile_variant(Past).tune(*tokens())
    assert len(small) == count + 1, "the last comparison alone"
    assert found.winner.tile == 64


def test_an_operator_that_has_run_takes_what_it_tunes() -> None:
    op = compile_variant(Past)
    op(*tokens())
    (forward, backward) = op.tune(*tokens(), backward=True)
    assert (forward.kind, backward.kind) == ("forward", "backward")
    op._kernels._libraries.clear()
    op(*tokens())
    assert cuts(op)["forward"] == forward.winner


def test_mistakes_come_before_any_search(small: list[int], tmp_path: Path) -> None:
    q, k, v = tokens()
    with pytest.raises(AttnCompilerError, match="head_dim is 8"):
        compile_variant(Past, tune=True)(q, k[..., :8], v)
    op = compile_variant(Past)
    with pytest.raises(ArgumentsError, match="seconds"):
        op.tune(q, k, v, seconds=0.0)
    blocks = BlockSparse(
        torch.zeros(1, 1, 1, 1, dtype=torch.int32), torch.ones(1, 1, 1).int(), (128, 128)
    )
    with pytest.raises(ArgumentsError, match="tune=True"):
        op.tune(q, k, v, sparsity=blocks)
    for wrong in (0, -1.0, "yes", float("inf")):
        with pytest.raises(ArgumentsError, match="tune is"):
            compile_variant(Past, tune=wrong)  # type: ignore[call-overload]
    assert not small
    assert not (tmp_path / "cache" / "tuned").exists()


def test_nothing_to_tune(small: list[int]) -> None:
    assert compile_variant(Past, tune=True)(*tokens(0)).shape == (1, 2, 0, 16)
    assert not small


def test_copies_tune_too() -> None:
    import pickle

    op = pickle.loads(pickle.dumps(compile_variant(load(FILE), tune=7.0)))
    assert op._engines.tune == 7.0


def load(text: str) -> Variant:
    path = Path(str(Path.cwd())) / "build" / "past_variant.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return load_variant(path)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "past.py"
    path.write_text(FILE)
    words = ["tune", str(path), "--shape", "1,2,96,16", "--dtype", "float32", "--backward"]
    for expected in ("schedules measured", "known"):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert [x.split()[0] for x in lines[::2]] == ["forward", "backward"]
        assert all(expected in x and "2.00x the default" in x for x in lines[::2])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shape", "1,2,3"], "four positive numbers"),
        (["--shape", "1,2,0,64"], "four positive numbers"),
        (["--shape", "1,2,64,513"], "at most 512"),
        (["--shape", "1,3,64,64", "--kv-heads", "2"], "no multiple"),
        (["--seconds", "0"], "seconds"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes_of_the_command(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "past.py"
    path.write_text(FILE)
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", str(path), *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_package_carries_its_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "past.py"
    path.write_text(FILE)
    inputs = tokens(requires_grad=True)
    operator = compile_variant(load_variant(path))
    operator.tune(*inputs, backward=True)
    folder = tmp_path / "tuned_past"
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(path), "--out", str(folder), "--head-dim", "16", "--backward"])
    assert ended.value.code == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {k["kind"]: k["tuned"] for k in manifest["kernels"]}
    assert {kind: [t["schedule"]["tile"] for t in tuned] for kind, tuned in listed.items()} == {
        "forward": [64],
        "backward": [32],
    }
    for tuned in listed.values():
        assert (folder / tuned[0]["file"]).is_file()
    monkeypatch.syspath_prepend(str(tmp_path))
    package = importlib.import_module("tuned_past")
    operator_of = next(x for x in vars(package).values() if type(x).__name__ == "PackagedOperator")
    engine = operator_of._run._engines._engines["cpu"]
    for q, k, v in (inputs, tokens(300, requires_grad=True)):
        found = package.attention(q, k, v)
        torch.testing.assert_close(found, operator(q, k, v), rtol=0, atol=0)
        mine = torch.autograd.grad(found.sin().sum(), (q, k, v))
        torch.testing.assert_close(mine, gradients(operator, q, k, v)[1:], rtol=0, atol=0)
    kernels = engine.kernels
    assert set(kernels._forwards) == {
        "kernels/forward_float32.cpp",
        "kernels/forward_float32_1.cpp",
    }
    assert len(kernels._backwards) == 2
    sys.modules.pop("tuned_past")


def test_explain_says_what_a_call_costs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "past.py"
    path.write_text(FILE)
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", str(path), "--cost", "1,2,512,32", "--dtype", "bfloat16"])
    assert ended.value.code == 0
    chapter = capsys.readouterr().out.partition("What it costs\n")[2]
    # Two products of 32 features, of two flops, for two heads and a little over half of the pairs.
    found = re.search(r"([0-9.]+) GFLOP of products", chapter)
    assert found is not None
    assert 0.5 < float(found[1]) * 1e9 / (2 * 512 * 512 * 128) < 0.65
    assert "56 % of the pairs" in chapter
    assert "bound by" in chapter
    assert "% of the roof" in chapter
