"""Prints a Kernel or a Backward as one file of Triton kernels: fills the templates of ``templates/triton``.

A file holds for every element type, head_dim and tile size: those are compile-time constants of its kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

from attncompiler.backends.gpu_templates import filled
from attncompiler.backends.triton_backward import BackwardPrinter
from attncompiler.backends.triton_backward_parts import folded
from attncompiler.backends.triton_forward import ForwardPrinter
from attncompiler.backends.triton_plan import PlanPrinter
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.tile_plan import TilePlan


def render(
    kernel: Kernel, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The Triton source of a kernel; ``dtypes`` are those of the captured tensors that it reads."""
    context = ForwardPrinter(kernel, dtypes).context(title, definition, regenerate)
    return filled("triton", "forward.py.j2", context)


def render_backward(
    backward: Backward, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The Triton source of a backward; ``dtypes`` are those of the captured tensors that it reads."""
    context = BackwardPrinter(folded(backward), dtypes).context(title, definition, regenerate)
    return filled("triton", "backward.py.j2", context)


def render_plan(plan: TilePlan, dtypes: Sequence[str], title: str, definition: str) -> str:
    """The Triton source of the planning kernel of a mask; ``dtypes`` are those of the tensors that it reads."""
    return filled("triton", "plan.py.j2", PlanPrinter(plan, dtypes).context(title, definition))
