"""Turns a variant file into a table of times: our kernel against everything in PyTorch that can express it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from attncompiler.commands.options import DTYPES, backend_option, variant_arguments


@click.command()
@variant_arguments
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
def bench(
    file: Path,
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
) -> None:
    """Time FILE's kernel against PyTorch, in turns in one run.

    Peers: scaled_dot_product_attention and compiled flex_attention where they can express the variant, and the
    formula in plain (dense) PyTorch. The ratio is a peer's median time over ours; beside every time stands the
    largest error against float64 (with --backward that of the gradient of q).
    """
    if heads % (kv_heads or heads):
        raise click.UsageError(f"--heads {heads} is no multiple of --kv-heads {kv_heads}")
    from rich.console import Console
    from rich.table import Table

    from attncompiler.comparison import Size, compare, inputs_for
    from attncompiler.variant_file import load_variant

    console = Console(highlight=False, markup=False)
    variant = load_variant(file, name, settings)
    size = Size(length, head_dim, dtype, batch, heads, kv_heads)
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


_FORMATS = ("{:.2f}", "{:.2f}x", "{:.0f} %", "{:.1e}")
