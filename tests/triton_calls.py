"""Triton operators in tests: chosen tiles, and calls of which the output and every gradient are judged."""

from __future__ import annotations

from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Variant
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling
from tests.gradients import describe

DTYPES = ("float32", "bfloat16", "float16")


def checker(variant: Variant | type[Variant]) -> Checker:
    """Compares the Triton kernels of a variant with its formula."""
    return Checker(variant() if isinstance(variant, type) else variant, backend="triton")


def engine_of(op: Operator, device: str = "cpu") -> TritonEngine:
    """What runs the kernels of an operator."""
    engine = op._engines[device]
    assert isinstance(engine, TritonEngine)
    return engine


def use_tiles(
    op: Operator,
    block_m: int,
    block_n: int,
    device: str = "cpu",
    *,
    persistent: int = 0,
    chunk: int = 0,
    raster: int = 1,
) -> None:
    """Every later call has tiles of so many queries and keys, and backwards multiply ``chunk`` features at a time."""
    engine = engine_of(op, device)
    engine.tiling = Tiling(
        block_m, block_n, 4, 2, persistent=persistent, chunk=chunk, raster=raster
    )
    engine._sites.clear()


def failures(mine: Checker, cases: list[Case], *, gradients: bool = True) -> str:
    """What is wrong with the output, the statistics and the gradients of calls; empty when nothing is."""
    found = []
    for case in cases:
        outcome = mine.run(case)
        if not outcome.passed:
            found.append(f"{outcome.case}\n{outcome.describe()}")
        if gradients and outcome.fault is None:
            wrong = describe(mine.gradients(case))
            found += [f"{outcome.case}\n{wrong}"] if wrong else []
    return "\n".join(found)
