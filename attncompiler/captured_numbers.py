"""Numbers that a function captures: turns them into marked numbers, which a trace keeps as run-time values.

A literal in the text of a body never changes, so a trace may build the kernel around it. A number in a closure cell,
a default argument or a ``functools.partial`` may be another one at the next call. The marks tell the two apart; for
Python, a marked number is an int or a float like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from types import CellType, FunctionType
from typing import Any

_LONGEST_SEQUENCE = 32


class RunTimeInt(int):
    """An int whose value may differ at the next trace; ``origin`` says which number it is, whatever its value."""

    origin: object


class RunTimeFloat(float):
    """A float whose value may differ at the next trace; see RunTimeInt."""

    origin: object


def run_time(value: float, origin: object) -> float:
    """``value`` (an int or a float, no bool) with a mark."""
    marked = RunTimeInt(value) if isinstance(value, int) else RunTimeFloat(value)
    marked.origin = origin
    return marked


def _derived(base: type, name: str) -> Callable[..., Any]:
    """An operator whose result is as changeable as its operands: ``window // 2`` of a captured window."""
    operator = getattr(base, name)

    def method(self: Any, *others: Any) -> Any:
        result = operator(self, *others)
        if type(result) not in (
            int,
            float,
        ):  # NotImplemented, or the complex root of a negative number
            return result
        return run_time(result, (name, self.origin, *(getattr(x, "origin", x) for x in others)))

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
for _name in ("neg", "abs", *_BINARY, *(f"r{name}" for name in _BINARY)):
    for _base, _marked in ((int, RunTimeInt), (float, RunTimeFloat)):
        setattr(_marked, f"__{_name}__", _derived(_base, f"__{_name}__"))


def with_marked_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function over marked numbers; itself when it captures none.

    Looks into closures, default arguments, partial applications, and the functions, tuples and lists in these.
    Attributes of objects and global variables stay as they are.
    """
    return _Marking().of(function)  # type: ignore[no-any-return]


class _Marking:
    """One walk over what a function captures; the n-th number found has the origin n, call after call."""

    def __init__(self) -> None:
        self._number = count()
        self._known: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind is int or kind is float:
            return run_time(value, next(self._number))
        if kind is FunctionType:
            return self._function(value)
        if kind is partial:
            return self._partial(value)
        if kind in (tuple, list) and len(value) <= _LONGEST_SEQUENCE:
            found = [self.of(item) for item in value]
            return kind(found) if _differ(found, value) else value
        return value

    def _function(self, function: FunctionType) -> Any:
        known = self._known.get(id(function))
        if known is not None:
            return known
        cells = function.__closure__ or ()
        defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
        if not (cells or defaults or named):
            return function
        fresh = tuple(CellType() for _ in cells)
        copy = FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, fresh
        )
        copy.__kwdefaults__ = named
        copy.__dict__.update(function.__dict__)
        self._known[id(function)] = copy  # before its cells: a function may capture itself
        for cell, new in zip(cells, fresh, strict=True):
            try:
                new.cell_contents = self.of(cell.cell_contents)
            except ValueError:  # a variable that has no value yet
                continue
        copy.__defaults__ = tuple(self.of(value) for value in defaults)
        copy.__kwdefaults__ = {name: self.of(value) for name, value in named.items()}
        return copy

    def _partial(self, value: partial[Any]) -> Any:
        named = {name: self.of(argument) for name, argument in value.keywords.items()}
        return partial(self.of(value.func), *(self.of(a) for a in value.args), **named)


def _differ(found: list[Any], value: Any) -> bool:
    return any(a is not b for a, b in zip(found, value, strict=True))
