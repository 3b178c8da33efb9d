"""Turns mistakes in a call into errors that show the line that called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from attncompiler.caller import user_location
from attncompiler.errors import AttnCompilerError

P = ParamSpec("P")
R = TypeVar("R")


def shows_call(function: Callable[P, R]) -> Callable[P, R]:
    """Let mistakes that no line of the variant is to blame for show the line that called ``function``."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except AttnCompilerError as error:
            error.location = error.location or user_location()
            raise

    return call
