"""The class a user derives from: turns its attributes into parameters, constants and tensor inputs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, cast

from attncompiler import errors
from attncompiler.caller import attribute_location, user_location
from attncompiler.declarations import (
    Tensor,
    annotated_kind,
    checked_value,
    class_annotations,
    merged,
)
from attncompiler.functions import Value
from attncompiler.ir.ops import Kind
from attncompiler.layouts import Boxes
from attncompiler.prelude.normalizers import softmax
from attncompiler.slots import check_slots

if TYPE_CHECKING:
    import torch


class Variant:
    """One attention variant: a formula for each slot you override, plain inheritance for the rest.

    - ``score(self, s, at)``: the score of one pair from ``s = scale * <q, k>``; default ``s``.
    - ``mask(self, at)``: whether the pair is allowed; default every pair.
    - ``normalize(self, s, row)``: the weight of one key; ``row.max/min/sum/count/mean`` run over the allowed keys of
      the row; ``row.keep("name", x)`` hands a row statistic to the caller. Default softmax.
    - ``output(self, o, at)``: one element of the output row; ``at.d`` is its feature, ``at.sum/mean/max/min`` run over
      the features, ``at.stats.name`` reads a kept statistic. Default ``o``.
    - ``prepare(self, q, k, v, **tensors)``: ordinary torch before the kernel; returns q, k, v and, if you like, a dict
      of declared tensors. Default nothing.
    - ``scale``: None for 1/sqrt(D), or a number.
    - ``layout``: None, or ``Boxes(grid, tile)``: the order in which the kernel walks over tokens of a grid.
    - ``sample_lengths``: where ``explain`` shows the mask: a number of positions, or (queries, keys). A mask made for a
      grid of one size names that size.

    Attributes annotated ``float``, ``int`` or ``bool`` are parameters: run-time scalars, given to the constructor or to
    the call, whose change rebuilds nothing. Other plain attributes are constants. ``Tensor`` attributes are inputs.
    """

    scale: Any = None
    layout: ClassVar[Any] = None
    sample_lengths: ClassVar[int | tuple[int, int]] = 512
    _parameters: ClassVar[dict[str, Kind]] = {}
    _tensors: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, **parameters: float) -> None:
        for name, value in parameters.items():
            kind = self._parameters.get(name)
            if kind is None:
                raise errors.UnknownParameterError(
                    location=user_location(),
                    variant=type(self).__name__,
                    name=name,
                    known=errors.listed(name, self._parameters) or "none at all",
                )
            setattr(
                self, name, checked_value(type(self).__name__, name, kind, value, user_location())
            )
        missing = [n for n in self._parameters if not hasattr(self, n)]
        if missing:
            raise errors.MissingParameterError(
                location=user_location(),
                variant=type(self).__name__,
                names=", ".join(missing),
                example=", ".join(f"{n}=..." for n in missing),
            )

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls._parameters = merged(cls, "_parameters", {})
        cls._tensors = merged(cls, "_tensors", {})
        for name, annotation in class_annotations(cls).items():
            kind = annotated_kind(cls, name, annotation)
            if kind is not None:
                cls._parameters[name] = kind
        for name, value in list(vars(cls).items()):
            if isinstance(value, Tensor):
                value.check(cls, name)
                cls._tensors[name] = value
                cls._parameters.pop(name, None)
            elif name in cls._parameters and not inspect.isfunction(value):
                kind = cls._parameters[name]
                location = attribute_location(cls, name)
                setattr(cls, name, checked_value(cls.__name__, name, kind, value, location))
        if cls.layout is not None and not isinstance(cls.layout, Boxes):
            raise errors.DeclarationError(
                location=attribute_location(cls, "layout"),
                variant=cls.__name__,
                name="layout",
                detail=f"a {type(cls.layout).__name__} is no layout",
                fix="write layout = Boxes((height, width), tile=(8, 8)), or choose another name",
            )
        check_slots(cls, cls._tensors)

    def score(self, s: Value, at: Value) -> Value:
        """Return the score of one pair."""
        return s

    def mask(self, at: Value) -> Value:
        """Return whether the pair is allowed."""
        return True

    def normalize(self, s: Value, row: Value) -> Value:
        """Return the weight of one key of the row."""
        return softmax(s, row)

    def output(self, o: Value, at: Value) -> Value:
        """Return one element of the output row."""
        return o

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Valid example inputs for the declared tensors: what ``check``, ``bench`` and tests draw.

        ``sizes`` gives B, H, G, M, N, D, Dv and ``q_start``. Override it when the declared ranges do not say enough,
        such as for sorted document ids.
        """
        from attncompiler.sampling import sample_tensors

        return sample_tensors(self._tensors, sizes, generator)

    def parameters(self) -> dict[str, float]:
        """The values of this instance's parameters, in the order of their declaration."""
        return {name: cast(float, getattr(self, name)) for name in self._parameters}
