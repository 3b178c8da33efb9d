"""An ``nn.Module`` that holds the tensors of a variant: floating ones as parameters, others as buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attncompiler import errors
from attncompiler.ir.declared import Kind, TensorDecl
from attncompiler.runtime.call_checks import check_tensor, number
from attncompiler.runtime.call_location import shows_call
from attncompiler.runtime.errors import ModuleNameError


class HoldingModule(nn.Module):
    """Calls ``attention`` with the tensors and numbers it holds; those given at the call win."""

    def __init__(self, name: str, attention: Callable[..., Any]) -> None:
        super().__init__()
        self.operator = attention
        self._name = name
        self._numbers: dict[str, float] = {}
        self._held: tuple[str, ...] = ()

    def hold(self, declared: TensorDecl, value: Any) -> None:
        """Keep a tensor: a Parameter or Buffer as it is, a floating tensor as a Parameter, any other as a buffer.

        Raises ShapeError or DtypeError for a tensor that does not fit its declaration, ModuleNameError for a name
        that ``nn.Module`` uses.
        """
        name = declared.name
        check_tensor(declared, value)
        _check_extents(declared, value)
        if hasattr(self, name):
            raise ModuleNameError(name=name, variant=self._name)
        if isinstance(value, (nn.Parameter, nn.Buffer)):
            setattr(self, name, value)
        elif value.is_floating_point():
            setattr(self, name, nn.Parameter(value.detach().clone()))
        else:
            self.register_buffer(name, value)
        self._held += (name,)

    @shows_call
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Any:
        """Attention with the tensors and numbers the module holds."""
        held: dict[str, Any] = {name: getattr(self, name) for name in self._held}
        return self.operator(q, k, v, **(self._numbers | held | arguments))

    def extra_repr(self) -> str:
        """The variant, the fixed numbers, and the shape of each tensor held."""
        held = [f"{n}={list(getattr(self, n).shape)}" for n in self._held]
        numbers = [f"{n}={value}" for n, value in self._numbers.items()]
        return ", ".join([self._name, *numbers, *held])


class PackagedModule(HoldingModule):
    """The module of a package made by ``attncompiler build``; ``manifest`` is the package's."""

    @shows_call
    def __init__(
        self, attention: Callable[..., Any], manifest: Mapping[str, Any], initial: Mapping[str, Any]
    ) -> None:
        super().__init__(manifest["variant"], attention)
        kinds: Mapping[str, Kind] = manifest["call"]["kinds"]
        tensors: Mapping[str, Mapping[str, Any]] = manifest["sample"]
        for name, value in initial.items():
            if name in tensors:
                declared = tensors[name]
                self.hold(TensorDecl(name, tuple(declared["axes"]), declared["kind"]), value)
            elif name in kinds:
                self._numbers[name] = number(self._name, name, kinds[name], value)
            else:
                known = errors.listed(name, [*tensors, *kinds])
                raise errors.UnknownArgumentError(
                    variant=self._name, name=name, known=known or "nothing here"
                )


def _check_extents(declared: TensorDecl, value: Tensor) -> None:
    """The extents that the declaration itself fixes; those of a call are checked there."""
    for position, (axis, found) in enumerate(zip(declared.axes, value.shape, strict=True)):
        if isinstance(axis, int) and found != axis:
            raise errors.ShapeError(
                name=declared.name,
                detail=f"axis {position} has extent {found}, declared as {axis}",
                fix=f"its axes are ({', '.join(map(str, declared.axes))})",
            )
