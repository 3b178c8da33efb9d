"""Checks the methods of a variant class: a misspelled slot or a wrong signature becomes an error at its definition."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from difflib import get_close_matches
from types import FunctionType

from attncompiler import errors
from attncompiler.caller import attribute_location
from attncompiler.ir.location import Location

SLOTS: dict[str, tuple[str, ...]] = {
    "score": ("self", "s", "at"),
    "mask": ("self", "at"),
    "normalize": ("self", "s", "row"),
    "output": ("self", "o", "at"),
    "prepare": ("self", "q", "k", "v"),
}
_OTHER_METHODS = frozenset({"sample", "parameters"})
# What the same idea is called elsewhere, too far from our names for a spelling check.
_ALIASES = {
    "score_mod": "score",
    "mask_mod": "mask",
    "normalise": "normalize",
    "normalizer": "normalize",
    "normalization": "normalize",
    "norm": "normalize",
    "softmax": "normalize",
    "weights": "normalize",
    "epilogue": "output",
    "post": "output",
    "out": "output",
    "prologue": "prepare",
    "preprocess": "prepare",
}


def check_slots(cls: type, tensors: Collection[str]) -> None:
    """Look at the methods the class body defines; ``tensors`` are the names the class declares.

    Raises MisspelledSlotError, SignatureError, or DeclarationError for a tensor only ``prepare`` knows.
    """
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if not isinstance(function, FunctionType) or name.startswith("_"):
            continue
        if name in SLOTS:
            _check_signature(cls, name)
            if name == "prepare":
                _check_prepare(cls, function, tensors)
        elif name not in _OTHER_METHODS:
            _check_spelling(cls, name)


def _check_spelling(cls: type, name: str) -> None:
    close = get_close_matches(name, SLOTS, n=1, cutoff=0.8)
    slot = _ALIASES.get(name) or (close[0] if close else None)
    if slot is not None:
        raise errors.MisspelledSlotError(
            location=attribute_location(cls, name), variant=cls.__name__, name=name, slot=slot
        )


def _check_signature(cls: type, slot: str) -> None:
    wanted = SLOTS[slot]
    bound = inspect.getattr_static(cls, slot)
    skipped = 1 if isinstance(bound, staticmethod) else 0
    function = bound.__func__ if isinstance(bound, (staticmethod, classmethod)) else bound
    signature = inspect.signature(function)
    try:
        signature.bind_partial(*wanted[skipped:])
        if slot != "prepare":
            signature.bind(*wanted[skipped:])
    except TypeError:
        raise errors.SignatureError(
            location=attribute_location(cls, slot),
            variant=cls.__name__,
            slot=slot,
            found=", ".join(map(str, signature.parameters)),
            wanted=", ".join(wanted) + (", **tensors" if slot == "prepare" else ""),
        ) from None


def _check_prepare(cls: type, function: FunctionType, tensors: Collection[str]) -> None:
    """Whatever ``prepare`` takes beyond q, k and v is a declared tensor, ``q_start``, or has a default."""
    for parameter in list(inspect.signature(function).parameters.values())[4:]:
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        known = parameter.name in tensors or parameter.name == "q_start"
        if named and not known and parameter.default is parameter.empty:
            raise errors.DeclarationError(
                location=attribute_location(cls, "prepare"),
                variant=cls.__name__,
                name="prepare",
                detail=f"it takes {parameter.name!r}, which is no tensor of the class",
                fix=f"declare {parameter.name} = Tensor(...) in the class",
            )


def slot_location(method: object) -> Location | None:
    """The ``def`` line of a bound method; None for one that has no Python source."""
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    return None if code is None else Location(code.co_filename, code.co_firstlineno)
