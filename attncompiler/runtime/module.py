"""Turns an operator into an ``nn.Module`` that holds the variant's tensors as parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from attncompiler.frontend import trace
from attncompiler.runtime.arguments import split_arguments
from attncompiler.runtime.errors import ModuleCaptureError
from attncompiler.runtime.held import HoldingModule
from attncompiler.user_code import shows_call

if TYPE_CHECKING:
    from attncompiler.runtime.dense import DenseOperator
    from attncompiler.runtime.operator import Operator


class AttentionModule(HoldingModule):
    """An operator with state; made by ``Operator.module``, which says what becomes of each tensor.

    ``forward`` takes what the operator takes. A tensor the module holds may be given there too: the call's wins.
    """

    @shows_call
    def __init__(self, operator: Operator | DenseOperator, initial: Mapping[str, Any]) -> None:
        super().__init__(operator.name, operator)
        for captured in trace(operator.variant).captured.values():
            if isinstance(captured, nn.Parameter):
                raise ModuleCaptureError(variant=operator.name, shape=list(captured.shape))
        params, tensors = split_arguments(operator.variant, initial)
        self._numbers = params
        for name, value in tensors.items():
            self.hold(operator.variant._tensors[name].declaration(name), value)
