"""Generated Triton files: they parse, define every name they read, show every slot, and keep the user's names apart."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, exp, tanh, where
from attncompiler.runtime.triton_sources import TritonSources
from attncompiler.variant_file import load_variant
from tests.example_table import files
from tests.test_backends.test_slots import (
    CHANGES,
    Base,
    OtherDefaults,
    OtherLiteral,
    OtherScale,
    ScaleParameter,
)
from tests.triton_calls import checker, engine_of, failures, use_tiles


def sources_of(variant: Variant | type[Variant]) -> TritonSources:
    return engine_of(attncompiler.compile(variant, backend="triton")).sources


def dtypes(tensors: Any) -> list[str]:
    """What tests give for tensors of each kind."""
    return [{"float": "float32", "int": "int64", "bool": "bool"}[t.kind] for t in tensors]


def texts(variant: Variant | type[Variant]) -> Iterator[tuple[str, str]]:
    """Every file of a variant."""
    sources = sources_of(variant)
    kernels = sources.kernels
    yield "forward", sources.forward_source(dtypes(kernels.kernel.tensors))
    yield "plan", sources.plan_source(dtypes(kernels.compilation.tile_plan.tensors))
    for wanted in dict.fromkeys((frozenset[str](), kernels.learns)):
        yield "backward", sources.backward_source(wanted, dtypes(kernels.loops(wanted).tensors))


def undefined(text: str) -> list[str]:
    """Names that a function reads and nobody defines: no argument, local, function of the file or builtin."""
    tree = ast.parse(text)
    known = set(dir(builtins))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            known.add(node.name)
        elif isinstance(node, ast.Import):
            known |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.Assign):
            known |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    found = []
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        mine = {a.arg for a in function.args.args} | {n.id for n in names if not _reads(n)}
        wrong = {n.id for n in names if _reads(n)} - mine - known
        found += [f"{function.name}: {name}" for name in sorted(wrong)]
    return found


def _reads(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def called_wrongly(text: str) -> list[str]:
    """Calls of the file's own functions with another number of arguments than they take."""
    tree = ast.parse(text)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = functions.get(node.func.id)
            if function is not None and len(node.args) != len(function.args.args):
                found.append(function.name)
    return found


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if i % 5 else [])
        for i, path in enumerate(files())
    ],
)
def test_every_name_is_defined(path: Path) -> None:
    for kind, text in texts(load_variant(path)):
        assert not undefined(text), kind
        assert not called_wrongly(text), kind
        assert not [line for line in text.splitlines() if line != line.rstrip()], kind


def test_an_undefined_name_is_noticed() -> None:
    """The check above checks something."""
    ((_, text), *_) = texts(Base)
    assert not undefined(text)
    broken = text.replace("    i_g = i_h // (H // G)\n", "    i_g = i_h // (H // Groups)\n")
    assert undefined(broken) == ["block_of_queries: Groups"]


def code(variant: Variant | type[Variant]) -> str:
    """The forward file without the comments at its top, which quote the user's source."""
    _, text = next(texts(variant))
    return text[text.index('"""') :]


def test_changing_a_slot_changes_the_code() -> None:
    found = {c.__name__: code(c) for c in (Base, *CHANGES)}
    kept_names = {"OtherKeptName"}  # a kernel numbers what it keeps; names are the launcher's
    different = {name: text for name, text in found.items() if name not in kept_names}
    assert len(set(different.values())) == len(different)


@pytest.mark.parametrize(
    "same", [Base(cap=30.0, window=1), OtherLiteral, OtherScale, ScaleParameter, OtherDefaults]
)
def test_run_time_values_are_not_in_the_code(same: Any) -> None:
    assert code(same) == code(Base)


def test_a_file_quotes_the_definition() -> None:
    for kind, text in texts(Base):
        head = text[: text.index('"""')]
        assert "#    class Base(Variant):" in head, kind
        assert "#            return e / (total + 3.5)" in head, kind


def test_one_file_serves_all_types_and_sizes() -> None:
    op = attncompiler.compile(Base, backend="triton")
    use_tiles(op, 16, 16)
    for dtype, dim in ((torch.float32, 16), (torch.bfloat16, 31), (torch.float16, 5)):
        q, k, v = (torch.randn(1, 1, 3, dim).to(dtype) for _ in range(3))
        op(q, k, v, slope=torch.ones(1), gate=torch.ones(1, dim))
    assert len(engine_of(op).sources._modules) == 1


class Colliding(Variant):
    """Parameters, tensors and statistics with the names of what kernels have."""

    tile: float = 0.5
    tiles: int = 9
    first: int = 2
    M: bool = True
    exists: float = 1.5
    columns = Input("h")
    row = Input("k")
    last = Input("h", "q", "k")
    unit = Input("q", "d")
    out_pointer = Input("g")

    def score(self, s: Any, at: Any) -> Any:
        s = s * self.tile + self.columns[at.h] * self.row[at.k] + self.last[at.h, at.q, at.k]
        return tanh(s) * self.exists + self.out_pointer[at.g] * self.M

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.tiles) | (at.k < self.first)

    def normalize(self, s: Any, row: Any) -> Any:
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("q", m)
        row.keep("stop", total)
        row.keep("acc0", row.min(s))
        return e / total

    def output(self, o: Any, at: Any) -> Any:
        return o * self.unit[at.q, at.d] + at.stats.q


def test_names_of_the_user_and_of_the_kernel_stay_apart() -> None:
    mine = checker(Colliding)
    use_tiles(mine.operator, 16, 16)
    assert not failures(mine, [Case(B=1, H=2, G=1, M=20, N=35, D=16, Dv=16, seed=1)])


class Aligned(Variant):
    """The last query sees the last key; lengths are compared in 64 bits."""

    def mask(self, at):
        return at.k <= at.q + at.N - at.M


class Chosen(Variant):
    """Two conditions of a row decide between two numbers."""

    def normalize(self, s, row):
        low, high = row.min(s), row.max(s)
        return exp(s - high) * where((low > 0.0) & (high < 9.0), 2.0, 1.0)


def test_no_loop_looks_for_the_nearest_narrow_number() -> None:
    walked = 0
    for kind, text in texts(Aligned):
        if kind == "plan":
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and re.fullmatch(r"walk_\d+", node.name):
                walked += 1
                assert "_near" in ast.unparse(node)
                assert "saturate" not in ast.unparse(node)
    assert walked


def test_a_choice_by_two_conditions_of_a_row_is_two_choices() -> None:
    text = dict(texts(Chosen))["forward"]
    assert re.search(r"tl\.where\([^&]*, tl\.where\([^&]*, 2\.0, 1\.0\), 1\.0\)", text)
