"""The page of masks: every example with a mask is on it, with the numbers and the picture of today."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from attncompiler.dsl import Variant
from attncompiler.gallery import TILE, Entry, entries, main, page, picture
from attncompiler.variant_file import load_variant
from tests.example_table import files

PAGE = Path(__file__).parents[1] / "docs" / "masks.md"
ANEW = "write it anew: make pictures"


@pytest.fixture(scope="module")
def masks() -> list[Entry]:
    return entries(files())


def test_every_mask_of_the_examples_is_on_the_page(masks: list[Entry]) -> None:
    text = PAGE.read_text()
    own = {f for f in files() if type(load_variant(f)).mask is not Variant.mask}
    assert {f for entry in masks for f in entry.files} == own
    for file in own:
        assert f"](../examples/{file.name})" in text, ANEW
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).is_file()


def test_the_page_is_up_to_date(masks: list[Entry]) -> None:
    assert PAGE.read_text() == page(masks, PAGE), ANEW


def test_the_pictures_are_up_to_date(masks: list[Entry]) -> None:
    pictures = {picture(entry, PAGE) for entry in masks}
    assert pictures == set(PAGE.with_suffix("").iterdir())
    for entry in masks:
        # What a picture's bytes are depends on the versions of two libraries, what is written in it does not.
        svg = picture(entry, PAGE).read_bytes()
        assert len(svg) < 60_000
        text = "".join(ElementTree.fromstring(svg).itertext())
        tiles = entry.pairs.merged(TILE).one(head=entry.head)
        share = f"{tiles.work:.1%} of the pairs visited, {tiles.density:.1%} allowed"
        tally = [
            f"{n} {name}"
            for n, name in zip(tiles.counts.values(), ("empty", "partial", "full"), strict=True)
        ]
        for words in (entry.pairs.name, share, *tally):
            assert words in text, f"{entry.title}: {ANEW}"


def test_a_gallery_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "from attncompiler.dsl import Variant, causal\n\nclass V(Variant):\n"
    mask = "    def mask(self, at):\n        return causal(at)\n"
    strict = mask.replace("causal(at)", "at.k < at.q")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "first.py").write_text(f'"""The first."""\n{head}{mask}')
    (folder / "second.py").write_text(f'{head}    """The ``second``."""\n{strict}')
    (folder / "third.py").write_text(f"{head}    window: int = 3\n{mask}")
    (folder / "plain.py").write_text(f"{head}    scale = 1.0\n")
    main([str(folder), str(tmp_path / "page.md")])
    assert "2 pictures" in capsys.readouterr().out
    text = (tmp_path / "page.md").read_text()
    assert "The mask of [first.py](mine/first.py), [third.py](mine/third.py)." in text
    assert "The `second`: [second.py](mine/second.py)." in text
    assert "attncompiler explain mine/first.py --tile 32 --picture causal.svg" in text
    assert {p.name for p in (tmp_path / "page").iterdir()} == {"causal.svg", "second.svg"}
