"""Prints a Kernel or a Backward as a file of TileLang: fills the templates of ``templates/tilelang``.

A file holds for every element type, head_dim and tile size: those are arguments of the function that makes the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from attncompiler.backends.gpu_templates import filled
from attncompiler.backends.tilelang_backward import TilelangBackward
from attncompiler.backends.tilelang_forward import TilelangForward
from attncompiler.backends.triton_backward_parts import folded
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel


def render(
    kernel: Kernel, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The TileLang source of a kernel; ``dtypes`` are those of the captured tensors that it reads."""
    context = TilelangForward(kernel, dtypes).loops(title, definition, regenerate)
    return filled("tilelang", "forward.py.j2", context)


def render_backward(
    backward: Backward, dtypes: Sequence[str], title: str, definition: str, regenerate: str
) -> str:
    """The TileLang source of a backward; ``dtypes`` are those of the captured tensors that it reads."""
    context = TilelangBackward(folded(backward), dtypes).loops(title, definition, regenerate)
    return filled("tilelang", "backward.py.j2", context)
