"""How a GPU kernel is cut, as plain data: what the compiler's lists, a package's manifest and launches share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["forward", "rows", "columns"]


@dataclass(frozen=True, slots=True)
class Config:
    """A tile of ``block_m`` queries by ``block_n`` keys, and how a block works on it.

    ``num_stages`` is how many tiles are in flight, ``descriptors`` whether whole tiles are loaded by the tensor
    memory accelerator instead of by pointers. ``chunk``: the kernels of a backward multiply rows of wide heads so many
    features at a time, both sides from memory, and keep no rows between tiles; 0 keeps whole rows.

    The others are TileLang's. ``apart`` is the forward's schedule with a warp group that loads for those that multiply.
    ``raster`` is the order of blocks: heads stand in sections of so many, whose blocks take turns; 1 begins a head when
    the one before it has no block left. ``held``: queries are operands from registers, not from shared memory.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    chunk: int = 0
    apart: bool = False
    raster: int = 1
    held: bool = False

    @property
    def alike(self) -> Config:
        """The configuration whose kernel this one runs: blocks come in any order."""
        return replace(self, raster=1)

    @property
    def usual(self) -> Config:
        """The one without what only tuning chooses."""
        return replace(self, apart=False, raster=1, held=False)


def most_registers(num_warps: int) -> int:
    """Registers of a thread on NVIDIA where a block has the whole file of 65536, 255 at most.

    Told of no limit, the assembler prefers 128 registers and a few in memory to a single block of 8 warps on an SM.
    Told of this one it takes more also where it needs none, and spills in other kernels: so it is told where it spills.
    """
    return min(255, 65536 // (32 * num_warps))


def summed_width(width: int, kind: Kind, keys: int, chunk: int) -> int:
    """Features of the tiles of a kernel that sums over ``keys`` keys, from those of a head, ``width``.

    Where dk and dv are summed a chunk at a time, Triton cuts both among warps as suits dk. One that is not wider than
    high is cut by rows, and a dv of 512 features would be whole in every warp: it gets features that are zero.
    """
    return max(width, 2 * keys) if chunk and kind == "columns" else width


def tilelang_width(dim: int, *, pointers: bool = False) -> int:
    """The features that a tile of a head has room for in TileLang: what matrix instructions and swizzled rows want.

    ``pointers``: NVIDIA's threads load it one by one. Of a power of two features each thread keeps to its own;
    of others every element that it loads has an address of its own, in registers.
    """
    unit = 16 if dim <= 64 else 64
    if pointers and dim > 64:
        return 1 << (dim - 1).bit_length()
    return -(-dim // unit) * unit


def parted(kind: Kind, block_m: int, block_n: int, num_warps: int) -> bool:
    """Whether warps of a TileLang kernel share the rows that stay and part the features of their sums.

    Matrix instructions give every warp 16 rows at least: of fewer rows than that several warps have the same.
    """
    return (block_n if kind == "columns" else block_m) < 16 * num_warps
