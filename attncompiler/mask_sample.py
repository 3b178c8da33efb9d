"""Turns a variant and two lengths into the tile map of its mask, on the example tensors that ``check`` draws too."""

from __future__ import annotations

from typing import Any

import torch

from attncompiler.caller import class_location
from attncompiler.errors import DeclarationError
from attncompiler.oracle import allowed_pairs
from attncompiler.slots import slot_location
from attncompiler.tile_map import TileMap
from attncompiler.user_code import UserCode
from attncompiler.variant import Variant

LONGEST = 1024
# prepare may look at q, k and v; masks cannot, so their width is of no consequence.
_WIDTH = 16


def sample_lengths(variant: Variant) -> tuple[int, int]:
    """Queries and keys at which a variant's mask is shown; raises DeclarationError for what are no lengths.

    They are ``Variant.sample_lengths`` or, of a variant with a layout that does not say, those of its grid.
    """
    given = variant.sample_lengths
    if variant.layout is not None and given is Variant.sample_lengths:
        given = variant.layout.size
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

    ``lengths`` are those of ``sample_lengths`` unless given. Up to LONGEST queries and keys the oracle looks at every
    pair, beyond a planning kernel is built. Tokens stand in the order of the variant's layout. Raises OutOfRangeError
    for a tensor that the oracle reads outside its extent.
    """
    queries, keys = lengths or sample_lengths(variant)
    sizes = {"B": batch, "H": heads, "G": heads, "M": queries, "N": keys, "D": _WIDTH, "Dv": _WIDTH}
    generator = torch.Generator().manual_seed(seed)
    with UserCode(variant, "sample", slot_location(variant.sample)):
        tensors = variant.sample(sizes | {"q_start": q_start}, generator)
    if max(queries, keys) > LONGEST:
        return _planned(variant, (queries, keys), tile, batch, heads, q_start, tensors)
    q = torch.randn(batch, heads, queries, _WIDTH, generator=generator)
    k = torch.randn(batch, heads, keys, _WIDTH, generator=generator)
    allowed = allowed_pairs(variant, q, k, k, q_start=q_start, tensors=tensors)
    if variant.layout is not None:
        for axis, length, of_keys in ((-2, queries, False), (-1, keys, True)):
            order = variant.layout.order(length, keys=of_keys)
            allowed = allowed.index_select(axis, order)
    return TileMap.of_pairs(type(variant).__name__, allowed, tile, q_start)


def _planned(
    variant: Variant,
    lengths: tuple[int, int],
    tile: tuple[int, int],
    batch: int,
    heads: int,
    q_start: int,
    tensors: dict[str, torch.Tensor],
) -> TileMap:
    """The map that the planning kernel makes; lengths may be of any size."""
    from attncompiler.compiler import compile as compile_variant

    operator = compile_variant(variant)
    arguments: dict[str, Any] = {"q_start": q_start, **tensors}
    return operator.tile_map(lengths, tile, batch=batch, heads=heads, **arguments)
