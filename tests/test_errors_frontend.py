"""Mistakes in a variant: each section of frontend_mistakes.txt must give an error at its marked line, with its text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import attncompiler
from attncompiler.caller import condition_at
from attncompiler.dsl import Variant
from attncompiler.errors import (
    AttnCompilerError,
    InternalError,
    PrepareError,
    ShapeError,
    SlotFailedError,
    nearest,
)
from attncompiler.frontend import trace
from attncompiler.ir.location import Location
from attncompiler.preparation import run_prepare

HEADER = "import math\nimport torch\nfrom attncompiler.dsl import *\n"
MISTAKES = dict(
    section.split("\n", 1)
    for section in Path(__file__).with_name("frontend_mistakes.txt").read_text().split("--- ")[1:]
)


def run(file: Path, source: str) -> None:
    """Define the variant of a file and trace it."""
    file.write_text(source)
    scope: dict[str, type[Variant]] = {}
    exec(compile(source, str(file), "exec"), scope)
    trace(scope["V"]())


@pytest.mark.parametrize("title", MISTAKES)
def test_mistake_names_its_line(title: str, tmp_path: Path) -> None:
    file, source = tmp_path / "variant.py", HEADER + MISTAKES[title]
    ((line, text),) = (
        (n, found[1].strip())
        for n, code in enumerate(source.splitlines(), 1)
        if (found := re.search("# error: (.*)", code))
    )
    with pytest.raises(AttnCompilerError) as caught:
        run(file, source)
    error = caught.value
    # The excerpt holds the expectation itself, so only the words around it count.
    assert text in f"{error.summary}\n{error.remedy}"
    assert error.location is not None
    assert (error.location.filename, error.location.line) == (str(file), line)
    assert "^" in str(error)
    assert error.remedy


def test_the_caret_stands_below_the_expression(tmp_path: Path) -> None:
    body = "    def score(self, s, at):\n        x = 'äöü'; return s + at.q // 0\n"
    with pytest.raises(AttnCompilerError) as caught:
        run(tmp_path / "variant.py", f"{HEADER}class V(Variant):\n{body}")
    shown = str(caught.value).splitlines()
    line = next(i for i, text in enumerate(shown) if "äöü" in text)
    start = shown[line + 1].index("^")
    assert shown[line][start : start + shown[line + 1].count("^")] == "at.q // 0"


def test_the_users_own_exception_is_the_cause() -> None:
    class V(Variant):
        def score(self, s, at):
            raise KeyError("mine")

    with pytest.raises(SlotFailedError, match=r"V\.score stops with KeyError: 'mine'") as caught:
        trace(V())
    assert isinstance(caught.value.__cause__, KeyError)
    assert 'raise KeyError("mine")' in str(caught.value)


def test_prepare_shows_its_line_too() -> None:
    class V(Variant):
        def prepare(self, q, k, v):
            return q @ v, k, v

    q, k, v = torch.zeros(3, 1, 1, 4, 8)
    with pytest.raises(SlotFailedError, match=r"V\.prepare stops with RuntimeError") as caught:
        run_prepare(V(), q, k, v, {})
    assert "return q @ v, k, v" in str(caught.value)


def test_a_mistake_in_a_call_shows_the_call() -> None:
    class V(Variant):
        pass

    op = attncompiler.compile(V)
    q, k, v = torch.zeros(3, 1, 1, 4, 8)
    with pytest.raises(ShapeError) as caught:
        op(q, k[..., :4], v)
    assert "op(q, k[..., :4], v)\n" in str(caught.value)
    assert "^" in str(caught.value)


def test_prepare_returns_one_dtype() -> None:
    class V(Variant):
        def prepare(self, q, k, v):
            return q * torch.ones(()).double().exp()[None], k, v

    q, k, v = torch.zeros(3, 1, 1, 4, 8, dtype=torch.bfloat16)
    with pytest.raises(PrepareError, match="float64, bfloat16, bfloat16"):
        run_prepare(V(), q, k, v, {})


def test_construct_is_found_from_the_source(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("x = a and b\nif (p):\n    pass\n")
    assert condition_at(Location(str(file), 1, 4, 5)) == "and"
    assert condition_at(Location(str(file), 2, 4, 5)) == "if"
    assert condition_at(Location(str(file), 3)) == ""
    assert condition_at(Location(str(tmp_path / "none.py"), 1)) == ""


def test_nearest_names() -> None:
    assert nearest("tahn", ["tanh", "exp"]) == "tanh"
    assert nearest("zzz", ["b", "a", "c"]) == "a, b or c"
    assert nearest("x", []) == ""


def test_internal_error_shows_the_stage_and_the_text() -> None:
    assert "derive" in str(InternalError("derive", "no factor", "exp(s)"))
    assert str(InternalError("derive", "no factor", "exp(s)")).endswith("exp(s)")
