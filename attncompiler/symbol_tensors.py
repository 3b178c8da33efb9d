"""A declared tensor as a slot method sees it: turns indexing by symbols into loads of single elements.

``self.table[at.h]`` leaves a view with the remaining axes open, so ``self.table[at.h][at.q - at.k]`` and
``self.table[..., 0]`` read as in torch.
"""

from __future__ import annotations

from typing import Any, NoReturn

from attncompiler import errors
from attncompiler.ir.expr import Call, Const, Expr, Index, Load, Param, Size, SizeName
from attncompiler.ir.program import TensorDecl
from attncompiler.recorder import Recorder, kind_of_operand
from attncompiler.symbols import Symbol, torch_call

Q_START = Param("q_start", "int")
_EXTENTS: dict[object, SizeName] = {"b": "B", "h": "H", "g": "G", "q": "M", "k": "N", "d": "Dv"}


class TensorSymbol:
    """A tensor some of whose axes already have an index (None marks an open axis)."""

    __slots__ = ("declaration", "indices", "recorder")
    __array_ufunc__ = None

    def __init__(
        self, declaration: TensorDecl, indices: tuple[Expr | None, ...], recorder: Recorder
    ) -> None:
        self.declaration = declaration
        self.indices = indices
        self.recorder = recorder

    @property
    def axes(self) -> tuple[str | int, ...]:
        """The declared axes, also those that have an index."""
        return self.declaration.axes

    def __getitem__(self, index: object) -> Symbol | TensorSymbol:
        open_axes = [i for i, known in enumerate(self.indices) if known is None]
        given = list(index) if isinstance(index, tuple) else [index]
        dots = [i for i, g in enumerate(given) if g is Ellipsis]
        if dots:
            missing = len(open_axes) - (len(given) - 1)
            given[dots[0] : dots[0] + 1] = [slice(None)] * max(missing, 0)
        if len(given) > len(open_axes) or len(dots) > 1:
            raise errors.TooManyIndicesError(
                location=self.recorder.here(),
                tensor=self.declaration.name,
                axes=len(open_axes),
                found=len(given),
                declared=declared(self.declaration),
            )
        indices = list(self.indices)
        for axis, value in zip(open_axes, given, strict=False):
            if not (isinstance(value, slice) and value == slice(None)):
                indices[axis] = self._index(axis, value)
        return resolve(self.declaration, tuple(indices), self.recorder)

    def _index(self, axis: int, value: object) -> Expr:
        if value is None or isinstance(value, (slice, str, list)):
            what = {type(None): "None", slice: "a slice"}.get(
                type(value), f"a {type(value).__name__}"
            )
            raise errors.IndexFormError(
                location=self.recorder.here(), tensor=self.declaration.name, what=what
            )
        operand = self.recorder.operand(value)
        if isinstance(operand, int) and not isinstance(operand, bool):
            return self._constant(axis, operand)
        kind = kind_of_operand(operand)
        if kind != "int":
            raise errors.FloatIndexError(
                location=self.recorder.here(),
                position=axis,
                tensor=self.declaration.name,
                kind=kind,
            )
        expr = self.recorder.convert(operand, "int")
        self._check_axis(axis, expr)
        # Positions of queries start at q_start, rows of a tensor over queries at 0.
        return Call("sub", (expr, Q_START)) if self.declaration.axes[axis] == "q" else expr

    def _constant(self, axis: int, value: int) -> Expr:
        """A constant position; a negative one counts from the end, as in Python."""
        extent = self.declaration.axes[axis]
        if isinstance(extent, int):
            if not -extent <= value < extent:
                raise errors.OutOfRangeError(
                    location=self.recorder.here(),
                    value=value,
                    tensor=self.declaration.name,
                    axis=extent,
                    extent=extent,
                )
            return Const(value % extent)
        if value >= 0:
            return Const(value)
        if extent not in _EXTENTS:
            raise errors.IndexFormError(
                location=self.recorder.here(),
                tensor=self.declaration.name,
                what=f"{value} on axis {extent!r}, whose extent is not known here",
            )
        return Call("add", (Size(_EXTENTS[extent]), Const(value)))

    def _check_axis(self, axis: int, expr: Expr) -> None:
        """A bare index symbol must be the axis's own. A query position may index a key axis: both are positions."""
        name = self.declaration.axes[axis]
        if not isinstance(expr, Index) or name not in ("b", "h", "g", "q", "k", "d"):
            return
        if expr.axis == name or (expr.axis, name) == ("q", "k"):
            return
        axes = list(self.declaration.axes)
        axes[axis] = expr.axis
        raise errors.WrongAxisError(
            location=self.recorder.here(),
            tensor=self.declaration.name,
            found=expr.axis,
            axis=name,
            declared=", ".join(repr(a) for a in axes),
        )

    def element(self) -> NoReturn:
        """Refuse: this is a tensor, not one of its elements."""
        open_axes = [
            str(a)
            for a, known in zip(self.declaration.axes, self.indices, strict=True)
            if known is None
        ]
        example = ", ".join(
            f"at.{a}" if a in ("b", "h", "g", "q", "k", "d") else "..."
            for a in map(str, self.declaration.axes)
        )
        raise errors.UnindexedTensorError(
            location=self.recorder.here(),
            tensor=self.declaration.name,
            open=", ".join(open_axes),
            example=example,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.element()

    def __bool__(self) -> bool:
        self.element()

    def __iter__(self) -> NoReturn:
        self.element()

    def __len__(self) -> int:
        self.element()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return torch_call(func, args, kwargs or {})


def _refuse(self: TensorSymbol, *other: object) -> NoReturn:
    self.element()


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
for _name in (*_BINARY, "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(TensorSymbol, f"__{_name}__", _refuse)
    setattr(TensorSymbol, f"__r{_name}__", _refuse)
for _name in ("neg", "abs", "invert", "float", "int", "index"):
    setattr(TensorSymbol, f"__{_name}__", _refuse)


def resolve(
    declaration: TensorDecl, indices: tuple[Expr | None, ...], recorder: Recorder
) -> Symbol | TensorSymbol:
    """The element once every axis has its index, else the view with the open axes."""
    known = tuple(i for i in indices if i is not None)
    if len(known) == len(indices):
        return recorder.symbol(Load(declaration.name, known, declaration.kind))
    return TensorSymbol(declaration, indices, recorder)


def captured_element(recorder: Recorder, tensor: Any, index: object) -> Symbol | TensorSymbol:
    """``tensor[index]`` for a torch tensor that a body reads without declaring it."""
    declaration = recorder.capture(tensor)
    return TensorSymbol(declaration, (None,) * len(declaration.axes), recorder)[index]


def declared(declaration: TensorDecl) -> str:
    """The axes as they are written in a declaration: ``'h', 'k'``."""
    return ", ".join(repr(a) for a in declaration.axes)
