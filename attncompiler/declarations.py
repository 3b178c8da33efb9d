"""Turns the attributes of a variant class into declarations: parameters from annotations, inputs from Tensor."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from attncompiler import errors
from attncompiler.caller import attribute_location, user_location
from attncompiler.ir.location import Location
from attncompiler.ir.ops import Kind
from attncompiler.ir.program import TensorDecl
from attncompiler.recorder import torch_kind
from attncompiler.runtime.scalars import CALL_ARGUMENTS
from attncompiler.runtime.scalars import checked_value as checked_value

T = TypeVar("T")

# Names that tile classification gives the corners of a tile (``ir/tiles.py``).
TILE_CORNERS = frozenset({"q_lo", "q_hi", "k_lo", "k_hi", "h_lo", "h_hi"})
_KINDS: dict[object, Kind] = {float: "float", int: "int", bool: "bool"}
_KINDS |= {"float": "float", "int": "int", "bool": "bool"}


class Tensor:
    """A run-time tensor input of a variant: ``sink = Tensor("h")`` becomes ``op(q, k, v, sink=...)``.

    Each axis is ``"b"``, ``"h"`` (query heads), ``"g"`` (key/value heads), ``"q"``, ``"k"``, ``"d"`` (value features),
    an int (that extent), or a free name (an extent known at the call, equal wherever the name is used).
    ``Tensor()`` is a single number and is used without an index.

    ``dtype`` is ``"float"``, ``"int"``, ``"bool"`` or a torch dtype. ``low`` and ``high`` bound the values that checks
    draw (low <= value < high for ints); free axes get ``extent`` positions there.
    """

    __slots__ = ("axes", "dtype", "extent", "high", "kind", "location", "low", "name")

    def __init__(
        self,
        *axes: str | int,
        dtype: object = "float",
        low: float | None = None,
        high: float | None = None,
        extent: int = 8,
    ) -> None:
        self.axes = axes
        self.dtype = dtype
        self.location = user_location()
        self.kind: Kind = _tensor_kind(dtype, self.location)
        self.low = low
        self.high = high
        self.extent = extent
        self.name = ""
        for axis in axes:
            good = isinstance(axis, str) or (isinstance(axis, int) and axis > 0)
            if (
                not good
                or isinstance(axis, bool)
                or (isinstance(axis, str) and not axis.isidentifier())
            ):
                raise errors.DeclarationError(
                    location=self.location,
                    variant="Tensor",
                    name=repr(axis),
                    detail="an axis is a name or a positive int",
                    fix='write Tensor("h", "k"), Tensor("h", 2) or Tensor("slots")',
                )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __getitem__(self, index: object) -> Any:
        raise errors.IndexFormError(
            location=user_location(),
            tensor=self.name,
            what="anything outside the slots of a variant",
        )

    def __repr__(self) -> str:
        return f"Tensor({', '.join(map(repr, self.axes))}, dtype={self.kind!r})"

    def declaration(self, name: str) -> TensorDecl:
        """The declaration as the program holds it."""
        return TensorDecl(name, self.axes, self.kind)

    def check(self, cls: type, name: str) -> None:
        """Refuse a tensor whose name is an argument of every operator."""
        if name in CALL_ARGUMENTS:
            raise errors.DeclarationError(
                location=self.location,
                variant=cls.__name__,
                name=name,
                detail="the name is an argument of every operator",
                fix="choose another name for the tensor",
            )


def _tensor_kind(dtype: object, location: Location | None) -> Kind:
    if isinstance(dtype, (str, type)) and dtype in _KINDS:
        return _KINDS[dtype]
    if str(dtype) in ("torch.bool", "torch.uint8") or str(dtype).startswith(
        ("torch.float", "torch.bfloat", "torch.int")
    ):
        return torch_kind(dtype)
    raise errors.DeclarationError(
        location=location,
        variant="Tensor",
        name=f"dtype={dtype!r}",
        detail="no element type that formulas have",
        fix='write dtype="float", "int" or "bool", or a real torch dtype such as torch.int32',
    )


def class_annotations(cls: type) -> dict[str, object]:
    """Annotations of the class body itself; strings stay strings (``from __future__ import annotations``)."""
    return dict(inspect.get_annotations(cls))


def merged(cls: type, attribute: str, own: dict[str, T]) -> dict[str, T]:
    """What the bases declare, first base last so that it wins, then ``own``."""
    found: dict[str, T] = {}
    for base in reversed(cls.__mro__[1:]):
        found |= vars(base).get(attribute, {})
    return found | own


def annotated_kind(cls: type, name: str, annotation: object) -> Kind | None:
    """The kind of an annotated parameter; None for a constant (ClassVar) or a tensor.

    Raises DeclarationError for other types.
    """
    text = (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )
    last = text.split("[")[0].strip().rsplit(".", 1)[-1]
    if (
        name.startswith("_")
        or last in ("ClassVar", "Tensor")
        or (name == "scale" and "None" in str(annotation))
    ):
        return None
    kind = _KINDS.get(last)
    reserved = (CALL_ARGUMENTS - {"scale"}) | TILE_CORNERS
    if kind is not None and name not in reserved:
        return kind
    raise errors.DeclarationError(
        location=attribute_location(cls, name),
        variant=cls.__name__,
        name=name,
        detail=(
            "the name stands for a corner of a tile"
            if name in TILE_CORNERS
            else "the name is an argument of every operator"
        )
        if name in reserved
        else f"a parameter cannot be of type {text}",
        fix="choose another name"
        if name in reserved
        else "annotate float, int or bool; drop the annotation for a constant; use Tensor(...) for a tensor",
    )
