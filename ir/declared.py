"""What a program is called with: the scalars and tensors it declares, as plain data.

Nothing here knows of expressions, so a package made by ``attncompiler build`` carries this file as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True, slots=True)
class ParamDecl:
    """A run-time scalar. Lifted literals are called ``c0``, ``c1`` ... and have ``lifted`` set."""

    name: str
    kind: Kind
    lifted: bool = False


@dataclass(frozen=True, slots=True)
class TensorDecl:
    """A captured tensor: the axes it is declared over and the kind of its elements.

    An axis is one of b h g q k d (its extent is then B, H, G, M, N or Dv), an integer (that extent) or a free
    name (an extent known when the operator is called, the same for all tensors that use the name).
    """

    name: str
    axes: tuple[str | int, ...]
    kind: Kind
