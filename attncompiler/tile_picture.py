"""Turns a tile map into a picture: tiles coloured by their state, behind them the mask at its own resolution."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attncompiler.tile_map import EMPTY, FULL, PARTIAL, TileMap
from attncompiler.tile_report import named, shape
from attncompiler.variant_file import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

SUFFIXES = (".png", ".svg")
# Blue and orange stay apart for every kind of colour vision, and in grey print.
TINTS = {EMPTY: (255, 255, 255), PARTIAL: (253, 216, 168), FULL: (140, 200, 255)}
# How dark a pair is by its own state; PARTIAL is a cell of several pairs, when the mask is given in larger cells.
_INK = {EMPTY: 1.0, PARTIAL: 0.8, FULL: 0.65}
# More lines than this between tiles would be all one sees.
_LINES = 72


class PictureError(UsageError):
    """A path whose suffix names no format that pictures are drawn in."""

    message = "cannot draw a picture to {path}: its name ends in {suffix!r}"
    advice = "choose a name that ends in {known}"


class MissingPackageError(UsageError):
    """A package that only some installations have."""

    message = "{what} needs {package}, which is not installed"
    advice = "pip install 'attncompiler[{extra}]' (or pip install {package})"


def check_picture(path: Path) -> None:
    """Raise PictureError or MissingPackageError when no picture could be written to ``path``."""
    if path.suffix.lower() not in SUFFIXES:
        known = " or ".join(SUFFIXES)
        raise PictureError(path=path, suffix=path.suffix, known=known)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            what="a picture", package="matplotlib", extra="pictures"
        ) from error


def draw(
    tiles: TileMap, path: Path, *, pairs: TileMap | None = None, batch: int = 0, head: int = 0
) -> None:
    """Write the picture of one batch and head; the suffix of ``path``, .png or .svg, is its format.

    ``pairs`` is a finer map of the same mask, by single pairs for its own resolution: what lies behind the tiles. The
    same maps give the same bytes. Raises PictureError for another suffix, MissingPackageError without matplotlib.
    """
    check_picture(path)
    import matplotlib

    with matplotlib.rc_context():
        # What a user likes in plots of their own has no say.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": tiles.name, "svg.fonttype": "none"})
        figure = _figure(tiles, tiles if pairs is None else pairs, batch, head, path.suffix.lower())
        written = BytesIO()
        metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(written, format=path.suffix.lower()[1:], dpi=160, metadata=metadata)
    path.write_bytes(written.getvalue())


def pixels(tiles: TileMap, pairs: TileMap) -> Pixels:
    """The mask in red, green and blue, one pixel a cell of ``pairs``: darker where allowed, tinted by the tile."""
    rows, columns = (t // p for t, p in zip(tiles.tile, pairs.tile, strict=True))
    if pairs.merged(tiles.tile).lengths != tiles.lengths:
        raise ValueError("the two maps are of different lengths")
    cells = pairs.states[0, 0].numpy()
    state = tiles.states[0, 0].numpy().repeat(rows, 0).repeat(columns, 1)
    state = state[: cells.shape[0], : cells.shape[1]]
    tint = np.array([TINTS[s] for s in (EMPTY, PARTIAL, FULL)], np.float32)
    ink = np.array([_INK[s] for s in (EMPTY, PARTIAL, FULL)], np.float32)
    coloured: Pixels = (tint[state] * ink[cells][..., None]).astype(np.uint8)
    return coloured


def _figure(tiles: TileMap, pairs: TileMap, batch: int, head: int, suffix: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    queries, keys = tiles.lengths
    shown = tiles.one(batch, head)
    # Room for titles and the legend, the mask itself 4 inches along its longer side.
    longer = max(queries, keys)
    width, height = (max(4.0 * n / longer, 1.0) for n in (keys, queries))
    figure = Figure(figsize=(max(width, 3.2) + 1.0, height + 1.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        pixels(shown, pairs.one(batch, head)),
        extent=(0, keys, queries + tiles.q_start, tiles.q_start),
        # A viewer scales the cells of an SVG; a PNG has a resolution of its own.
        interpolation="none" if suffix == ".svg" else "auto",
        aspect="equal" if min(queries, keys) * 6 >= longer else "auto",
    )
    _lines(axes, tiles)
    counts = shown.counts
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    batches, heads = tiles.states.shape[:2]
    which = f", {named('head', head, heads)}" if heads > 1 else ""
    which += f", {named('batch', batch, batches)}" if batches > 1 else ""
    figure.suptitle(
        f"{tiles.name}{which}\n{shown.work:.1%} of the pairs visited, {shown.density:.1%} allowed",
        fontsize=10,
    )
    looks = {
        f"{counts[EMPTY]} empty": TINTS[EMPTY],
        f"{counts[PARTIAL]} partial": TINTS[PARTIAL],
        "its allowed pairs": _inked(TINTS[PARTIAL]),
        f"{counts[FULL]} full": _inked(TINTS[FULL]),
    }
    handles = [Patch(facecolor=_hex(c), edgecolor="0.5", label=name) for name, c in looks.items()]
    figure.legend(
        handles=handles, title=f"{shape(tiles)} tiles", loc="outside lower center", ncols=4,
        fontsize=8, title_fontsize=8, frameon=False, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _lines(axes: Axes, tiles: TileMap) -> None:
    """Thin lines between tiles, where there are few enough to see them apart."""
    queries, keys = tiles.lengths
    rows, columns = (range(t, n, t) for n, t in zip(tiles.lengths, tiles.tile, strict=True))
    if max(len(rows), len(columns)) > _LINES:
        return
    first = tiles.q_start
    axes.hlines([first + r for r in rows], 0, keys, colors="0.75", linewidths=0.4)
    axes.vlines(list(columns), first, first + queries, colors="0.75", linewidths=0.4)


def _inked(colour: tuple[int, ...]) -> tuple[int, ...]:
    """The colour of an allowed pair."""
    return tuple(int(part * _INK[FULL]) for part in colour)


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
