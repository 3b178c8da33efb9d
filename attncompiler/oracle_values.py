"""What a slot method sees in the oracle: turns indices, tensors and reductions into torch tensors over [B, H, M, N]."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from attncompiler import errors
from attncompiler.caller import user_location

# The pairs at which a tensor read must be in range; None where every one must.
counted_pairs: ContextVar[torch.Tensor | None] = ContextVar("counted_pairs", default=None)


class Grid(torch.Tensor):
    """A tensor over the pairs, all of whose floats have one width.

    ``x.float()`` and ``x.to(torch.bfloat16)`` in a formula mean "a float", so they keep the oracle's precision; a
    captured torch tensor indexed by a Grid is read element by element with the same checks as a declared one.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__getitem__" and not isinstance(args[0], Grid):
            return Elements("captured tensor", args[0])[args[1]]
        whole = name.strip("_") in _INTEGER_DIVISIONS or kwargs.get("rounding_mode") is not None
        if whole and len(args) == 2:
            args, zero = _without_zero_divisors(args, reflected=name.startswith("__r"))
            result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            return result if zero is None else result.masked_fill(zero, 0)
        if name in ("float", "double", "half", "bfloat16"):
            return args[0].to(torch.get_default_dtype())
        if name in ("to", "type"):
            args = tuple(_one_width(a) for a in args)
            kwargs = {key: _one_width(a) for key, a in kwargs.items()}
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    def __round__(self, digits: int | None = None) -> torch.Tensor:
        return self.round() if self.is_floating_point() else self

    def __divmod__(self, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return other // self, other % self


_INTEGER_DIVISIONS = frozenset(
    {"floordiv", "rfloordiv", "floor_divide", "mod", "rmod", "remainder"}
)


def _without_zero_divisors(
    operands: tuple[Any, ...], *, reflected: bool
) -> tuple[tuple[Any, ...], torch.Tensor | None]:
    """Integer operands whose zero divisors became ones, and where they were: a zero divisor gives 0."""
    divisor = operands[0 if reflected else 1]
    tensors = [torch.as_tensor(x).as_subclass(torch.Tensor) for x in operands]
    zero = tensors[0 if reflected else 1] == 0
    if any(t.is_floating_point() for t in tensors) or not bool(zero.any()):
        return operands, None
    safe = torch.as_tensor(divisor).masked_fill(zero, 1)
    return ((safe, operands[1]) if reflected else (operands[0], safe)), zero


def _one_width(value: Any) -> Any:
    real = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.get_default_dtype() if real else value


def grid(value: Any) -> Grid:
    """``value`` (a tensor or number) as a Grid; numbers are 0-d, floats in the default dtype."""
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return tensor.as_subclass(Grid)


def _broadcast(*shapes: tuple[int, ...]) -> torch.Size:
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call, no-any-return]


class Elements:
    """A tensor read by index expressions: clamped where the pair is forbidden, checked where it is allowed.

    ``axes`` are the declared names, ``first_row`` is the position of row 0 of an axis over queries.
    """

    def __init__(
        self,
        name: str,
        tensor: torch.Tensor,
        axes: tuple[str | int, ...] | None = None,
        first_row: int = 0,
        indices: tuple[Any, ...] | None = None,
    ) -> None:
        self.name, self.tensor, self.first_row = name, tensor, first_row
        self.axes = tuple(range(tensor.dim())) if axes is None else axes
        self.indices = (None,) * tensor.dim() if indices is None else indices

    def __getitem__(self, index: Any) -> Any:
        given = list(index) if isinstance(index, tuple) else [index]
        open_axes = [i for i, known in enumerate(self.indices) if known is None]
        dots = [i for i, value in enumerate(given) if value is Ellipsis]
        if dots:
            given[dots[0] : dots[0] + 1] = [slice(None)] * (len(open_axes) - len(given) + 1)
        if len(given) > len(open_axes):
            raise IndexError(f"too many indices for tensor {self.name!r}")
        indices = list(self.indices)
        for axis, value in zip(open_axes, given, strict=False):
            if not isinstance(value, slice):
                indices[axis] = self._position(axis, value)
        if any(i is None for i in indices):
            return Elements(self.name, self.tensor, self.axes, self.first_row, tuple(indices))
        return self._load(indices)

    def _position(self, axis: int, value: Any) -> torch.Tensor:
        extent = self.tensor.shape[axis]
        if isinstance(value, int) and not isinstance(value, bool):
            if not -extent <= value < extent:
                raise self._out_of_range(axis, value)
            return torch.tensor(value % extent)
        if (
            not isinstance(value, torch.Tensor)
            or value.is_floating_point()
            or value.dtype == torch.bool
        ):
            raise TypeError(f"index {axis} of tensor {self.name!r} must be an integer")
        position = value.as_subclass(torch.Tensor).to(torch.int64)
        if self.axes[axis] == "q":
            position = position - self.first_row
        bad = (position < 0) | (position >= extent)
        allowed = counted_pairs.get()
        if allowed is not None:
            bad = bad & _any_in(allowed, bad)
        if bool(bad.any()):
            wrong = position.expand(bad.shape)[bad][0].item()
            raise self._out_of_range(axis, wrong)
        return position.clamp(0, max(extent - 1, 0))

    def _out_of_range(self, axis: int, value: object) -> errors.OutOfRangeError:
        return errors.OutOfRangeError(
            location=user_location(),
            value=value,
            tensor=self.name,
            axis=self.axes[axis],
            extent=self.tensor.shape[axis],
        )

    def _load(self, indices: list[Any]) -> Grid:
        shape = _broadcast(*(i.shape for i in indices))
        if 0 in self.tensor.shape:
            return grid(torch.zeros(shape, dtype=self.tensor.dtype))
        value = self.tensor[tuple(i.expand(shape) for i in indices)]
        if value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        elif value.dtype != torch.bool:
            value = value.to(torch.int64)
        allowed = counted_pairs.get()
        if value.requires_grad and allowed is not None and allowed.shape[-1]:
            # A forbidden pair has no say in a gradient, not even through 0 * nan.
            value = value.expand(_broadcast(value.shape, allowed.shape))
            drop_gradient(value, allowed)
        return grid(value)


def drop_gradient(value: torch.Tensor, allowed: torch.Tensor) -> None:
    """Make the gradient that flows into ``value`` zero at forbidden pairs."""

    def keep_allowed(grad: torch.Tensor | None) -> torch.Tensor | None:
        return None if grad is None else torch.where(allowed, grad, 0.0)

    value.register_hook(keep_allowed)  # type: ignore[no-untyped-call]


def _any_in(allowed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Whether any pair is allowed among those that share an element of ``like``."""
    missing = allowed.dim() - like.dim()
    if missing > 0:
        like = like.reshape((1,) * missing + like.shape)
    for axis, extent in enumerate(like.shape):
        if extent == 1:
            allowed = allowed.any(axis, keepdim=True)
    return allowed


class Place:
    """``at`` and ``row``: index grids and sizes as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update({name: grid(value) for name, value in values.items()})


class Row(Place):
    """``row``: reductions over the allowed keys of each row."""

    def __init__(self, values: dict[str, Any], allowed: torch.Tensor) -> None:
        super().__init__(values)
        self.allowed_pairs = allowed
        self.kept: dict[str, torch.Tensor] = {}

    def _reduce(self, value: Any, identity: float, function: Callable[..., torch.Tensor]) -> Grid:
        real = torch.get_default_dtype()
        x = grid(value).as_subclass(torch.Tensor).to(real)
        x = torch.where(self.allowed_pairs, x, torch.tensor(identity, dtype=real))
        if x.shape[-1] == 0:
            return grid(x.new_full((*x.shape[:-1], 1), identity))
        return grid(function(x, -1, keepdim=True))

    def max(self, value: Any) -> Grid:
        """Largest over the allowed keys."""
        return self._reduce(value, -math.inf, torch.amax)

    def min(self, value: Any) -> Grid:
        """Smallest over the allowed keys."""
        return self._reduce(value, math.inf, torch.amin)

    def sum(self, value: Any) -> Grid:
        """Sum over the allowed keys."""
        return self._reduce(value, 0.0, torch.sum)

    def count(self, condition: Any = True) -> Grid:
        """Number of allowed keys that fulfil the condition."""
        return self.sum(grid(condition) != 0)

    def mean(self, value: Any) -> Any:
        """Mean over the allowed keys."""
        return self.sum(value) / self.count()

    def keep(self, name: str, value: Any) -> None:
        """Remember a statistic of the row."""
        self.kept[name] = grid(value).as_subclass(torch.Tensor)


class OutputPlace(Place):
    """``at`` of the output slot: reductions over the features and the kept statistics."""

    def __init__(
        self, values: dict[str, Any], shape: tuple[int, ...], kept: dict[str, torch.Tensor]
    ) -> None:
        super().__init__(values)
        self.stats = Place(dict(kept))
        self._shape = shape

    def _over_features(self, value: Any) -> torch.Tensor:
        x = grid(value).as_subclass(torch.Tensor).to(torch.get_default_dtype())
        return x.expand(_broadcast(x.shape, self._shape))

    def max(self, value: Any) -> Grid:
        """Largest over the features."""
        return grid(self._over_features(value).amax(-1, keepdim=True))

    def min(self, value: Any) -> Grid:
        """Smallest over the features."""
        return grid(self._over_features(value).amin(-1, keepdim=True))

    def sum(self, value: Any) -> Grid:
        """Sum over the features."""
        return grid(self._over_features(value).sum(-1, keepdim=True))

    def mean(self, value: Any) -> Grid:
        """Mean over the features."""
        return grid(self._over_features(value).mean(-1, keepdim=True))
