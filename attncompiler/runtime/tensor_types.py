"""Which element types captured tensors have where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.ir.declared import TensorDecl

if TYPE_CHECKING:
    from attncompiler.declarations import Tensor


def usual_types(
    read: Sequence[TensorDecl],
    declared: Mapping[str, Tensor],
    chosen: Mapping[str, torch.dtype],
) -> tuple[str, ...]:
    """The chosen type of each tensor, else that of its declaration, else float32, int64 or bool."""
    types = []
    for decl in read:
        dtype = declared[decl.name].dtype
        usual: Any = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[decl.kind]
        own = dtype if isinstance(dtype, torch.dtype) else usual
        types.append(str(chosen.get(decl.name, own)).removeprefix("torch."))
    return tuple(types)
