"""Prints a Kernel or a Backward as one self-contained C++17 file: fills the templates of ``templates/cpp``."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from importlib import resources

import jinja2

from attncompiler.backends.cpp_backward_context import BackwardContext
from attncompiler.backends.cpp_backward_printer import BackwardPrinter
from attncompiler.backends.cpp_context import Context, Specialization
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_printer import CppPrinter
from attncompiler.backends.cpp_tile_plan import TilePlanContext, TilePlanPrinter
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.tile_plan import TilePlan

__all__ = ["Specialization", "render", "render_backward", "render_tile_plan"]


def render(
    kernel: Kernel,
    spec: Specialization,
    title: str,
    definition: str,
    regenerate: str,
    tuned: Schedule | None = None,
) -> str:
    """The C++ source of a kernel for one specialization, cut as usual or, on one kind of processor, as ``tuned``."""
    context = CppPrinter(kernel, spec, tuned).context(title, definition, regenerate)
    return _filled("forward.cpp.j2", context)


def render_backward(
    backward: Backward,
    spec: Specialization,
    title: str,
    definition: str,
    regenerate: str,
    tuned: Schedule | None = None,
) -> str:
    """The C++ source of a backward for one specialization, whose ``tensors`` are those the backward reads."""
    context = BackwardPrinter(backward, spec, tuned).context(title, definition, regenerate)
    return _filled("backward.cpp.j2", context)


def render_tile_plan(plan: TilePlan, spec: Specialization, title: str, definition: str) -> str:
    """The C++ source of the planning kernel of a mask; ``spec.tensors`` are the types of what the plan reads."""
    return _filled("tile_plan.cpp.j2", TilePlanPrinter(plan, spec).context(title, definition))


def _filled(name: str, context: Context | BackwardContext | TilePlanContext) -> str:
    template = _environment().get_template(name)
    fields = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    draft = template.render(**fields, math="")
    return template.render(**fields, math=_math_for(draft, context.real))


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attncompiler.templates", "cpp"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@cache
def _sections(real: str) -> tuple[tuple[str, str], ...]:
    """The (name, text) sections of the mathematics headers for one lane type, in order."""
    found = []
    for header in ("math_scalar.h", f"math_{real}.h", "math_common.h"):
        text = (resources.files("attncompiler.templates.cpp") / header).read_text()
        parts = re.split(r"^// \[(\w+)\]\n", text, flags=re.MULTILINE)
        found += [
            (name, body.strip("\n")) for name, body in zip(parts[1::2], parts[2::2], strict=True)
        ]
    return tuple(found)


def _math_for(text: str, real: str) -> str:
    """The sections that a source text calls, directly or through other sections."""
    sections = _sections(real)
    names = {name for name, _ in sections}
    needed: set[str] = set()
    queue = [re.sub(r"//.*", "", text)]  # the user's definition, quoted on top, calls nothing
    while queue:
        words = set(re.findall(r"\b[a-z]\w*\b(?=[(<])", queue.pop())) & names - needed
        needed |= words
        queue += [body for name, body in sections if name in words]
    return "\n\n".join(body for name, body in sections if name in needed) + "\n"
