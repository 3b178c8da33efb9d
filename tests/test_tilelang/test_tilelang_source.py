"""What TileLang's files say: every example prints, every slot arrives, and TileLang's tracer accepts the kernels."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, exp
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.tilelang_launch import TilelangModule
from attncompiler.runtime.tilelang_sources import TilelangSources
from attncompiler.variant_file import load_variant
from tests.triton_calls import engine_of

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
CONSTANTS: dict[str, Any] = {
    "dtype": "bfloat16", "HEAD_DIM": 80, "VALUE_DIM": 64, "HEAD_WIDTH": 128, "VALUE_WIDTH": 64,
    "BLOCK_M": 128, "BLOCK_N": 64, "STAGES": 2, "THREADS": 256, "POSITIVE": True, "LONG": False, "WIDEN": False,
    "SERIAL": False, "REGISTERS": 240, "HELD": False, "PHASE": 2, "FUSED": False, "ALONE": False, "PARTED": False,
}  # fmt: skip
_TYPES = {"float": "float32", "int": "int32", "bool": "bool"}


def sources_of(op: Operator) -> TilelangSources:
    sources = engine_of(op).sources
    assert isinstance(sources, TilelangSources)
    return sources


def modules(op: Operator, dtype: str = "bfloat16") -> dict[str, tuple[Any, TilelangModule]]:
    """Factories of all kernels of an operator with gradients for every tensor, and the modules they are in."""
    sources = sources_of(op)
    kernels = sources.kernels
    types = {t.name: _TYPES[t.kind] for t in kernels.compilation.plan.program.tensors}
    dims = dtype, 80, 64
    forward = sources.forward(dims, types)
    _, backward = sources.backward(dims, types, kernels.learns)
    found = {"forward": forward, "rows": backward, "columns": backward}
    return {n: (getattr(m, n).origin.make(n), m) for n, m in found.items()}  # type: ignore[misc]


def traced(make: Any, constants: Mapping[str, Any]) -> Any:
    return make(**{name: constants[name] for name in signature(make).parameters})


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[] if n % 8 == 0 else [pytest.mark.slow])
        for n, p in enumerate(EXAMPLES)
    ],
)
def test_every_example_is_accepted(path: Path) -> None:
    op = compile_variant(load_variant(path), backend="tilelang")
    assert isinstance(op, Operator)
    needs_lists = sources_of(op).signature.listed
    for name, (make, module) in modules(op).items():
        given = tuple(getattr(module, name)._order)
        for serial in (False, True):
            more = {"SERIAL": serial, "LISTED": needs_lists, "GIVEN": given}
            if serial:
                more |= {"dtype": "float32", "STAGES": 0}
            made = traced(make, CONSTANTS | more)
            assert len(made.params) == len(given)


class _EverySlot(Variant):
    scale = 0.3
    gain: float = 1.5
    span: int = 9
    bias = Tensor("h", "k")
    gate = Tensor("b", "h", "q", "d")

    def score(self, s: Any, at: Any) -> Any:
        return s * self.gain + self.bias[at.h, at.k]

    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) & (at.q - at.k < self.span)

    def normalize(self, s: Any, row: Any) -> Any:
        m = row.max(s)
        e = exp(s - m)
        return e / row.sum(e)

    def output(self, o: Any, at: Any) -> Any:
        return o * self.gate[at.b, at.h, at.q, at.d]


def test_every_slot_reaches_the_kernels() -> None:
    op = compile_variant(_EverySlot, backend="tilelang")
    assert isinstance(op, Operator)
    sources = sources_of(op)
    forward = sources.forward_source(["float32", "float32"])
    backward = sources.backward_source(sources.kernels.learns, ["float32", "float32"])
    for text in (forward, backward):
        ast.parse(text)
        assert "def score(self, s: Any, at: Any) -> Any" in text
        for word in ("p_gain", "p_span", "t_bias[", "t_gate["):
            assert word in text, word
    assert "exponential(" in forward
    assert {"t_bias_stored", "t_gate_stored"} <= set(
        backward.replace("(", " ").replace("[", " ").split()
    )


def test_files_stand_alone() -> None:
    op = compile_variant(_EverySlot, backend="tilelang")
    assert isinstance(op, Operator)
    sources = sources_of(op)
    for text in (
        sources.forward_source(["float32", "float32"]),
        sources.backward_source(frozenset(), ["float32", "float32"]),
    ):
        imports = [
            n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))
        ]
        assert [ast.unparse(n) for n in imports] == ["import tilelang.language as T"]


def test_the_same_file_holds_for_all_head_dims() -> None:
    op = compile_variant(_EverySlot, backend="tilelang")
    assert isinstance(op, Operator)
    sources = sources_of(op)
    types = {"bias": "float32", "gate": "float32"}
    assert sources.forward(("bfloat16", 64, 64), types) is sources.forward(
        ("float16", 80, 16), types
    )


def test_other_code_is_left_as_it_was() -> None:
    """TileLang replaces a function of the standard library when it is imported."""
    compile_variant(_EverySlot, backend="tilelang")
    sources_of(compile_variant(_EverySlot, backend="tilelang"))  # type: ignore[arg-type]
    assert "tvm" not in inspect.getfile.__module__
