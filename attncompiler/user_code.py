"""Turns exceptions of the user's own code, and mistakes in a call, into errors that show the user's line."""

from __future__ import annotations

from types import TracebackType

from attncompiler.caller import raised_at
from attncompiler.errors import AttnCompilerError, InternalError, SlotFailedError, nearest
from attncompiler.ir.location import Location
from attncompiler.runtime.call_location import shows_call as shows_call
from attncompiler.variant import Variant


class UserCode:
    """``with UserCode(variant, slot, method):`` around a call of the user's ``method``.

    Whatever it raises becomes a SlotFailedError with the exception as its cause; mistakes that already have an error of
    their own, and bugs of the compiler, pass.
    """

    def __init__(self, variant: Variant, slot: str, definition: Location | None) -> None:
        self.variant, self.slot, self.definition = variant, slot, definition

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or isinstance(
            error, (AttnCompilerError, InternalError)
        ):
            return
        file = "" if self.definition is None else self.definition.filename
        raise SlotFailedError(
            location=raised_at(file, trace) or self.definition,
            variant=type(self.variant).__name__,
            slot=self.slot,
            kind=type(error).__name__,
            detail=str(error) or "no message",
            fix=_fix(error, self.variant, self.slot),
        ) from error


def _fix(error: Exception, variant: Variant, slot: str) -> str:
    if slot in ("prepare", "sample"):
        return f"{slot} is ordinary torch; the traceback of its cause is above"
    if isinstance(error, NameError) and error.name is not None:
        from attncompiler import dsl

        if error.name in dsl.__all__:
            return f"add: from attncompiler.dsl import {error.name}"
        close = nearest(error.name, dsl.__all__, all_if_none=False)
        return f"did you mean {close}?" if close else f"import or define {error.name} in the file"
    if isinstance(error, AttributeError) and isinstance(error.obj, type(variant)):
        name = error.name
        close = nearest(str(name), (*variant._parameters, *variant._tensors), all_if_none=False)
        return (
            f"did you mean self.{close}?"
            if close
            else f'declare it in the class: {name} = Tensor("h") for a tensor, {name}: float = 1.0 for a number'
        )
    if "ufunc" in str(error):
        return (
            "NumPy does not know symbols: use the functions of attncompiler.dsl, or those of torch"
        )
    return (
        "a slot runs once, on symbols: use operators and the functions of attncompiler.dsl or torch"
    )
