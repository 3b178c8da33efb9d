"""A user's mask function (b, h, q, k) -> bool: what of it decides a kernel, and how it is written on symbols.

The tensors of its closure are arguments of the kernel; everything else that it reads belongs to its identity.
"""

from __future__ import annotations

from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.integrations.errors import ModelMaskError


def _cells(function: FunctionType) -> list[tuple[str, CellType]]:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def captured(function: FunctionType, path: str = "") -> list[tuple[str, Tensor]]:
    """The tensors a function and the functions it captures read, each with the path of its cell."""
    found: list[tuple[str, Tensor]] = []
    for name, cell in _cells(function):
        value, place = cell.cell_contents, f"{path}{name}"
        if isinstance(value, Tensor):
            found.append((place, value))
        elif isinstance(value, FunctionType):
            found.extend(captured(value, f"{place}."))
    return found


def identity(function: FunctionType) -> tuple[object, ...]:
    """What decides the formula of a function: its code, and every value it reads that is no tensor of its closure.

    Hashable. Raises ModelMaskError for a value that may change without becoming another one.
    """
    parts: list[object] = [function.__code__]
    given = list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    parts.extend(_constant(function, value) for value in given)
    for _, cell in _cells(function):
        value = cell.cell_contents
        shape = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
        parts.append(shape or _constant(function, value))
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if value is not function and isinstance(value, _FOLLOWED):
            parts.append((name, _constant(function, value)))
    return tuple(parts)


# Kinds of globals whose value a body may use; modules and classes stay what they are.
_FOLLOWED = (bool, int, float, list, dict, Tensor, FunctionType)


def _constant(function: FunctionType, value: object) -> object:
    match value:
        case FunctionType():
            return identity(value)
        case (
            None | bool() | int() | float() | str() | type() | ModuleType() | BuiltinFunctionType()
        ):
            return type(value), value
        case torch.dtype() | torch.device() | torch.Size():
            return value
        case tuple():
            return tuple(_constant(function, v) for v in value)
        case _:
            raise ModelMaskError(
                location=None,
                layer="this model",
                detail=f"the mask function {function.__qualname__} reads a value of type {type(value).__name__}",
                fix="let it capture tensors and numbers only, from the function around it",
            )


def on_symbols(function: FunctionType, held: dict[str, Any], path: str = "") -> FunctionType:
    """The function with the tensors of its closure replaced by what ``held`` has for their paths."""
    cells = []
    for name, cell in _cells(function):
        value, place = cell.cell_contents, f"{path}{name}"
        if isinstance(value, Tensor):
            value = Captured(held[place], value) if value.dim() else held[place]
        elif isinstance(value, FunctionType):
            value = on_symbols(value, held, f"{place}.")
        cells.append(CellType(value))
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells) or None,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class Captured:
    """A tensor of a closure as the body sees it: indexing gives symbols, its extents are those of the tensor."""

    def __init__(self, symbol: Any, tensor: Tensor) -> None:
        self._symbol = symbol
        self.shape, self.ndim = tensor.shape, tensor.dim()
        self.dtype, self.device = tensor.dtype, tensor.device

    def __getitem__(self, index: object) -> Any:
        return self._symbol[index]

    def size(self, axis: int | None = None) -> Any:
        """The extents, or that of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def to(self, *where: object, **named: object) -> Captured:
        """Itself: a formula has one device, and converts elements where it needs to."""
        return self
