"""Prints a Kernel or a Backward as one file of Triton kernels: fills the templates of ``templates/triton``.

A file holds for every element type, head_dim and tile size: those are compile-time constants of its kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import jinja2

from attncompiler.backends.triton_backward import BackwardPrinter
from attncompiler.backends.triton_backward_context import BackwardContext
from attncompiler.backends.triton_backward_parts import folded
from attncompiler.backends.triton_context import ForwardContext
from attncompiler.backends.triton_forward import ForwardPrinter
from attncompiler.backends.triton_math import math_for
from attncompiler.backends.triton_plan import PlanContext, PlanPrinter
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.tile_plan import TilePlan


def render(
    kernel: Kernel, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The Triton source of a kernel; ``dtypes`` are those of the captured tensors that it reads."""
    context = ForwardPrinter(kernel, dtypes).context(title, definition, regenerate)
    return _filled("forward.py.j2", context)


def render_backward(
    backward: Backward, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The Triton source of a backward; ``dtypes`` are those of the captured tensors that it reads."""
    context = BackwardPrinter(folded(backward), dtypes).context(title, definition, regenerate)
    return _filled("backward.py.j2", context)


def render_plan(plan: TilePlan, dtypes: Sequence[str], title: str, definition: str) -> str:
    """The Triton source of the planning kernel of a mask; ``dtypes`` are those of the tensors that it reads."""
    return _filled("plan.py.j2", PlanPrinter(plan, dtypes).context(title, definition))


def _filled(name: str, context: ForwardContext | BackwardContext | PlanContext) -> str:
    template = _environment().get_template(name)
    fields = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    text = template.render(**fields, math=math_for(template.render(**fields, math="")))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attncompiler.templates", "triton"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
