"""Turns an operator into an ``nn.Module`` that holds the variant's tensors as parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attncompiler import errors
from attncompiler.runtime.arguments import split_arguments
from attncompiler.runtime.call_checks import check_tensor
from attncompiler.user_code import shows_call

if TYPE_CHECKING:
    from attncompiler.runtime.operator import Operator


class AttentionModule(nn.Module):
    """An operator with state; made by ``Operator.module``, which says what becomes of each tensor.

    ``forward`` takes what the operator takes. A tensor the module holds may be given there too: the call's wins.
    """

    @shows_call
    def __init__(self, operator: Operator, initial: Mapping[str, Any]) -> None:
        super().__init__()
        self.operator = operator
        params, tensors = split_arguments(operator.variant, initial)
        self._numbers = params
        for name, value in tensors.items():
            declared = operator.variant._tensors[name]
            check_tensor(declared.declaration(name), value)
            for axis, found in zip(declared.axes, value.shape, strict=True):
                if isinstance(axis, int) and found != axis:
                    raise errors.ShapeError(
                        name=name,
                        detail=f"it has shape {list(value.shape)}, declared with the axes "
                        f"({', '.join(map(str, declared.axes))})",
                        fix=f"the axis declared as {axis} has that extent",
                    )
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, nn.Buffer) or not value.is_floating_point():
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
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
