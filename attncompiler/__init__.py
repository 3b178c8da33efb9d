"""Write an attention variant as mathematics; get fast, readable, verified kernels.

``attncompiler.compile(variant)`` gives an operator, ``attncompiler.dsl`` what a variant is written with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncompiler.compiler import compile as compile

__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    # The compiler imports torch, which takes seconds: only when it is used.
    if name == "compile":
        from attncompiler.compiler import compile

        return compile
    raise AttributeError(f"module 'attncompiler' has no attribute {name!r}")
