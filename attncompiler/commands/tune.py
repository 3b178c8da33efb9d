"""Turns a variant file and shapes into tuned kernels: searches, keeps what it finds, and prints it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attncompiler.commands.options import DTYPES, shapes_of, variant_arguments

if TYPE_CHECKING:
    from attncompiler.comparison import Size
    from attncompiler.tuning.tuned import Tuned
    from attncompiler.tuning.tuner import Step


@click.command()
@variant_arguments
@click.option(
    "shapes",
    "--shape",
    multiple=True,
    callback=shapes_of,
    default=("1,8,2048,64",),
    show_default=True,
    metavar="B,H,S,D",
    help="Batch, heads, length, head dimension; repeatable.",
)
@click.option("--kv-heads", type=click.IntRange(1), help="[default: as many as heads]")
@click.option(
    "dtypes",
    "--dtype",
    multiple=True,
    type=click.Choice(DTYPES),
    default=("float32",),
    show_default=True,
    help="Repeatable.",
)
@click.option(
    "--device",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="Where: C++ kernels, or those of Triton and TileLang.",
)
@click.option("--backward", is_flag=True, help="The kernel of the gradients too.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="The most that a search may take.",
)
@click.option("--again", is_flag=True, help="Search although a result is known.")
def tune(
    file: Path,
    name: str | None,
    settings: tuple[str, ...],
    shapes: tuple[tuple[int, int, int, int], ...],
    kv_heads: int | None,
    dtypes: tuple[str, ...],
    device: str,
    backward: bool,
    seconds: float,
    again: bool,
) -> None:
    """Find the fastest schedule of FILE's kernels on this machine, and remember it.

    Schedules are timed in the order of a model, each in turns with the default, until nothing better turns up or the
    time is over. The winner is kept in the user's cache for calls of these sizes, to a factor of 2, and of as dense a
    mask; every operator of the same formula takes it from now on, and so do packages that are built here. A search that
    is interrupted goes on where it stopped. On a GPU the kernels of Triton and of TileLang, where that is installed,
    are tuned and then compared; calls go to the faster ones.
    """
    for _, heads, _, _ in shapes:
        if heads % (kv_heads or heads):
            raise click.UsageError(f"{heads} heads are no multiple of --kv-heads {kv_heads}")
    import torch
    from rich.console import Console

    from attncompiler.comparison import Size, inputs_for
    from attncompiler.compiler import compile as compile_variant
    from attncompiler.variant_file import load_variant

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no GPU here")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    variant = load_variant(file, name, settings)
    operator = compile_variant(variant)
    for dtype in dict.fromkeys(dtypes):
        for batch, heads, length, head_dim in dict.fromkeys(shapes):
            size = Size(length, head_dim, dtype, batch, heads, kv_heads)
            inputs = inputs_for(variant, size, device=device)
            with _Progress(console, seconds) as bar:
                found = operator.tune(
                    inputs.q,
                    inputs.k,
                    inputs.v,
                    backward=backward,
                    seconds=seconds,
                    again=again,
                    progress=bar.step,
                    **inputs.tensors,
                )
            for one in found:
                console.print(_line(one, size))


def _line(one: Tuned, size: Size) -> str:
    gain = f"{1 / one.ratio:.2f}x the default" if one.ratio != 1 else "the default is best"
    how = "known" if one.known else f"{one.measured} schedules measured"
    head = f"{one.kind:<9} {size}  {1e3 * one.seconds:.2f} ms  {gain}  ({how})"
    return f"{head}\n          {one.winner}"


class _Progress:
    """A bar that fills with the time that a search may take, and says what was found so far."""

    def __init__(self, console: Any, seconds: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._seconds = seconds
        self._tasks: dict[str, tuple[Any, float]] = {}

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, kind: str, step: Step[Any]) -> None:
        """After each step of a search."""
        if kind not in self._tasks:
            self._tasks[kind] = self._bar.add_task(kind, total=self._seconds), time.perf_counter()
        task, since = self._tasks[kind]
        words = (
            f"{kind}: {step.done} of {step.total} schedules, best {1 / step.ratio:.2f}x the default"
        )
        done = max(time.perf_counter() - since, self._seconds * step.done / step.total)
        self._bar.update(task, completed=done, description=words)
