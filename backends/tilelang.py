"""Prints a Kernel or a Backward as a file of TileLang: fills the templates of ``templates/tilelang``.

A file holds for every element type, head_dim and tile size: those are arguments of the function that makes the kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import jinja2

from attncompiler.backends.tilelang_backward import TilelangBackward, TilelangBackwardContext
from attncompiler.backends.tilelang_forward import TilelangContext, TilelangForward
from attncompiler.backends.triton_backward_parts import folded
from attncompiler.backends.triton_math import math_for
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel


def render(
    kernel: Kernel, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The TileLang source of a kernel; ``dtypes`` are those of the captured tensors that it reads."""
    context = TilelangForward(kernel, dtypes).loops(title, definition, regenerate)
    return _filled("forward.py.j2", context)


def render_backward(
    backward: Backward, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The TileLang source of a backward; ``dtypes`` are those of the captured tensors that it reads."""
    context = TilelangBackward(folded(backward), dtypes).loops(title, definition, regenerate)
    return _filled("backward.py.j2", context)


def _filled(name: str, context: TilelangContext | TilelangBackwardContext) -> str:
    template = _environment().get_template(name)
    fields = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    text = template.render(**fields, math=math_for(template.render(**fields, math=""), "tilelang"))
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attncompiler.templates", "tilelang"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
