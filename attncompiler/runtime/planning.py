"""Turns the arguments of a call without queries and keys into the map of its tiles: checks them, runs the planner."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attncompiler.errors import ArgumentsError
from attncompiler.runtime.call_checks import LARGEST_POSITION, check_tensors
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.tile_tables import Sizes, readable
from attncompiler.tile_map import TileMap


def map_tiles(
    kernels: Kernels,
    arguments: tuple[Mapping[str, float], Mapping[str, Tensor]],
    lengths: tuple[int, int],
    tile: tuple[int, int],
    extents: tuple[int, int, int],
    q_start: int,
) -> TileMap:
    """The map for M and N = ``lengths``; ``extents`` are B, H, G, ``arguments`` values of parameters and tensors.

    Raises ArgumentsError for numbers that no call can have, and what ``check_tensors`` raises for the tensors.
    """
    batch, heads, groups = extents
    _check("lengths", lengths, 0, LARGEST_POSITION)
    _check("tile", tile, 1, LARGEST_POSITION)
    _check("batch, heads, groups", extents, 1, LARGEST_POSITION)
    _check("q_start", (q_start,), 0, LARGEST_POSITION - lengths[0])
    if heads % groups:
        raise ArgumentsError(
            name="tile_map",
            detail=f"{heads} heads are no multiple of {groups} groups",
            fix="give the numbers of heads of the queries and of the keys",
        )
    params, tensors = arguments
    plan = kernels.compilation.tile_plan
    trace = kernels.compilation.trace
    for name, length, keys in zip(trace.orders, lengths, (False, True), strict=False):
        order = trace.variant.layout.order(length, keys=keys)
        tensors = {**tensors, name: order.to(torch.int32)}
    given = [tensors.get(t.name) for t in plan.tensors]
    sizes = {"B": batch, "H": heads, "G": groups, "M": lengths[0], "N": lengths[1], "Dv": 1}
    types = check_tensors(kernels.name, plan.tensors, given, sizes, torch.device("cpu"))
    names = [t.name for t in plan.tensors]
    tables = kernels.planner("float32", dict(zip(names, types, strict=True)))
    read = {n: readable(x) for n, x in tensors.items() if n in names}
    states, allowed = tables.library(
        Sizes(batch, heads, groups, *lengths), q_start, params, read, tile, count=True
    )
    assert allowed is not None
    return TileMap(kernels.name, states, lengths, tile, allowed, q_start)


def _check(name: str, numbers: tuple[int, ...], least: int, most: int) -> None:
    if name in ("lengths", "tile") and (not isinstance(numbers, tuple | list) or len(numbers) != 2):
        raise ArgumentsError(
            name="tile_map", detail=f"{name} is {numbers!r}", fix="give one whole number, or two"
        )
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ArgumentsError(
                name="tile_map",
                detail=f"{name} is {numbers if len(numbers) > 1 else numbers[0]}",
                fix=f"give whole numbers from {least} to {most}",
            )
