"""How a Triton kernel is cut, as plain data: what the compiler's lists, a package's manifest and launches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "rows", "columns"]


@dataclass(frozen=True, slots=True)
class Config:
    """A tile of ``block_m`` queries by ``block_n`` keys, and how a block works on it.

    ``num_stages`` is how many tiles are in flight, ``descriptors`` whether whole tiles are loaded by the tensor
    memory accelerator instead of by pointers. ``chunk``: the kernels of a backward multiply rows of wide heads so many
    features at a time, both sides from memory, and keep no rows between tiles; 0 keeps whole rows.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    chunk: int = 0


def tilelang_width(dim: int) -> int:
    """The features that a tile of a head has room for in TileLang: what matrix instructions and swizzled rows want."""
    unit = 16 if dim <= 64 else 64
    return -(-dim // unit) * unit
