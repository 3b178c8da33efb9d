"""Turns options that several commands share into values: the variant's file, element types, head dimensions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from attncompiler.backends.gpu_targets import Target

DTYPES = ("float32", "bfloat16", "float16", "float64")
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")

Decorated = Callable[..., Any]


def variant_arguments(function: Decorated, *, required: bool = True) -> Decorated:
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
        click.argument("file", type=click.Path(path_type=Path), required=required),
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


BUILD_BACKENDS = ("auto", "cpp", "triton", "tilelang")


def build_backend_option(function: Decorated) -> Decorated:
    """``--backend cpp,triton``: whose kernels, one or several backends."""
    return click.option(
        "backends",
        "--backend",
        multiple=True,
        callback=_backends,
        default=("auto",),
        metavar="NAME[,NAME]",
        help="auto, cpp, triton or tilelang, or several: cpp,triton. auto is cpp.  [default: auto]",
    )(function)


def arch_option(function: Decorated) -> Decorated:
    """``--arch sm_90,gfx942``: the GPUs that kernels are compiled for, none of which need be here."""
    return click.option(
        "archs",
        "--arch",
        multiple=True,
        callback=_architectures,
        metavar="NAME[,NAME]",
        help="GPU architectures for --backend triton or tilelang, such as sm_90,gfx942. None need be here.",
    )(function)


def _backends(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    names = _names(values)
    for name in names:
        if name not in BUILD_BACKENDS:
            known = f"choose from {', '.join(BUILD_BACKENDS)}, or several: cpp,triton"
            raise click.BadParameter(f"there is no backend {name!r}; {known}", context, parameter)
    return tuple(dict.fromkeys("cpp" if name == "auto" else name for name in names))


def _architectures(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Target, ...]:
    from attncompiler.backends.gpu_targets import target_of
    from attncompiler.runtime.errors import UnknownTargetError

    try:
        return tuple(map(target_of, _names(values)))
    except UnknownTargetError as error:
        raise click.BadParameter(f"{error.summary}; {error.remedy}", context, parameter) from error


def _names(values: tuple[str, ...]) -> list[str]:
    """Names from repeated options and from lists with commas, each once, in order."""
    parts = [part.strip() for value in values for part in value.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


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


def shapes_of(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, int, int, int], ...]:
    """An option's callback: ``1,8,2048,64``, repeatable, as batch, heads, length and head dimension."""
    found = []
    for value in values:
        try:
            batch, heads, length, head_dim = map(int, value.split(","))
        except ValueError:
            batch = heads = length = head_dim = 0
        if min(batch, heads, length, head_dim) < 1 or head_dim > 512:
            raise click.BadParameter(
                f"{value!r} is not four positive numbers such as 1,8,2048,64: batch, heads, length, "
                "head dimension (at most 512)",
                context,
                parameter,
            )
        found.append((batch, heads, length, head_dim))
    return tuple(found)
