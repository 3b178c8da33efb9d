"""Turns a user's mistake into an exception that shows the line, a caret and what to write instead.

One class a mistake: ``message`` says what is wrong, ``advice`` what to do, both as format strings filled from the
keyword arguments. A bug of the compiler itself is an InternalError.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attncompiler.ir.location import Location


class AttnCompilerError(Exception):
    """Base of every error a user can cause.

    ``location`` is the user's source span (None when no line is to blame), ``remedy`` the advice, ``summary`` the
    message alone.
    """

    message: ClassVar[str] = "{detail}"
    advice: ClassVar[str] = ""

    def __init__(self, *, location: Location | None = None, **values: object) -> None:
        self.location = location
        self.summary = self.message.format(**values)
        self.remedy = self.advice.format(**values)
        super().__init__(self.summary)

    def __str__(self) -> str:
        lines = [self.summary]
        if self.location is not None:
            lines.append(f"  --> {self.location}")
            lines.extend(f"    {line}" for line in self.location.excerpt().splitlines())
        if self.remedy:
            lines.append(f"  help: {self.remedy}")
        return "\n".join(lines)


def nearest(name: str, known: Iterable[str], *, all_if_none: bool = True) -> str:
    """``"a, b or c"``: the known names closest to a misspelled one; all of them, or "", when none is close."""
    names = sorted(known)
    found = get_close_matches(name, names, n=3, cutoff=0.6) or names[: 40 if all_if_none else 0]
    return (
        found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}" if found else ""
    )


def listed(name: str, known: Iterable[str]) -> str:
    """``"a, b, c"``: all known names, those closest to a misspelled one first."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    return ", ".join([*close, *(n for n in names if n not in close)])


class InternalError(Exception):
    """A bug of the compiler: ``stage`` names the pass, ``text`` shows the IR around the fault."""

    def __init__(self, stage: str, detail: str, text: str = "") -> None:
        self.stage, self.detail, self.text = stage, detail, text
        report = f"internal error in {stage}: {detail}\nThis is a bug in attncompiler."
        super().__init__(f"{report}\n{text}" if text else report)


# Using a symbol where Python needs a number.


class SymbolicConditionError(AttnCompilerError):
    """``if``, ``and``, ``or``, ``not``, a comparison chain, ``min()`` or ``max()`` on a symbolic value."""

    message = "{construct} needs a value that is known while the variant is traced"
    advice = "{fix}"


class SymbolicNumberError(AttnCompilerError):
    """``float()``, ``int()``, ``range()``, ``math.f()`` or ``.item()`` on a symbolic value."""

    message = "a symbolic value has no number yet ({construct})"
    advice = "{fix}"


class UnknownFunctionError(AttnCompilerError):
    """A torch function or tensor method that scalar formulas do not have."""

    message = "unknown function {name}"
    advice = "{fix}"


class ArgumentsError(AttnCompilerError):
    """A known function called with arguments it does not take here."""

    message = "{name}: {detail}"
    advice = "{fix}"


class OperandError(AttnCompilerError):
    """A value of a type that cannot take part in a formula."""

    message = "cannot use {what} in a formula"
    advice = "{fix}"


class KindError(AttnCompilerError):
    """An operator applied to the wrong kind, such as ``&`` on a float."""

    message = "{op} takes {wanted}, got {found}"
    advice = "{fix}"


# Tensors and their indices.


class FloatIndexError(AttnCompilerError):
    """A tensor indexed by a floating-point expression."""

    message = "index {position} of tensor {tensor!r} is a {kind}, it must be an int"
    advice = "use // instead of /, or convert: to_int(...) or .long()"


class WrongAxisError(AttnCompilerError):
    """A tensor declared over one axis indexed by the bare index of another."""

    message = "tensor {tensor!r} is indexed by at.{found} where its axis is {axis!r}"
    advice = "index it by at.{axis}, or declare it as Tensor({declared})"


class TooManyIndicesError(AttnCompilerError):
    """More indices than the tensor has axes."""

    message = "tensor {tensor!r} has {axes} axes, got {found} indices"
    advice = "it is declared as Tensor({declared})"


class UnindexedTensorError(AttnCompilerError):
    """A tensor, or a part of one, used as a number while axes are still open."""

    message = "tensor {tensor!r} is used as a number, but its axes {open} have no index"
    advice = "index every axis: self.{tensor}[{example}]"


class IndexFormError(AttnCompilerError):
    """A slice, None, or an index that is no integer expression."""

    message = "tensor {tensor!r} cannot be indexed by {what}"
    advice = "index each axis by an integer expression of at.b at.h at.q at.k, or by an int"


class OutOfRangeError(AttnCompilerError, IndexError):
    """A tensor read outside its extent at an allowed pair."""

    message = (
        "index {value} of tensor {tensor!r} is out of range on axis {axis!r} of extent {extent}"
    )
    advice = (
        "clamp the index, or forbid the pair in mask(): reads at forbidden pairs are harmless; "
        "what check and bench draw is bounded by Tensor(..., low=, high=, extent=) or written by the method sample()"
    )


# Slots.


class UnknownIndexError(AttnCompilerError):
    """An attribute that ``at`` or ``row`` does not have in this slot."""

    message = "{owner}.{name} does not exist in the slot {slot}"
    advice = "{fix}"


class MisspelledSlotError(AttnCompilerError):
    """A method that looks like a slot under another name."""

    message = "{variant}.{name} is no slot of a variant"
    advice = "did you mean {slot}? (start the name of a helper method with an underscore)"


class SignatureError(AttnCompilerError):
    """A slot method with the wrong parameters."""

    message = "{variant}.{slot} takes ({found}), expected ({wanted})"
    advice = "write it as def {slot}({wanted})"


class ReturnKindError(AttnCompilerError):
    """A slot that returns nothing or a value of the wrong kind."""

    message = "{variant}.{slot} must return a {wanted}, it returns {found}"
    advice = "{fix}"


class SlotFailedError(AttnCompilerError):
    """A slot whose own code raised; the exception is the ``__cause__``."""

    message = "{variant}.{slot} stops with {kind}: {detail}"
    advice = "{fix}"


class KeepError(AttnCompilerError):
    """``row.keep`` of something that is no statistic of the row, or under a bad name."""

    message = "row.keep({name!r}): {detail}"
    advice = "{fix}"


# Parameters and declarations.


class DeclarationError(AttnCompilerError):
    """A class attribute that cannot be a parameter or a tensor."""

    message = "{variant}.{name}: {detail}"
    advice = "{fix}"


class LayoutDeclarationError(AttnCompilerError):
    """A layout that no grid can have."""

    message = "{name} of a layout cannot be {value!r}"
    advice = "{fix}"


class UnknownParameterError(AttnCompilerError):
    """A keyword that names no parameter of the variant."""

    message = "{variant} has no parameter {name!r}"
    advice = "its parameters are {known}"


class ParameterTypeError(AttnCompilerError):
    """A parameter given a value of another type than its annotation."""

    message = "parameter {name!r} of {variant} is {kind}, got {value!r}"
    advice = "{fix}"


class TooSmallError(AttnCompilerError):
    """A window, a block or another size of a mask that no mask can have."""

    message = "the {what} is {value}"
    advice = "give a number of at least {least}"

    def __init__(self, *, parameter: str = "", **values: Any) -> None:
        self.parameter = parameter
        super().__init__(**values)


class MissingParameterError(AttnCompilerError):
    """A parameter without a default that was not given."""

    message = "{variant} needs a value for {names}"
    advice = "give it when you build the variant, {variant}({example}), or a default in the class"


class PrepareError(AttnCompilerError):
    """``prepare`` returned something else than q, k, v and a dict of declared tensors."""

    message = "{variant}.prepare: {detail}"
    advice = "{fix}"


# Calls of a compiled operator.


class ShapeError(AttnCompilerError):
    """Shapes of a call that do not fit each other or a tensor's declaration."""

    message = "{name}: {detail}"
    advice = "{fix}"


class MissingTensorError(AttnCompilerError):
    """A declared tensor that the call does not give."""

    message = "{variant} needs the tensor {name!r} of axes ({axes})"
    advice = "pass it by name: {name}=..."


class UnknownArgumentError(AttnCompilerError):
    """A keyword of a call that names neither a tensor nor a parameter."""

    message = "{variant} takes no argument {name!r}"
    advice = "it takes {known}"
