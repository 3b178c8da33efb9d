"""Turns a folder of variant files into a page of their masks, each with its picture and numbers: ``make pictures``."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attncompiler.commands.new import write_whole
from attncompiler.mask_sample import sample_map
from attncompiler.tile_map import TileMap
from attncompiler.tile_picture import draw
from attncompiler.tile_report import compare_shapes, named, shape, times, verdict
from attncompiler.variant import Variant
from attncompiler.variant_file import load_variant

TILE = (32, 32)
_HEADS = 4
_HEAD = """# Masks in tiles

A kernel skips tiles without an allowed pair, leaves the mask out of full ones, and tests pair by pair in partial ones.
So what a mask saves depends on how its pairs fall into tiles. Below are the masks of the
[examples](../examples/README.md): white tiles are empty, orange ones partial with their allowed pairs in brown, blue
ones full.

*Allowed* is the share of allowed pairs; *bound* the speed-up over dense that no tiling can beat (all over allowed
pairs); then what {tile} tiles reach (all over visited pairs); *best tiles* are the largest within 5% of the best of 16
to 256 queries by 16 to 256 keys. Parameters have the values in the files, tensors those that `attncompiler check` would
draw. The lengths are `sample_lengths`, 512 unless the file says otherwise, so a wider window does not show. For your
own mask, other lengths and other tiles: `attncompiler explain FILE --lengths 1024 --tile 64 --picture mask.svg`.
This page is written by `make pictures`.

| mask | queries x keys | allowed | bound | {tile} tiles | best tiles |
|---|---|---:|---:|---:|---|
"""


@dataclass(frozen=True)
class Entry:
    """One mask: the files that share it, its code, its first file's idea, its pairs, and which head is shown."""

    files: tuple[Path, ...]
    code: str
    idea: str
    pairs: TileMap
    head: int

    @property
    def title(self) -> str:
        """The prelude's name of a mask that several files share, else the first file's name."""
        called = re.fullmatch(r"return (\w+)\(at\)", self.code)
        return called[1] if called and len(self.files) > 1 else self.files[0].stem


def entries(files: Iterable[Path]) -> list[Entry]:
    """The masks of variant files, by title; files whose mask has the same code and the same pairs share an entry.

    Of a mask that differs between heads it is the head with the fewest pairs, of four.
    """
    found: dict[object, Entry] = {}
    for file in files:
        variant = load_variant(file)
        if type(variant).mask is Variant.mask:
            continue
        every = sample_map(variant, tile=(1, 1), heads=_HEADS)
        head = int(every.allowed[0].argmin())
        code = _code(variant)
        key = code, every.lengths, every.states.numpy().tobytes()
        before = found.get(key, Entry((), code, _idea(file, variant), every, head))
        found[key] = replace(before, files=(*before.files, file))
    return sorted(found.values(), key=lambda entry: entry.title)


def page(masks: Sequence[Entry], path: Path) -> str:
    """The text of the page at ``path``; pictures lie in a folder of its name."""
    head = _HEAD.format(tile=f"{TILE[0]}x{TILE[1]}")
    rows = "".join(_row(entry) for entry in masks)
    return head + rows + "".join(_section(entry, path) for entry in masks)


def picture(entry: Entry, path: Path) -> Path:
    """Where the picture of an entry of the page at ``path`` lies."""
    return path.with_suffix("") / f"{entry.title}.svg"


def write(masks: Sequence[Entry], path: Path) -> None:
    """Write the page and its pictures."""
    path.with_suffix("").mkdir(parents=True, exist_ok=True)
    for entry in masks:
        tiles = entry.pairs.merged(TILE)
        draw(tiles, picture(entry, path), pairs=entry.pairs, head=entry.head)
    write_whole(path, page(masks, path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a page about the masks of a folder's variant files."""
    parser = argparse.ArgumentParser(prog="python -m attncompiler.gallery", description=__doc__)
    parser.add_argument("folder", type=Path, help="variant files, such as examples")
    parser.add_argument("page", type=Path, help="the page to write, such as docs/masks.md")
    options = parser.parse_args(arguments)
    masks = entries(sorted(options.folder.glob("*.py")))
    write(masks, options.page)
    print(f"wrote {options.page} and {len(masks)} pictures in {options.page.with_suffix('')}")


def _row(entry: Entry) -> str:
    pairs = entry.pairs.one(head=entry.head)
    tiles, best = pairs.merged(TILE), compare_shapes(pairs.merged((16, 16))).best
    cells = (
        f"[{entry.title}](#{entry.title})",
        "{} x {}".format(*pairs.lengths),
        f"{pairs.density:.1%}",
        times(pairs.speedup_bound),
        times(tiles.tiling_speedup),
        f"{shape(best)}: {times(best.tiling_speedup)}",
    )
    return f"| {' | '.join(cells)} |\n"


def _section(entry: Entry, path: Path) -> str:
    pairs, first = entry.pairs.one(head=entry.head), entry.files[0]
    tiles, best = pairs.merged(TILE), compare_shapes(pairs.merged((16, 16))).best
    links = ", ".join(f"[{f.name}]({os.path.relpath(f, path.parent)})" for f in entry.files)
    about = f"{entry.idea}: {links}." if len(entry.files) == 1 else f"The mask of {links}."
    heads = entry.pairs.states.shape[1]
    which, option = "", ""
    if heads > 1:
        which = f"This is {named('head', entry.head, heads)}, the one with the fewest pairs. "
        option = f" --head {entry.head}"
    place = os.path.relpath(picture(entry, path), path.parent)
    command = (
        f"attncompiler explain {first.parent.name}/{first.name} --tile {TILE[0]}{option} "
        f"--picture {entry.title}.svg"
    )
    return f"""
## {entry.title}

{_wrapped(about)}

```python
{entry.code}
```

![The tile map of {entry.title}]({place})

{_wrapped(f"{which}{pairs.density:.1%} of the pairs are allowed, {tiles.work:.1%} visited. {verdict(tiles, best)}")}

`{command}`
"""


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False))


def _code(variant: Variant) -> str:
    """The body of the mask, without its ``def`` line."""
    lines = inspect.getsource(type(variant).mask).splitlines()
    return textwrap.dedent("\n".join(lines[1:])).strip()


def _idea(file: Path, variant: Variant) -> str:
    """The first sentence of the file, or of the class when the file has none."""
    text = ast.get_docstring(ast.parse(file.read_text())) or inspect.getdoc(type(variant)) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".").replace("``", "`")


if __name__ == "__main__":
    main()
