"""How a Triton kernel is cut, as plain data: what the compiler's lists, a package's manifest and launches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "rows", "columns"]


@dataclass(frozen=True, slots=True)
class Config:
    """A tile of ``block_m`` queries by ``block_n`` keys, and how a block works on it.

    ``num_stages`` is how many tiles are in flight, ``descriptors`` whether whole tiles are loaded by the tensor
    memory accelerator instead of by pointers.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
