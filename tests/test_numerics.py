"""The numerics report: right kernels stay near plain PyTorch, wrong ones do not, any variant is measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import attncompiler.check
from attncompiler.dsl import Boxes, Tensor, Variant, causal, exp
from attncompiler.numerics import LENGTHS, lengths_for, numerics
from tests.test_cli import run

SOURCE = """
from attncompiler.dsl import Variant, causal

class Small(Variant):
    def mask(self, at):
        return causal(at)
"""


class Causal(Variant):
    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)


class Prepared(Causal):
    """Normalized queries and a gate of each key: prepare, and a captured tensor that has a gradient."""

    scale = 4.0
    gate = Tensor("h", "k")

    def prepare(self, q, k, v):  # type: ignore[no-untyped-def]
        return q / q.norm(dim=-1, keepdim=True), k, v

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s + self.gate[at.h, at.k]


class OnGrid(Variant):
    layout = Boxes((6, 8), tile=(2, 4))

    def mask(self, at):  # type: ignore[no-untyped-def]
        return at.q // 8 >= at.k // 8


class Unnormalized(Variant):
    """Weights that leave float16 when scores are large: 11 is enough."""

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        return exp(s)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every compiled operator gives results that are 1e-3 too large."""
    compile_right = attncompiler.check.compile_variant

    class Shifted:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.right = compile_right(*arguments, **options)
            self.compilation = self.right.compilation

        def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
            out = self.right(*arguments, **options)
            assert isinstance(out, torch.Tensor)
            return out + 1e-3

    monkeypatch.setattr(attncompiler.check, "compile_variant", Shifted)


def test_softmax_deviates_like_plain_pytorch() -> None:
    report = numerics(
        Causal(), lengths=(63, 256), magnitudes=(1.0, 16.0), dtypes=("float32", "bfloat16")
    )
    assert report.passed
    assert len(report.cells) == 2 * 2 * 2 * 4
    assert {cell.comparison.what for cell in report.cells} == {"out", "grad.q", "grad.k", "grad.v"}
    assert all(cell.ratio <= 2 or not cell.beyond_floor for cell in report.cells)
    out = {c.magnitude: c for c in report.cells if c.comparison.what == "out" and c.queries == 256}
    assert out[16.0].comparison.plain_error > 4 * out[1.0].comparison.plain_error, "scores grew"


@pytest.mark.usefixtures("shifted")
def test_a_wrong_kernel_is_found_and_located() -> None:
    report = numerics(
        Causal(), lengths=(64,), magnitudes=(1.0,), dtypes=("float32",), gradients=False
    )
    worst = report.worst
    assert not report.passed
    assert worst is not None
    assert worst.ratio > 2
    assert (worst.comparison.what, worst.queries, worst.magnitude) == ("out", 64, 1.0)


@pytest.mark.usefixtures("shifted")
def test_the_command_fails_with_the_kernel(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--lengths", 64, "--magnitudes", 1, "--dtype", "float32", "--no-gradients")
    assert run("check", file, "--numerics", *options) == 1
    assert "FAILED: 1 of 1 comparisons" in capsys.readouterr().out


def test_long_calls_are_compared_by_rows() -> None:
    report = numerics(Causal(), lengths=(4096,), magnitudes=(4.0,), dtypes=("float32",))
    assert report.passed
    out, query_gradient = report.cells[:2]
    assert out.judged == 2 * 3 * 64 * 64
    assert query_gradient.judged == 2 * 4096 * 64


def test_prepare_and_captured_tensors() -> None:
    report = numerics(Prepared(), lengths=(96, 8192), magnitudes=(4.0,), dtypes=("float32",))
    assert report.passed
    assert {cell.comparison.what for cell in report.cells} >= {"grad.q", "grad.gate"}
    assert {cell.queries for cell in report.cells} == {96}
    assert re.match("8192 is left out: .*prepare sees all queries", *report.left_out)


def test_lengths_fill_the_grid_of_a_layout() -> None:
    assert lengths_for(OnGrid(), None) == [(48, 48)]
    assert lengths_for(Causal(), None) == [(n, n) for n in LENGTHS]
    report = numerics(OnGrid(), lengths=(5, 60), magnitudes=(1.0,), dtypes=("float32",), seed=2)
    assert report.passed
    assert [c.queries for c in report.cells if c.comparison.what == "out"] == [48, 60]


def test_overflow_of_plain_arithmetic_is_no_error_of_its() -> None:
    report = numerics(
        Unnormalized(), lengths=(128,), magnitudes=(3.0,), dtypes=("float16",), gradients=False
    )
    (cell,) = report.cells
    assert cell.passed
    assert cell.overflows
    assert 0 < cell.judged < 2 * 128 * 64


def test_the_json_reads_back(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "numbers.json"
    options = ("--lengths", "32,64", "--magnitudes", "1,4", "--dtype", "float32", "--json", path)
    assert run("check", file, "--numerics", *options) == 0
    shown = capsys.readouterr().out
    assert "passed: 16 comparisons; worst ratio" in shown
    read = json.loads(path.read_text())
    assert read["variant"] == "Small"
    assert read["passed"] is True
    assert len(read["cells"]) == 16
    assert {(c["queries"], c["magnitude"]) for c in read["cells"]} == {
        (n, m) for n in (32, 64) for m in (1, 4)
    }
    cell = read["cells"][0]
    assert f"{cell['ratio']:.2f}  {cell['error']:.1e}/{cell['plain_error']:.1e}" in shown


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--numerics", "--cases", 3), "--numerics draws no cases"),
        (("--numerics", "--case", "M=3"), "so --case has no meaning"),
        (("--numerics", "--dtype", "float64"), "cannot judge float64"),
        (("--numerics", "--lengths", "128,x"), "no list of positive whole numbers"),
        (("--numerics", "--magnitudes", "-1"), "no list of positive numbers"),
        (("--lengths", "128"), "--lengths belongs to --numerics"),
        (("--json", "numbers.json"), "--json belongs to --numerics"),
    ],
)
def test_options_that_do_not_go_together(
    file: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], reason: str
) -> None:
    assert run("check", file, *options) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_the_block_of_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "numerics.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    path = tmp_path / "block.py"
    path.write_text(block)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ")
