"""Turns options that several commands share into values: the variant's file, element types, head dimensions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")

Decorated = Callable[..., Any]


def variant_arguments(function: Decorated) -> Decorated:
    """``FILE --name NAME --set parameter=value``: which variant a command works on."""
    for decorate in (
        click.option(
            "settings",
            "--set",
            multiple=True,
            metavar="P=VALUE",
            help="A parameter's value; repeatable.",
        ),
        click.option("--name", help="Which variant, when the file defines several."),
        click.argument("file", type=click.Path(path_type=Path)),
    ):
        function = decorate(function)
    return function


def backend_option(function: Decorated) -> Decorated:
    """``--backend cpp``: whose kernel."""
    return click.option(
        "--backend",
        type=click.Choice(("auto", "cpp")),
        default="auto",
        show_default=True,
        help="Whose kernel.",
    )(function)


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` as torch's own object."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def number_pair(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """An option's callback: ``512`` or ``512,1024`` as two numbers, for queries and for keys."""
    if value is None:
        return None
    first, comma, second = value.partition(",")
    try:
        pair = int(first), int(second if comma else first)
    except ValueError:
        pair = 0, 0
    if min(pair) < 1:
        raise click.BadParameter(
            f"{value!r} is neither a positive number nor two, such as 512,1024", context, parameter
        )
    return pair
