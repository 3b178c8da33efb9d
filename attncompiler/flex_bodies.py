"""Bodies written for FlexAttention: turns score_mod and mask_mod functions into expressions and what they captured.

Bodies are traced at every call, because Python may choose a formula by captured values. To keep that cheap, a trace
remembers the line of each expression only when asked to (``located``), for the first call of a program.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attncompiler import errors
from attncompiler.caller import raised_at
from attncompiler.captured_numbers import run_time, with_marked_numbers
from attncompiler.ir.expr import (
    Axis,
    Const,
    Dot,
    Expr,
    Index,
)
from attncompiler.ir.location import Location
from attncompiler.ir.program import TensorDecl
from attncompiler.recorder import Operand, Recorder, is_torch_tensor, kind_of_operand
from attncompiler.runtime.call_checks import CAPTURED_TYPES
from attncompiler.runtime.errors import DeviceError, DtypeError
from attncompiler.symbol_tensors import TensorSymbol
from attncompiler.symbols import Symbol

Body = Callable[..., Any]

NAME = "flex_attention"
_AXES: tuple[Axis, ...] = ("b", "h", "q", "k")
_SIGNATURES = {
    "score_mod": ("score", "b", "h", "q_idx", "kv_idx"),
    "mask_mod": ("b", "h", "q_idx", "kv_idx"),
}
_TORCH = os.path.dirname(torch.__file__) + os.sep


class BodyRecorder(Recorder):
    """A Recorder for bodies: a captured tensor of one element is a run-time value, whatever its value is."""

    def __init__(self, device: torch.device, *, located: bool) -> None:
        super().__init__(_call_body.__code__)
        self._device = device
        self._located = located
        self._scalars: dict[
            int, Tensor
        ] = {}  # keeps temporaries alive, so that their ids stay their own

    def _locate(self, expr: Expr) -> None:
        if self._located:
            super()._locate(expr)

    def capture(self, tensor: Any) -> TensorDecl:
        """See Recorder; a tensor that kernels cannot read is refused here, where its line is known."""
        if tensor.device != self._device:
            raise DeviceError(
                location=self.here(),
                name="a tensor that the body reads",
                device=tensor.device,
                why=f"the query is on {self._device}",
                fix=f'move it: tensor.to("{self._device}")',
            )
        if not any(tensor.dtype in known for known in CAPTURED_TYPES.values()):
            raise DtypeError(
                location=self.here(),
                name="a tensor that the body reads",
                detail=f"elements of type {tensor.dtype} are not supported",
                fix="convert it to a floating type, an int or bool before the call",
            )
        return super().capture(tensor)

    def _captured_scalar(self, tensor: Any) -> Operand:
        value = super()._captured_scalar(tensor)
        if isinstance(value, (Expr, bool)):
            return value
        self._scalars[id(tensor)] = tensor
        return run_time(value, (Tensor, id(tensor)))


@dataclass(slots=True)
class Bodies:
    """Traced bodies: the score, the conditions of the two masks, and the recorder with what they captured."""

    score: Expr
    listed: Expr
    mask: Expr
    recorder: BodyRecorder
    functions: tuple[Body, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the functions are called."""
        return tuple(map(_name_of, self.functions))

    def definition(self) -> str:
        """What the kernel computes, in the user's words: the source of the functions as far as Python finds it."""
        roles = " and ".join(self.names) or "no functions"
        return "\n\n".join(
            [f"flex_attention with {roles}", *filter(None, map(_source_of, self.functions))]
        )


def trace_bodies(
    score_mod: Body | None,
    listed_mod: Body | None,
    mask_mod: Body | None,
    device: torch.device,
    *,
    located: bool,
) -> Bodies:
    """Run the bodies once on symbols: those of a call, ``listed_mod`` that of its BlockMask.

    ``located`` remembers the line of each expression. Tensors must be on ``device``. Raises a subclass of
    AttnCompilerError that names the user's line.
    """
    rec = BodyRecorder(device, located=located)
    indices = tuple(Symbol(Index(axis), rec) for axis in _AXES)

    def condition(body: Body | None) -> Expr:
        if body is None:
            return Const(True)
        return rec.convert(_run(rec, "mask_mod", body, indices), "bool")

    listed, mask = condition(listed_mod), condition(mask_mod)
    score: Expr = Dot()
    if score_mod is not None:
        result = _run(rec, "score_mod", score_mod, (Symbol(Dot(), rec), *indices))
        score = rec.convert(result, "float")
    given = tuple(body for body in (score_mod, listed_mod, mask_mod) if body is not None)
    return Bodies(score, listed, mask, rec, given)


def _run(rec: Recorder, slot: str, body: Body, arguments: tuple[Symbol, ...]) -> Operand:
    if not callable(body):
        raise errors.ArgumentsError(
            name=NAME,
            detail=f"{slot} is a {type(body).__name__}",
            fix=f"pass a function of ({', '.join(_SIGNATURES[slot])})",
        )
    rec.slot, rec.slot_location = slot, _definition(body)
    try:
        return _call_body(rec, slot, with_marked_numbers(body), arguments)
    except (errors.AttnCompilerError, errors.InternalError):
        raise
    except Exception as error:
        raise _failed(slot, body, error) from error


def _call_body(rec: Recorder, slot: str, body: Body, arguments: tuple[Symbol, ...]) -> Operand:
    """The boundary between this package and the user's code: no frame outside it is to blame for a mistake."""
    return _result(rec, slot, body(*arguments))


def _result(rec: Recorder, slot: str, value: object) -> Operand:
    wanted = "bool" if slot == "mask_mod" else "float"
    location, found = rec.slot_location, type(value).__name__
    if isinstance(value, (Symbol, TensorSymbol, bool, int, float)) or is_torch_tensor(value):
        operand = rec.operand(value)
        found = kind_of_operand(operand)
        if (found == "bool") == (wanted == "bool"):
            return operand
        if isinstance(operand, Expr):
            location = rec.locations.get(operand) or location
    fix = {
        "mask_mod": "return a comparison, such as q_idx >= kv_idx",
        "score_mod": "return the new score; a condition goes into torch.where(condition, score, -float('inf')), "
        "or into a mask_mod",
    }[slot]
    raise errors.ReturnKindError(
        location=location,
        variant=NAME,
        slot=slot,
        wanted=wanted,
        found="nothing" if value is None else f"{'an' if found == 'int' else 'a'} {found}",
        fix="add a return statement" if value is None else fix,
    )


def _failed(slot: str, body: Body, error: Exception) -> errors.AttnCompilerError:
    """What a body's own exception becomes: an error that shows the line which raised it."""
    definition = _definition(body)
    if isinstance(error, TypeError) and not _takes(body, slot):
        return errors.SignatureError(
            location=definition,
            variant=NAME,
            slot=slot,
            found=str(inspect.signature(body))[1:-1],
            wanted=", ".join(_SIGNATURES[slot]),
        )
    raised = None if definition is None else raised_at(definition.filename, error.__traceback__)
    return errors.SlotFailedError(
        location=raised or definition,
        variant=NAME,
        slot=slot,
        kind=type(error).__name__,
        detail=str(error) or "no message",
        fix="a body is traced once, on symbols of one element: use operators, torch functions and tensors indexed "
        "by q_idx, kv_idx, b and h",
    )


def _takes(body: Body, slot: str) -> bool:
    try:
        inspect.signature(body).bind(*_SIGNATURES[slot])
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True


def _definition(body: Any) -> Location | None:
    """The ``def`` line of a body; None for one that is no Python function of the user."""
    while hasattr(body, "func"):
        body = body.func
    function = getattr(body, "__func__", body)
    if not hasattr(function, "__code__"):
        function = type(body).__dict__.get("__call__")
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename.startswith(_TORCH):
        return None
    return Location(code.co_filename, code.co_firstlineno)


def _name_of(body: Any) -> str:
    while hasattr(body, "func"):
        body = body.func
    return str(getattr(body, "__name__", type(body).__name__))


def _source_of(body: Any) -> str:
    while hasattr(body, "func"):
        body = body.func
    try:
        source = inspect.getsource(body if hasattr(body, "__code__") else type(body))
    except (OSError, TypeError):  # written in C, or at a prompt
        return ""
    return textwrap.dedent(source).rstrip()
