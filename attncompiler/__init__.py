"""Write an attention variant as mathematics; get fast, readable, verified kernels.

``attncompiler.compile(variant)`` gives an operator, ``attncompiler.dsl`` what a variant is written with;
``attncompiler.flex_attention`` takes the place of torch's function of that name, ``attncompiler.BlockSparse`` says at a
call which blocks of keys are visited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncompiler.block_sparse import BlockSparse as BlockSparse
    from attncompiler.compiler import compile as compile
    from attncompiler.flex import flex_attention as flex_attention

__all__ = ["BlockSparse", "compile", "flex_attention"]


def __getattr__(name: str) -> Any:
    # The compiler imports torch, which takes seconds: only when it is used.
    if name == "compile":
        from attncompiler.compiler import compile

        return compile
    if name == "flex_attention":
        from attncompiler.flex import flex_attention

        return flex_attention
    if name == "BlockSparse":
        from attncompiler.block_sparse import BlockSparse

        return BlockSparse
    raise AttributeError(f"module 'attncompiler' has no attribute {name!r}")
