"""Every example variant through every pass: verified, unchanged by a second run, equal in value, readable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attncompiler.frontend import trace
from attncompiler.ir.dense import run_program
from attncompiler.ir.parser import parse_program
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.exp2 import use_exp2
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.passes.stabilize import stabilize
from attncompiler.ir.printer import print_program
from attncompiler.ir.program import Program
from attncompiler.ir.verify import verify_program
from attncompiler.variant_file import load_variant

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SIZES = {"b": 2, "h": 4, "g": 2, "q": 6, "k": 9, "d": 4}


def run(program: Program, params: dict[str, float | int | bool]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=random)

    tensors = {}
    for t in program.tensors:
        shape = [a if isinstance(a, int) else SIZES.get(a, 7) for a in t.axes]
        values = draw(*shape)
        floats, integers = values.abs() + 0.5, (values.abs() * 3).to(torch.int64)
        tensors[t.name] = (
            floats if t.kind == "float" else integers if t.kind == "int" else values > 0
        )
    b, h, g, rows, keys, d = SIZES.values()
    q, k, v = draw(b, h, rows, 8), draw(b, g, keys, 8), draw(b, g, keys, d)
    out, kept = run_program(program, q, k, v, q_start=2, params=params, tensors=tensors)
    return [out, *kept.values()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_passes_keep_the_examples(path: Path) -> None:
    traced = trace(load_variant(path))
    program = traced.program
    expected = run(program, traced.params)
    for step in (canonicalize, merge_reductions, stabilize, use_exp2):
        program = step(program)
        verify_program(program)
        assert step(program) is program
        text = print_program(program)
        assert parse_program(text) == program
        for found, value in zip(run(program, traced.params), expected, strict=True):
            torch.testing.assert_close(found, value, equal_nan=True)
