"""Turns the example files into the table of examples/README.md; run this file to write it anew."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from attncompiler.compiler import compile as compile_variant
from attncompiler.variant_file import load_variant

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
README = EXAMPLES / "README.md"
SLOTS = ("prepare", "scale", "score", "mask", "normalize", "output")
# The second paragraph of a docstring opens with the paper: its title and, in parentheses, who and when.
PAPER = re.compile(r"(.+?\([^()]*\b(?:19|20)\d\d\b[^()]*\))")
HEAD = """# Examples

One idea a file, each the formula of its paper in the slots that change; whatever is not written keeps its default.
`attncompiler check examples/cog.py` compares a file's kernel with its formula, `attncompiler explain` shows how it came
about. *Passes* is how often the derived algorithm walks over the keys: a result of the compiler's algebra, not of the
file. The table is written by `python tests/example_table.py`; [docs/masks.md](../docs/masks.md) shows the masks.

| file | idea | paper | slots | passes |
|---|---|---|---|---|
"""


def files() -> list[Path]:
    """The examples, by name."""
    return sorted(EXAMPLES.glob("*.py"))


def idea_and_paper(path: Path) -> tuple[str, str]:
    """First line and source of a file's docstring; raises ValueError when it names no paper."""
    paragraphs = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "").split(
        "\n\n"
    )
    found = PAPER.match(" ".join(paragraphs[1].split())) if len(paragraphs) > 1 else None
    if found is None:
        raise ValueError(f"{path.name}: the second paragraph of the docstring names no paper")
    return " ".join(paragraphs[0].split()).rstrip("."), found[1]


def row(path: Path) -> str:
    """One line of the table."""
    variant = load_variant(path)
    slots = [name for name in SLOTS if name in vars(type(variant))]
    passes = compile_variant(variant).compilation.plan.passes
    idea, paper = idea_and_paper(path)
    return f"| [{path.name}]({path.name}) | {idea} | {paper} | {', '.join(slots)} | {passes} |"


def table() -> str:
    """The whole file."""
    return HEAD + "".join(row(path) + "\n" for path in files())


if __name__ == "__main__":
    README.write_text(table())
