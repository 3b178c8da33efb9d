"""Turns the sizes a mask is given into limits: a number below one is an error, a parameter is checked at each call."""

from __future__ import annotations

from attncompiler.caller import user_location
from attncompiler.errors import TooSmallError
from attncompiler.functions import Value
from attncompiler.ir.expr import Param
from attncompiler.symbols import Symbol


def at_least(least: int, mask: str, **sizes: Value) -> None:
    """Raise TooSmallError for a size below ``least``; what is computed, or read from a tensor, may be any number."""
    for name, size in sizes.items():
        if isinstance(size, Symbol):
            if isinstance(size.expr, Param):
                size.recorder.limit(size.expr.name, least, f"{name} of {mask}")
        elif (isinstance(size, int) or getattr(size, "ndim", 1) == 0) and int(size) < least:
            raise TooSmallError(
                location=user_location(), what=f"{name} of {mask}", value=int(size), least=least
            )
