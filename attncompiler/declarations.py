"""Turns the attributes of a variant class into declarations: parameters from annotations, inputs from Tensor."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal, TypeVar, cast

from attncompiler import errors
from attncompiler.caller import attribute_location, user_location
from attncompiler.ir.location import Location
from attncompiler.ir.ops import Kind
from attncompiler.ir.program import TensorDecl
from attncompiler.recorder import torch_kind

T = TypeVar("T")

# Names the operator's own arguments have; a tensor or parameter of that name could not be passed.
CALL_ARGUMENTS = frozenset({"q", "k", "v", "q_start", "return_stats", "scale", "sparsity"})
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


def checked_value(
    variant: str, name: str, kind: Kind, value: object, location: Location | None
) -> float:
    """The value as the parameter's type; an int is a float, nothing else is converted silently."""
    if _records_gradient(value):
        raise errors.ParameterTypeError(
            location=location,
            variant=variant,
            name=name,
            kind=_article(kind),
            value=value,
            fix=f"parameters have no gradient: pass {name}.item(), or declare {name} = Tensor()",
        )
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = cast(Any, value).item()
    fix: str
    match kind:
        case "bool":
            if isinstance(value, bool):
                return value
            fix = "give True or False"
        case "int":
            if isinstance(value, int) and not isinstance(value, bool):
                if -(2**63) <= value < 2**63:
                    return value
                fix = "kernels compute with integers of 64 bits"
            else:
                may_be_float = isinstance(value, float) and name not in CALL_ARGUMENTS
                whole = may_be_float and math.isfinite(cast(float, value))
                fix = f"give an int, or annotate {name}: float" if whole else "give an int"
        case "float":
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    return float(value)
                except OverflowError:  # an int beyond the range of floats
                    fix = "give a number below 1.8e308"
            else:
                fix = "give a number"
    raise errors.ParameterTypeError(
        location=location, variant=variant, name=name, kind=_article(kind), value=value, fix=fix
    )


def _records_gradient(value: object) -> bool:
    """Whether taking only the number of a torch tensor would lose a gradient."""
    if not getattr(value, "requires_grad", False):
        return False
    import torch

    return torch.is_grad_enabled()


def _article(kind: Literal["float", "int", "bool"]) -> str:
    return f"an {kind}" if kind == "int" else f"a {kind}"
