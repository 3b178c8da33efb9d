"""Turns the prelude and the build cache into two lists: what formulas can use, which kernels are built."""

from __future__ import annotations

import inspect

import click


@click.command(name="list")
def list_() -> None:
    """List what the prelude offers and which kernels the cache holds."""
    from attncompiler.prelude import masks, normalizers, scores
    from attncompiler.runtime import cache

    for title, module in (("masks", masks), ("normalizers", normalizers), ("scores", scores)):
        click.secho(title, bold=True)
        for name, function in vars(module).items():
            own = getattr(function, "__module__", "") == module.__name__
            if own and callable(function) and not name.startswith("_"):
                first = (inspect.getdoc(function) or "").partition("\n")[0]
                click.echo(f"  {name:<22}{first}")
    click.secho("built kernels", bold=True)
    kernels = list(cache.entries())
    for path in kernels:
        click.echo(f"  {path}")
    if not kernels:
        click.echo(f"  none in {cache.cache_folder()}")
