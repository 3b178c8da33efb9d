"""Turns a variant file into the story of its compilation: every level, every pass and why, and the mask's tile map."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from attncompiler.commands.options import (
    DTYPES,
    backend_option,
    number_pair,
    shapes_of,
    variant_arguments,
)
from attncompiler.errors import AttnCompilerError
from attncompiler.runtime.errors import LimitError

if TYPE_CHECKING:
    from attncompiler.dsl import Variant
    from attncompiler.runtime.operator import Operator
    from attncompiler.tile_map import TileMap

_HEADS = 4
# Maps are refined up to the first number and refused beyond the second.
_MANY_TILES, _MOST_TILES = 1 << 20, 1 << 26


@click.command()
@variant_arguments
@backend_option
@click.option(
    "--lengths",
    callback=number_pair,
    metavar="M[,N]",
    help="Queries and keys of the tile map.  [default: sample_lengths of the variant, or 512]",
)
@click.option(
    "--tile",
    callback=number_pair,
    metavar="M[,N]",
    default="64",
    show_default=True,
    help="Its tiles.",
)
@click.option("--batch", type=click.IntRange(0, 63), default=0, show_default=True)
@click.option("--head", type=click.IntRange(0, 63), default=0, show_default=True)
@click.option(
    "shapes",
    "--cost",
    multiple=True,
    callback=shapes_of,
    metavar="B,H,S,D",
    help="Batch, heads, length, head dimension of a forward call on the CPU, to say what it costs; repeatable.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Elements of that call.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the tile map to this .svg or .png.",
)
def explain(
    file: Path,
    name: str | None,
    settings: tuple[str, ...],
    backend: Literal["auto", "cpp"],
    lengths: tuple[int, int] | None,
    tile: tuple[int, int],
    batch: int,
    head: int,
    shapes: tuple[tuple[int, int, int, int], ...],
    dtype: str,
    picture: Path | None,
) -> None:
    """Show every level between FILE and its kernel, the passes and their reasons, and the mask's tile map.

    The tile map says which tiles are empty, partial and full, the exact work ratio, the best speed-up that any tiling
    could reach and what each tile shape reaches. Tensors that the mask reads are drawn as for check, for four heads or
    more. With --cost a last chapter gives the work of a call, its predicted and measured time, what bounds it, and how
    near it comes to the CPU's peaks.
    """
    from attncompiler.compiler import compile as compile_variant
    from attncompiler.explanation import explain as tell
    from attncompiler.tile_report import chapter
    from attncompiler.variant_file import load_variant

    if picture is not None:
        from attncompiler.tile_picture import check_picture

        check_picture(picture)
    variant = load_variant(file, name, settings)
    operator = compile_variant(variant, backend=backend)
    lines: Iterator[str]
    tiles = None
    try:
        tiles = _tile_map(variant, lengths, tile, batch, head, picture is not None)
        lines = chapter(tiles, tile, batch=batch, head=head)
    except AttnCompilerError as error:
        if lengths is not None or picture is not None:
            raise
        lines = _without_map(error)
    cost = [line for shape in shapes for line in _cost(operator, shape, dtype)]
    click.echo(tell(operator.compilation, operator._engines.explain(), lines, cost), nl=False)
    if picture is not None and tiles is not None:
        from attncompiler.tile_picture import draw

        draw(tiles.merged(tile), picture, pairs=tiles, batch=batch, head=head)
        click.echo(f"wrote {picture}")


def _cost(operator: Operator, shape: tuple[int, int, int, int], dtype: str) -> Iterator[str]:
    from attncompiler.comparison import Size
    from attncompiler.tuning.cost_report import cost_lines

    batch, heads, length, head_dim = shape
    return cost_lines(operator, Size(length, head_dim, dtype, batch, heads))


def _tile_map(
    variant: Variant,
    lengths: tuple[int, int] | None,
    tile: tuple[int, int],
    batch: int,
    head: int,
    drawn: bool,
) -> TileMap:
    """A map finer than the asked one, where there is room: other tile shapes and the picture's background need it."""
    from attncompiler.mask_sample import LONGEST, sample_lengths, sample_map

    queries, keys = lengths or sample_lengths(variant)
    side = 1 if drawn and max(queries, keys) <= LONGEST else 16
    while (queries // side + 1) * (keys // side + 1) > _MANY_TILES:
        side *= 2
    finest = gcd(side, tile[0]), gcd(side, tile[1])
    if (queries // finest[0] + 1) * (keys // finest[1] + 1) > _MOST_TILES:
        raise LimitError(
            name="the number of tiles",
            value=-(-queries // finest[0]) * -(-keys // finest[1]),
            limit=f"a map has at most {_MOST_TILES}",
            fix="choose larger tiles with --tile, best powers of two",
        )
    heads = max(_HEADS, head + 1)
    return sample_map(variant, (queries, keys), finest, batch=batch + 1, heads=heads)


def _without_map(error: AttnCompilerError) -> Iterator[str]:
    """Why nobody asked for these lengths and they do not suit the variant."""
    yield from (f"   {line}" for line in ["None at the usual lengths.", *str(error).splitlines()])
    yield "   Choose others with --lengths, or in the class: sample_lengths = (queries, keys)."
