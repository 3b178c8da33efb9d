"""Layouts: the order in which a kernel walks over tokens that lie on a grid, so that its tiles are boxes of the grid.

Tokens of an image or a video come row by row; sixty-four of them in turn are a thin line, and a window around a point
of the grid touches nearly every line. In the order of a layout they are a box, so most tiles lie wholly inside or
outside of the window. Formulas never notice: ``at.q`` and ``at.k`` stay positions in the user's own order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from attncompiler.caller import user_location
from attncompiler.errors import LayoutDeclarationError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """Tokens of a row-major grid, box by box: ``layout = Boxes((64, 64), tile=(8, 8))`` in a variant.

    ``grid`` are the lengths of the axes, (T, H, W), (H, W) or (L,); ``tile`` those of a box, ``key_tile`` those of the
    keys' boxes where they differ. With ``dilation`` each axis is first split into its residue classes, so that the
    neighbours of a dilated window (arXiv:2209.15001) become neighbours. Tokens behind the grid (text after a video)
    stay where they are. Boxes that the border of the grid cuts come last.

    ``permuted_by="op"``: the operator takes and gives tokens in row-major order and permutes inside. With
    ``"caller"`` q, k, v and the result are in the order of the layout already, in ``arranged`` and ``restored`` form,
    which costs no copy in a model that keeps that order between layers. Captured tensors keep row-major order.

    Boxes as tiles: Generalized Neighborhood Attention (arXiv:2504.16922), Sliding Tile Attention (arXiv:2502.04507).
    """

    grid: tuple[int, ...]
    tile: tuple[int, ...]
    key_tile: tuple[int, ...] | None = None
    dilation: int | tuple[int, ...] = 1
    permuted_by: Literal["op", "caller"] = "op"

    def __post_init__(self) -> None:
        grid = self._checked("grid", self.grid)
        object.__setattr__(self, "grid", grid)
        for name in ("tile", "key_tile"):
            value = getattr(self, name)
            if value is None and name == "key_tile":
                value = self.tile
            object.__setattr__(self, name, self._checked(name, value, grid))
        steps = self.dilation
        steps = (steps,) * len(grid) if isinstance(steps, int) else steps
        object.__setattr__(self, "dilation", self._checked("dilation", steps, grid))
        if self.permuted_by not in ("op", "caller"):
            _refuse("permuted_by", self.permuted_by, 'write "op" or "caller"')
        if self.permuted_by == "caller" and self.tile != self.key_tile:
            _refuse("key_tile", self.key_tile, "tokens that the caller permutes have one order")

    def _checked(
        self, name: str, value: object, grid: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not numbers or not all(type(n) is int and n >= 1 for n in numbers):
            _refuse(name, value, "give one whole number of at least 1 for each axis")
        if grid is not None and len(numbers) != len(grid):
            _refuse(name, value, f"give {len(grid)} numbers, one for each axis of the grid")
        if grid is not None and any(n > length for n, length in zip(numbers, grid, strict=True)):
            _refuse(name, value, f"no number may be larger than its axis of the grid {grid}")
        return numbers

    @property
    def size(self) -> int:
        """The number of tokens on the grid."""
        return prod(self.grid)

    def order(self, length: int | None = None, *, keys: bool = False) -> Tensor:
        """int64 ``[length]``: which token of the row-major order comes at each position, for queries or keys."""
        return self._table(length, keys, False)

    def inverse(self, length: int | None = None, *, keys: bool = False) -> Tensor:
        """int64 ``[length]``: at which position each token of the row-major order comes."""
        return self._table(length, keys, True)

    def arranged(self, x: Tensor, dim: int = 2, *, keys: bool = False) -> Tensor:
        """A tensor whose axis ``dim`` is tokens in row-major order, in the order of the layout."""
        return x.index_select(dim, self.order(x.shape[dim], keys=keys))

    def restored(self, x: Tensor, dim: int = 2, *, keys: bool = False) -> Tensor:
        """The opposite of ``arranged``."""
        return x.index_select(dim, self.inverse(x.shape[dim], keys=keys))

    def _table(self, length: int | None, keys: bool, inverse: bool) -> Tensor:
        tile = self.key_tile if keys else self.tile
        assert tile is not None
        assert isinstance(self.dilation, tuple)
        table = _orders(self.grid, tile, self.dilation)[inverse]
        return table if length is None else lengthened(table, length, self.grid, keys)


def lengthened(table: Tensor, length: int, grid: tuple[int, ...], keys: bool) -> Tensor:
    """An order of the tokens of a grid, followed by the tokens behind the grid."""
    import torch

    size = table.shape[0]
    if length == size:
        return table
    if length < size:
        raise ShapeError(
            name="k" if keys else "q",
            detail=f"it has {length} tokens, the grid {grid} of the layout {size}",
            fix="pass all tokens of the grid; more may follow them",
        )
    return torch.cat([table, torch.arange(size, length, device=table.device)])


@cache
def _orders(
    grid: tuple[int, ...], tile: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The order and its inverse: cut boxes last, then by residue class, box and place in the box."""
    import torch

    key = torch.zeros(grid, dtype=torch.int64)
    cut = torch.zeros(grid, dtype=torch.bool)
    parts: list[list[Any]] = [[], [], []]
    for axis, (length, size, step) in enumerate(zip(grid, tile, dilation, strict=True)):
        shape = [-1 if a == axis else 1 for a in range(len(grid))]
        c = torch.arange(length)
        place, members = c // step, (length - c % step + step - 1) // step
        for numbers, extent, found in (
            (c % step, step, parts[0]),
            (place // size, length, parts[1]),
            (place % size, size, parts[2]),
        ):
            found.append((numbers.view(shape), extent))
        cut |= ((place // size + 1) * size > members).view(shape)
    for numbers, extent in (part for level in parts for part in level):
        key = key * extent + numbers
    order = torch.argsort(key.flatten() + cut.flatten() * (int(key.max()) + 1), stable=True)
    return order, torch.argsort(order)


def _refuse(name: str, value: object, fix: str) -> None:
    raise LayoutDeclarationError(location=user_location(), name=name, value=value, fix=fix)
