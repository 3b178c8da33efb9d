"""Turns an operator into an ``nn.Module`` that holds the variant's tensors as parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attncompiler import errors
from attncompiler.frontend import trace
from attncompiler.runtime.arguments import split_arguments
from attncompiler.runtime.call_checks import check_tensor
from attncompiler.runtime.errors import ModuleCaptureError, ModuleNameError
from attncompiler.user_code import shows_call

if TYPE_CHECKING:
    from attncompiler.runtime.dense import DenseOperator
    from attncompiler.runtime.operator import Operator


class AttentionModule(nn.Module):
    """An operator with state; made by ``Operator.module``, which says what becomes of each tensor.

    ``forward`` takes what the operator takes. A tensor the module holds may be given there too: the call's wins.
    """

    @shows_call
    def __init__(self, operator: Operator | DenseOperator, initial: Mapping[str, Any]) -> None:
        super().__init__()
        self.operator = operator
        for captured in trace(operator.variant).captured.values():
            if isinstance(captured, nn.Parameter):
                raise ModuleCaptureError(variant=operator.name, shape=list(captured.shape))
        params, tensors = split_arguments(operator.variant, initial)
        self._numbers = params
        for name, value in tensors.items():
            declared = operator.variant._tensors[name]
            check_tensor(declared.declaration(name), value)
            _check_extents(name, declared.axes, value)
            if hasattr(self, name):
                raise ModuleNameError(name=name, variant=operator.name)
            if isinstance(value, (nn.Parameter, nn.Buffer)):
                setattr(self, name, value)
            elif value.is_floating_point():
                setattr(self, name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value)
        self._held = tuple(tensors)

    @shows_call
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Any:
        """``Operator.__call__`` with the tensors and numbers the module holds."""
        held: dict[str, Any] = {name: getattr(self, name) for name in self._held}
        return self.operator(q, k, v, **(self._numbers | held | arguments))

    def extra_repr(self) -> str:
        """The variant, the fixed numbers, and the shape of each tensor held."""
        held = [f"{n}={list(getattr(self, n).shape)}" for n in self._held]
        numbers = [f"{n}={value}" for n, value in self._numbers.items()]
        return ", ".join([self.operator.name, *numbers, *held])


def _check_extents(name: str, axes: Sequence[str | int], value: Tensor) -> None:
    """The extents that the declaration itself fixes; those of a call are checked there."""
    for position, (axis, found) in enumerate(zip(axes, value.shape, strict=True)):
        if isinstance(axis, int) and found != axis:
            raise errors.ShapeError(
                name=name,
                detail=f"axis {position} has extent {found}, declared as {axis}",
                fix=f"its axes are ({', '.join(map(str, axes))})",
            )
