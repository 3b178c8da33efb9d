"""Turns a variant file into a verdict: its kernels against its own formulas, on the sizes that break kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from attncompiler.commands.numerics import numerics_options, refuse_mixtures, run_numerics
from attncompiler.commands.options import DTYPES, backend_option, variant_arguments

if TYPE_CHECKING:
    from attncompiler.cases import Case
    from attncompiler.variant import Variant


@click.command()
@variant_arguments
@backend_option
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the sizes and the numbers drawn."
)
@click.option(
    "--cases", type=click.IntRange(1), default=32, show_default=True, help="How many calls."
)
@click.option(
    "--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Only these types."
)
@click.option("--gradients/--no-gradients", default=True, help="Check the backward too.")
@click.option("--case", "one", metavar="CASE", help="Only this case, as printed by a failure.")
@numerics_options
@click.pass_context
def check(
    context: click.Context,
    file: Path,
    name: str | None,
    settings: tuple[str, ...],
    backend: Literal["auto", "cpp"],
    seed: int,
    cases: int,
    dtypes: tuple[str, ...],
    gradients: bool,
    one: str | None,
    wants_numerics: bool,
    lengths: tuple[int, ...] | None,
    magnitudes: tuple[float, ...] | None,
    json_path: Path | None,
) -> None:
    """Compare FILE's kernels with its definition in float64, on awkward sizes: results and gradients.

    A case passes when the kernel's error is at most twice that of plain PyTorch in the same dtype. Exit status 1
    when one fails; the smallest failing case found is printed with the command that repeats it.

    With --numerics the calls are growing lengths by growing scores, in float32, bfloat16 and float16, and each cell of
    a table is the ratio of the two errors.
    """
    from attncompiler.cases import draw_cases
    from attncompiler.variant_file import load_variant

    refuse_mixtures(context, wants_numerics)
    variant = load_variant(file, name, settings)
    if wants_numerics:
        passed = run_numerics(
            variant,
            backend=backend,
            seed=seed,
            dtypes=dtypes,
            gradients=gradients,
            lengths=lengths,
            magnitudes=magnitudes,
            json_path=json_path,
        )
        sys.exit(0 if passed else 1)
    drawn = [_parse(one)] if one else draw_cases(seed, cases, dtypes or DTYPES)
    options = [f"--name {name}"] if name else []
    options += [f"--set {setting}" for setting in settings]
    _run_cases(variant, drawn, f"{file} {' '.join(options)}".strip(), seed, backend, gradients)


def _run_cases(
    variant: Variant,
    drawn: list[Case],
    arguments: str,
    seed: int,
    backend: Literal["auto", "cpp"],
    gradients: bool,
) -> None:
    """Print the verdict of the cases; ``arguments`` name the variant on a command line."""
    from rich.console import Console
    from rich.progress import track

    from attncompiler.check import Checker

    console = Console(highlight=False, soft_wrap=True, markup=False)
    checker = Checker(variant, backend=backend, gradients=gradients)
    with console.status("building") as status:
        for kernel in checker.build(drawn):
            status.update(f"built {kernel}")
    report = checker.report(
        track(drawn, "checking", console=console, transient=True, disable=not console.is_terminal)
    )
    console.print(report.summary())
    if report.passed:
        console.print(f"passed: {len(drawn)} cases, seed {seed}")
        return
    failure = checker.shrink(report.failures[0])
    console.print(f"\nFAILED: {len(report.failures)} of {len(drawn)} cases, seed {seed}")
    console.print(f"smallest failing case: {failure.case}\n{failure.describe()}")
    console.print(f'repeat it: attncompiler check {arguments} --case "{failure.case}"')
    sys.exit(1)


def _parse(text: str) -> Case:
    from attncompiler.cases import Case

    try:
        return Case.parse(text)
    except ValueError as error:
        raise click.UsageError(f"--case: {error}") from error
