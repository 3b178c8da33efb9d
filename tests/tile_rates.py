"""How often the tile conditions of a mask miss an empty or a full tile, by enumeration of all pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attncompiler.ir.expr import Expr, Index, Load, Param, Size, walk
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.tiles import CORNERS, TileSet, tile_class, tile_set

q, k, h = Index("q"), Index("k"), Index("h")
QUERIES, KEYS, HEADS = 40, 48, 3
TILES = [(1, 1), (4, 4), (8, 16), (16, 8), (5, 7)]
TABLE = torch.tensor([5, 0, 9])


@dataclass(frozen=True)
class Rates:
    """How many empty and full tiles there are, and how many of each were not recognised."""

    empty: int
    missed_empty: int
    full: int
    missed_full: int


def rates(
    mask: Expr, params: dict[str, float | int | bool] | None = None, exactly: bool = True
) -> Rates:
    """Compare the conditions with enumeration on all tiles of several sizes; fail if unsound.

    Without ``exactly`` they are those of interval analysis alone.
    """
    leaves: dict[Expr, torch.Tensor] = {
        h: torch.arange(HEADS)[:, None, None],
        q: torch.arange(QUERIES)[None, :, None] + 3,
        k: torch.arange(KEYS)[None, None, :],
        Size("N"): torch.tensor(KEYS),
        Size("M"): torch.tensor(QUERIES),
        Index("b"): torch.tensor(1),
    }
    for name, value in (params or {}).items():
        kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        dtype = torch.float64 if kind == "float" else None
        leaves[Param(name, kind)] = torch.tensor(value, dtype=dtype)

    kinds = {n.tensor: n.kind for n in walk(mask) if isinstance(n, Load)}

    def load(name: str, indices: tuple[torch.Tensor, ...]) -> torch.Tensor:
        found = TABLE[indices[0] % len(TABLE)]
        return found != 0 if kinds[name] == "bool" else found

    allowed = evaluate(mask, leaves, load).expand(HEADS, QUERIES, KEYS)
    found = tile_set(mask) if exactly else tile_class(mask)
    count = [0, 0, 0, 0]
    for rows, columns in TILES:
        for heads in (1, HEADS):
            starts = torch.cartesian_prod(
                torch.arange(0, HEADS, heads),
                torch.arange(0, QUERIES, rows),
                torch.arange(0, KEYS, columns),
            )
            corner = dict(leaves)
            for (axis, extent, size), lo in zip(
                (("h", HEADS, heads), ("q", QUERIES, rows), ("k", KEYS, columns)),
                starts.unbind(1),
                strict=True,
            ):
                shift = 3 if axis == "q" else 0
                corner[CORNERS[axis][0]] = lo + shift
                corner[CORNERS[axis][1]] = (lo + size).clamp(max=extent) - 1 + shift
            for leaf in (q, k, h):
                del corner[leaf]  # the conditions may read the corners only
            possible = evaluate(found.possible, corner, load).expand(len(starts))
            certain = evaluate(found.certain, corner, load).expand(len(starts))
            for i, (h0, q0, k0) in enumerate(starts.tolist()):
                tile = allowed[h0 : h0 + heads, q0 : q0 + rows, k0 : k0 + columns]
                some, every = bool(tile.any()), bool(tile.all())
                assert possible[i] or not some, (mask, h0, q0, k0, rows, columns)
                assert every or not certain[i], (mask, h0, q0, k0, rows, columns)
                count[0] += not some
                count[1] += not some and bool(possible[i])
                count[2] += every
                count[3] += every and not bool(certain[i])
    result = Rates(*count)
    if isinstance(found, TileSet) and found.exact:
        assert result.missed_empty == result.missed_full == 0, (mask, result)
    return result
