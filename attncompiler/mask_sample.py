"""Turns a variant and two lengths into the tile map of its mask, on the example tensors that ``check`` draws too."""

from __future__ import annotations

import torch

from attncompiler.caller import class_location
from attncompiler.errors import DeclarationError
from attncompiler.oracle import allowed_pairs
from attncompiler.runtime.errors import LimitError
from attncompiler.slots import slot_location
from attncompiler.tile_map import TileMap
from attncompiler.user_code import UserCode
from attncompiler.variant import Variant

LONGEST = 1024
# prepare may look at q, k and v; masks cannot, so their width is of no consequence.
_WIDTH = 16


def sample_lengths(variant: Variant) -> tuple[int, int]:
    """Queries and keys at which a variant's mask is shown, ``Variant.sample_lengths``; raises DeclarationError."""
    given = variant.sample_lengths
    pair = given if isinstance(given, tuple) else (given, given)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise DeclarationError(
            location=class_location(type(variant)),
            variant=type(variant).__name__,
            name="sample_lengths",
            detail=f"{given!r} is neither a length nor a pair of lengths",
            fix="write sample_lengths = 512, or sample_lengths = (queries, keys)",
        )
    return pair


def sample_map(
    variant: Variant,
    lengths: tuple[int, int] | None = None,
    tile: tuple[int, int] = (64, 64),
    *,
    batch: int = 1,
    heads: int = 1,
    q_start: int = 0,
    seed: int = 0,
) -> TileMap:
    """The exact tile map of the mask, with declared tensors from ``variant.sample`` and as many key heads as heads.

    ``lengths`` are those of ``sample_lengths`` unless given. Raises LimitError for more than LONGEST queries or keys,
    OutOfRangeError for a tensor that the mask reads outside its extent.
    """
    queries, keys = lengths or sample_lengths(variant)
    if max(queries, keys) > LONGEST:
        raise LimitError(
            name="a length of the tile map",
            value=max(queries, keys),
            limit=f"masks are evaluated pair by pair up to {LONGEST}",
            fix=f"show the mask at lengths up to {LONGEST}",
        )
    sizes = {"B": batch, "H": heads, "G": heads, "M": queries, "N": keys, "D": _WIDTH, "Dv": _WIDTH}
    generator = torch.Generator().manual_seed(seed)
    with UserCode(variant, "sample", slot_location(variant.sample)):
        tensors = variant.sample(sizes | {"q_start": q_start}, generator)
    q = torch.randn(batch, heads, queries, _WIDTH, generator=generator)
    k = torch.randn(batch, heads, keys, _WIDTH, generator=generator)
    allowed = allowed_pairs(variant, q, k, k, q_start=q_start, tensors=tensors)
    return TileMap.of_pairs(type(variant).__name__, allowed, tile, q_start)
