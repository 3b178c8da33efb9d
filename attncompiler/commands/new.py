"""Turns a name into a commented starter file that builds as it is."""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from pathlib import Path

import click


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Write NAME.py: a commented variant that builds as it is."""
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[a-z]*", name.removesuffix(".py"))
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    file_name = "_".join(word.lower() for word in words)
    if not class_name.isidentifier() or keyword.iskeyword(file_name):
        raise click.UsageError(f"{name!r} makes no Python name; try: attncompiler new my_attention")
    path = Path(f"{file_name}.py")
    if path.exists():
        raise click.UsageError(f"{path} already exists; choose another name or remove it first")
    write_whole(path, _starter(class_name, path))
    click.echo(f"wrote {path}. Next:\n  attncompiler check {path}\n  attncompiler bench {path}")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it: beside its place first, then renamed."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    os.chmod(part.name, 0o644)
    os.replace(part.name, path)


def _starter(class_name: str, path: Path) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("attncompiler.templates", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("variant.py.j2").render(class_name=class_name, path=path)
