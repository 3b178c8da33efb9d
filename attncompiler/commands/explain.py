"""Turns a variant file into the story of its compilation: every level, every pass and why."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from attncompiler.commands.options import backend_option, variant_arguments


@click.command()
@variant_arguments
@backend_option
def explain(
    file: Path, name: str | None, settings: tuple[str, ...], backend: Literal["auto", "cpp"]
) -> None:
    """Show every level between FILE and its kernel, the passes and their reasons."""
    from attncompiler.compiler import compile as compile_variant
    from attncompiler.variant_file import load_variant

    variant = load_variant(file, name, settings)
    click.echo(compile_variant(variant, backend=backend).explain())
