"""Turns the prelude and the build cache into two lists: what formulas can use, which kernels are built."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable

import click


@click.command(name="list")
def list_() -> None:
    """List what formulas can use and which kernels the cache holds."""
    from attncompiler import dsl, functions
    from attncompiler.prelude import masks, normalizers, scores
    from attncompiler.runtime import cache

    for title, module in (("masks", masks), ("normalizers", normalizers), ("scores", scores)):
        click.secho(title, bold=True)
        for name, function in vars(module).items():
            own = getattr(function, "__module__", "") == module.__name__
            if own and callable(function) and not name.startswith("_"):
                first = (inspect.getdoc(function) or "").partition("\n")[0]
                call = _call(function)
                click.echo(
                    f"  {call:<42}{first}" if len(call) < 42 else f"  {call}\n{'':44}{first}"
                )
    click.secho("functions", bold=True)
    names = [n for n in dsl.__all__ if hasattr(functions, n) and n != "Value"]
    click.echo(textwrap.fill(" ".join(names), 100, initial_indent="  ", subsequent_indent="  "))
    click.secho("built kernels", bold=True)
    kernels = list(cache.entries())
    for path in kernels:
        click.echo(f"  {path}")
    if not kernels:
        click.echo(f"  none in {cache.cache_folder()}")


def _call(function: Callable[..., object]) -> str:
    """How a formula calls it: the name, the arguments and their defaults."""

    def written(argument: inspect.Parameter) -> str:
        default = argument.default
        if default is argument.empty:
            return argument.name
        return f"{argument.name}={default.__name__ if callable(default) else default}"

    arguments = inspect.signature(function).parameters.values()
    return f"{function.__name__}({', '.join(map(written, arguments))})"
