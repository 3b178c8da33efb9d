"""Finds what the kernels of a package are specialised to: element types and head dimensions, after ``prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from attncompiler.cases import Case
from attncompiler.preparation import run_prepare
from attncompiler.runtime.call_checks import CAPTURED_TYPES, INPUT_TYPES
from attncompiler.runtime.tensor_types import usual_types
from attncompiler.yardstick import draw_inputs

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a kernel is built for: an element type, head_dim and value_dim, and the types of captured tensors."""

    dims: tuple[str, int, int]
    tensors: dict[str, str]


def specializations(
    compilation: Compilation, dtypes: Sequence[str], head_dim: int, value_dim: int
) -> list[Wanted]:
    """One for each element type of q, k and v; ``head_dim`` and ``value_dim`` are those of a call."""
    return [_specialization(compilation, dtype, head_dim, value_dim) for dtype in dtypes]


def _specialization(compilation: Compilation, dtype: str, head_dim: int, value_dim: int) -> Wanted:
    trace = compilation.trace
    read = trace.program.tensors
    # Calls in float64 have tensors in float64: a gradient is no more exact than the type of its tensor.
    wide = [t.name for t in read if t.kind == "float"] if dtype == "float64" else []
    usual = usual_types(read, trace.tensors, dict.fromkeys(wide, torch.float64))
    named = {t.name: x for t, x in zip(read, usual, strict=True)}
    if not hasattr(trace.variant, "prepare"):
        return Wanted((dtype, head_dim, value_dim), named)
    # What prepare makes of a small call tells.
    case = Case(B=1, H=2, G=1, M=4, N=8, D=head_dim, Dv=value_dim, dtype=dtype)
    if trace.variant.layout is not None:
        size = trace.variant.layout.size
        case = replace(case, M=size, N=size)
    q, k, v, tensors = draw_inputs(case, trace.variant.sample, prepares=True)
    with torch.no_grad():
        q, _, v, tensors = run_prepare(trace.variant, q, k, v, tensors, params=trace.params)
    known = {dtype: name for types in CAPTURED_TYPES.values() for dtype, name in types.items()}
    named |= {n: known[t.dtype] for n, t in tensors.items() if t.dtype in known}
    return Wanted((INPUT_TYPES[q.dtype], q.shape[3], v.shape[3]), named)
