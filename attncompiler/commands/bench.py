"""Turns a variant file into a table of times against PyTorch, or without one runs the whole suite of benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from attncompiler.commands.options import DTYPES, backend_option, variant_arguments

if TYPE_CHECKING:
    from attncompiler.comparison import Size
    from attncompiler.dsl import Variant

# Options that only one of the two uses has.
_OF_FILE = (
    "name", "settings", "backend", "length", "head_dim", "dtype", "batch", "heads", "kv_heads", "backward",
)  # fmt: skip
_OF_SUITE = ("device", "quick", "only", "out", "readme", "recorded")


@click.command()
@partial(variant_arguments, required=False)
@backend_option
@click.option(
    "--length", type=click.IntRange(1), default=2048, show_default=True, help="Queries and keys."
)
@click.option("--head-dim", type=click.IntRange(1, 512), default=64, show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--heads", type=click.IntRange(1), default=8, show_default=True)
@click.option("--kv-heads", type=click.IntRange(1), help="[default: as many as heads]")
@click.option(
    "--rounds", type=click.IntRange(3), default=9, show_default=True, help="Runs of each."
)
@click.option(
    "--flex/--no-flex", default=True, help="Compile FlexAttention too (about half a minute)."
)
@click.option("--backward", is_flag=True, help="Time forward and backward: a training step.")
@click.option(
    "--device",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="Suite: where it runs.",
)
@click.option("--quick", is_flag=True, help="Suite: fewer and smaller sizes, about two minutes.")
@click.option("--only", multiple=True, metavar="CASE", help="Suite: one case; repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench"),
    show_default=True,
    help="Suite: folder of the JSON, the page of tables and the pictures.",
)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Suite: file with benchmark marks whose tables to replace.",
)
@click.option(
    "--from",
    "recorded",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Suite: measure nothing, write tables and pictures of this JSON again.",
)
@click.pass_context
def bench(
    context: click.Context,
    file: Path | None,
    name: str | None,
    settings: tuple[str, ...],
    backend: Literal["auto", "cpp"],
    length: int,
    head_dim: int,
    dtype: str,
    batch: int,
    heads: int,
    kv_heads: int | None,
    rounds: int,
    flex: bool,
    backward: bool,
    device: Literal["cpu", "cuda"],
    quick: bool,
    only: tuple[str, ...],
    out: Path,
    readme: Path | None,
    recorded: Path | None,
) -> None:
    """Time FILE's kernel against PyTorch, in turns in one run; without FILE run the suite of benchmarks.

    Peers: scaled_dot_product_attention and compiled flex_attention where they can express the variant, and the
    formula in plain (dense) PyTorch. The ratio is a peer's median time over ours; beside every time stands the
    largest error against float64 (with --backward that of the gradient of q).

    The suite measures variants of the literature on --device: forward and training steps, growth with length, sparse
    masks, memory and build times, against every implementation that can express them.
    """
    _refuse(context, _OF_SUITE if file else _OF_FILE, f"{'without' if file else 'with'} FILE")
    if file is not None:
        if heads % (kv_heads or heads):
            raise click.UsageError(f"--heads {heads} is no multiple of --kv-heads {kv_heads}")
        from attncompiler.comparison import Size
        from attncompiler.variant_file import load_variant

        size = Size(length, head_dim, dtype, batch, heads, kv_heads)
        _one(load_variant(file, name, settings), size, backend, flex, rounds, backward)
    elif recorded is not None:
        _refuse(context, ("device", "quick", "only", "flex", "rounds"), "without --from")
        from attncompiler.benchmarks.main import show_again

        show_again(recorded, out, readme)
    else:
        _suite(device, quick, only, flex, rounds, out, readme)


def _one(
    variant: Variant, size: Size, backend: Literal["auto", "cpp"], flex: bool, rounds: int, backward: bool
) -> None:  # fmt: skip
    """The table of one variant at one size."""
    from rich.console import Console
    from rich.table import Table

    from attncompiler.comparison import compare, inputs_for

    console = Console(highlight=False, markup=False)
    with console.status(f"measuring {size}"):
        rows = compare(
            variant,
            inputs_for(variant, size),
            ("sdpa", "flex", "dense") if flex else ("sdpa", "dense"),
            backend=backend,
            rounds=rounds,
            training=backward,
        )
    step = "  forward and backward" if backward else ""
    table = Table(title=f"{type(variant).__name__}  {size}{step}", title_justify="left")
    for column in ("", "median ms", "ratio", "spread", "error"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        if row.timing is None:
            table.add_row(row.name, "-", "-", "-", "-")
        else:
            cells = (1e3 * row.timing.median, row.ratio, 100 * row.timing.spread, row.error)
            table.add_row(row.name, *(f.format(c) for f, c in zip(_FORMATS, cells, strict=True)))
    console.print(table)
    for row in rows:
        if row.refusal:
            console.print(f"{row.name} cannot express it: {row.refusal}")


def _suite(
    device: str,
    quick: bool,
    only: tuple[str, ...],
    flex: bool,
    rounds: int,
    out: Path,
    readme: Path | None,
) -> None:
    if readme and (quick or only or not flex):
        raise click.UsageError(
            "--readme goes with a whole run, not with --quick, --only or --no-flex"
        )
    import torch

    from attncompiler.benchmarks.main import Options, run_suite
    from attncompiler.benchmarks.suite import NAMES

    for name in only:
        if name not in NAMES:
            raise click.UsageError(f"there is no case {name!r}; the cases are: {', '.join(NAMES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no GPU here")
    run_suite(Options(device, quick, only, flex, rounds, out, readme), click.echo)


def _refuse(context: click.Context, names: tuple[str, ...], how: str) -> None:
    """A usage error for options that this use does not have."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
        if parameter.name in names and given:
            raise click.UsageError(f"{parameter.opts[0]} goes {how} only")


_FORMATS = ("{:.2f}", "{:.2f}x", "{:.0f} %", "{:.1e}")
