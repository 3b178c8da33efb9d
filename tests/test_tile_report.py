"""What ``explain`` says about a mask's tiles: the simulator's table, the verdict, the chapter; and the pictures."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, causal, neighborhood
from attncompiler.mask_sample import sample_map
from attncompiler.tile_map import EMPTY, FULL, PARTIAL, TileMap
from attncompiler.tile_picture import (
    TINTS,
    MissingPackageError,
    PictureError,
    check_picture,
    draw,
    pixels,
)
from attncompiler.tile_report import SIZES, chapter, compare_shapes, verdict
from attncompiler.variant_file import load_variant

EXAMPLES = Path(__file__).parents[1] / "examples"


def lower(length: int, tile: int) -> TileMap:
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return TileMap.of_pairs("Causal", mask, (tile, tile))


def blocks(length: int, block: int) -> TileMap:
    """Pairs of one block: perfectly sparse for tiles that divide it."""
    place = torch.arange(length) // block
    return TileMap.of_pairs("Blocks", (place[:, None] == place)[None, None], (16, 16))


def test_every_shape_is_the_enumerated_one() -> None:
    mask = sample_map(load_variant(EXAMPLES / "generalized_neighborhood.py"), tile=(1, 1))
    shapes = compare_shapes(mask.merged((16, 16)))
    assert set(shapes.maps) == {(r, c) for r in SIZES for c in SIZES}
    for tile, tiles in shapes.maps.items():
        direct = mask.merged(tile)
        assert torch.equal(tiles.states, direct.states)
        assert tiles.work == direct.work
        assert tiles.tiling_speedup <= tiles.speedup_bound == mask.speedup_bound


def test_the_best_shape_is_the_largest_of_those_as_good() -> None:
    shapes = compare_shapes(blocks(512, 64))
    assert shapes.best.tile == (64, 64)
    assert shapes.best.tiling_speedup == shapes.best.speedup_bound == 8
    assert shapes.maps[128, 64].tiling_speedup == 4


class Neighborhood(Variant):
    """One axis of generalized neighborhood attention."""

    window: int = 24
    stride: int = 1

    def mask(self, at):
        return neighborhood(at, self.window, stride=self.stride)


@pytest.mark.parametrize(
    ("stride", "tile", "speedup", "partial"),
    [(1, (32, 32), 3.66, 48), (32, (32, 32), 3.66, 48), (64, (64, 32), 4.0, 0)],
)
def test_strides_that_fit_the_tiles_reach_the_bound(
    stride: int, tile: tuple[int, int], speedup: float, partial: int
) -> None:
    # A quarter of 4096 tokens, window 1024, strides 1, 128 and 256 in tiles of 128 and 256 by 128. Without a fitting
    # stride two tiles are partial in each of the 24 rows of tiles whose window the borders do not move.
    tiles = sample_map(Neighborhood(window=256, stride=stride), (1024, 1024), tile)
    assert tiles.speedup_bound == 4
    assert tiles.tiling_speedup == pytest.approx(speedup, abs=0.005)
    assert tiles.counts[PARTIAL] == partial


def test_two_axes_in_tiles_of_rows_stay_far_from_the_bound() -> None:
    # 64 x 64 tokens, window 24 x 24, two rows a tile: a pair is allowed if it is along both axes.
    axis = sample_map(Neighborhood(), (64, 64), (1, 1)).states[0, 0]
    mask = torch.kron(axis, axis)[None, None] > 0
    tiles = TileMap.of_pairs("Rows", mask, (128, 128))
    assert f"{tiles.speedup_bound:.2f} {tiles.tiling_speedup:.2f}" == "7.11 2.53"


def test_shapes_that_a_map_cannot_tell_are_left_out() -> None:
    assert set(compare_shapes(lower(100, 32)).maps) == {
        (r, c) for r in (32, 64, 128) for c in (32, 64, 128)
    }
    assert set(compare_shapes(lower(40, 48)).maps) == {(48, 48)}


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        (lower(512, 64), "more than 2.00x faster than dense; 64x64 tiles reach 1.78x. Worth it."),
        (blocks(512, 64).merged((256, 256)), "256x256 tiles reach 2.00x. Worth it in part: 75% of"),
        (blocks(512, 64).merged((512, 512)), "Not worth it with these tiles. 64x64 tiles reach"),
    ],
)
def test_the_verdict_says_what_tiles_reach(tiles: TileMap, says: str) -> None:
    assert says in verdict(tiles, compare_shapes(blocks(512, 64)).best)


def test_the_verdict_on_masks_without_use_for_tiles() -> None:
    def of(mask: torch.Tensor) -> str:
        tiles = TileMap.of_pairs("Any", mask[None, None], (16, 16))
        return verdict(tiles, tiles)

    assert "allows every pair" in of(torch.ones(64, 64, dtype=torch.bool))
    assert "allows no pair" in of(torch.zeros(64, 64, dtype=torch.bool))
    assert "scattered over all tiles" in of(torch.arange(64).expand(64, 64) % 4 == 0)
    assert "costs nearly the same" in of(torch.arange(64).expand(64, 64) > 2)


def test_the_chapter_of_causal_attention() -> None:
    class Causal(Variant):
        def mask(self, at):
            return causal(at)

    lines = list(chapter(sample_map(Causal(), (256, 256), (16, 16)), (64, 64)))
    assert lines[0].startswith("   256 queries and 256 keys in tiles of 64x64: . empty")
    assert lines[2:7] == [
        "     query  keys 0 to 255, 64 a character",
        "         0  +...",
        "        64  #+..",
        "       128  ##+.",
        "       192  ###+",
    ]
    text = "\n".join(lines)
    assert "tiles:   6 empty, 4 partial, 6 full" in text
    assert "allowed: 32896 of 65536 pairs (50.20%)" in text
    assert "visited: 40960 of 65536 pairs, a work ratio of 0.6250, 40.0% of them in partial" in text
    (row,) = (line for line in lines if line.split()[:1] == ["16"] and "x" in line)
    assert row.split()[1:3] == ["1.88x", "0.53*"]


def test_the_chapter_tells_which_head_it_shows() -> None:
    tiles = sample_map(load_variant(EXAMPLES / "shifted_groups.py"), heads=2, tile=(16, 16))
    first, second = ("\n".join(chapter(tiles, head=head)) for head in (0, 1))
    assert "This is any batch, head 1 of 2. All together: " in second
    assert first != second
    with pytest.raises(IndexError):
        list(chapter(tiles, head=2))


def test_an_operator_explains_a_map_it_is_given() -> None:
    variant = load_variant(EXAMPLES / "longformer.py")
    operator = compile_variant(variant)
    plain, tiles = operator.explain(), sample_map(variant, (256, 256), (16, 16))
    assert "The tile map" not in plain
    told = operator.explain(tiles, (32, 32))
    assert told.startswith(plain)
    assert "\n11. The tile map\n   256 queries and 256 keys in tiles of 32x32" in told


def test_pixels_are_darker_where_allowed_and_tinted_by_the_tile() -> None:
    pairs = lower(8, 1)
    drawn = pixels(pairs.merged((4, 4)), pairs)
    assert drawn.shape == (8, 8, 3)
    assert tuple(drawn[0, 7]) == TINTS[EMPTY]
    assert tuple(drawn[0, 3]) == TINTS[PARTIAL]
    shade = drawn[0, 0] / TINTS[PARTIAL]
    assert max(shade) < 0.7
    assert drawn[7, 0] / TINTS[FULL] == pytest.approx(shade, abs=0.01)
    with pytest.raises(ValueError, match="different lengths"):
        pixels(pairs.merged((4, 4)), lower(9, 1))


@pytest.mark.parametrize("name", ["radial", "all_or_here", "bottom_right"])
def test_pictures_are_small_and_the_same_every_time(tmp_path: Path, name: str) -> None:
    pairs = sample_map(load_variant(EXAMPLES / f"{name}.py"), heads=2, tile=(1, 1))
    for file in ("a.svg", "b.svg", "c.png"):
        draw(pairs.merged((32, 32)), tmp_path / file, pairs=pairs)
    svg = (tmp_path / "a.svg").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes()
    assert len(svg) < 60_000
    text = "".join(ElementTree.fromstring(svg).itertext())
    for words in (pairs.name, "of the pairs visited", "32x32 tiles", "partial", "full", "key"):
        assert words in text
    png = (tmp_path / "c.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", png[16:24])) >= 400


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3)])
def test_pictures_of_unusual_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = torch.ones(1, 1, *shape, dtype=torch.bool)
    draw(TileMap.of_pairs("Any", mask, (64, 64), q_start=9), tmp_path / "any.svg")
    assert (tmp_path / "any.svg").stat().st_size < 60_000


def test_a_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    for name in ("mask.gif", "mask"):
        with pytest.raises(PictureError, match="its name ends in"):
            draw(lower(8, 4), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"needs matplotlib") as caught:
        check_picture(Path("mask.svg"))
    assert "pip install 'attncompiler[pictures]'" in str(caught.value)
