"""Turns the options of ``check --numerics`` into tables of error ratios, one an element type, and a verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from attncompiler.numerics import Cell, NumericsReport
    from attncompiler.variant import Variant


def numerics_options(function: Any) -> Any:
    """``--numerics`` and what belongs to it."""
    for decorate in (
        click.option(
            "json_path",
            "--json",
            type=click.Path(path_type=Path, dir_okay=False),
            help="With --numerics: also write the numbers here.",
        ),
        click.option(
            "--magnitudes",
            callback=_magnitudes,
            metavar="X[,X]",
            help="With --numerics: standard deviations of the scores.  [default: 1,4,16,64]",
        ),
        click.option(
            "--lengths",
            callback=_lengths,
            metavar="N[,N]",
            help="With --numerics: queries and keys.  [default: 128,512,2048,8192]",
        ),
        click.option(
            "wants_numerics",
            "--numerics",
            is_flag=True,
            help="Tables of our error over that of plain PyTorch, by length and score magnitude.",
        ),
    ):
        function = decorate(function)
    return function


def refuse_mixtures(context: click.Context, wants_numerics: bool) -> None:
    """UsageError for options of one mode that were given in the other."""
    with_numerics = {"lengths": "--lengths", "magnitudes": "--magnitudes", "json_path": "--json"}
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if wants_numerics:
        wrong = [
            option for name, option in (("cases", "--cases"), ("one", "--case")) if name in given
        ]
        if wrong:
            why = "--numerics draws no cases: its calls are --lengths by --magnitudes"
            raise click.UsageError(f"{why}, so {wrong[0]} has no meaning there")
        if "float64" in context.params["dtypes"]:
            raise click.UsageError(
                "--numerics measures against float64, so it cannot judge float64"
            )
        return
    wrong = [option for name, option in with_numerics.items() if name in given]
    if wrong:
        raise click.UsageError(f"{wrong[0]} belongs to --numerics; sizes of cases are drawn")


def run_numerics(
    variant: Variant,
    *,
    backend: Literal["auto", "cpp"],
    seed: int,
    dtypes: tuple[str, ...],
    gradients: bool,
    lengths: tuple[int, ...] | None,
    magnitudes: tuple[float, ...] | None,
    json_path: Path | None,
) -> bool:
    """Measure, print and write; gives whether all passed."""
    from rich.console import Console

    from attncompiler.numerics import DTYPES, MAGNITUDES, numerics

    console = Console(highlight=False, soft_wrap=True, markup=False)
    with console.status("measuring") as status:
        report = numerics(
            variant,
            lengths=lengths,
            magnitudes=magnitudes or MAGNITUDES,
            dtypes=dtypes or DTYPES,
            backend=backend,
            gradients=gradients,
            seed=seed,
            watch=status.update,
        )
    if json_path is not None:
        json_path.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    console.print(report_text(report))
    return report.passed


def report_text(report: NumericsReport) -> str:
    """The tables, what they mean, what is missing, and the worst cell."""
    groups = "" if report.heads == report.kv_heads else f" G={report.kv_heads}"
    sizes = f"B=1 H={report.heads}{groups} D={report.head_dim}, seed {report.seed}"
    lines = [
        f"{report.variant}  {sizes}",
        "each cell: ratio  our error/that of plain PyTorch in the same type, both against float64;"
        " columns: standard deviation of the scores",
    ]
    for dtype in dict.fromkeys(cell.dtype for cell in report.cells):
        lines += ["", *_table(dtype, [cell for cell in report.cells if cell.dtype == dtype])]
    lines += ["", *(f"length {line}" for line in report.left_out)]
    lines.append(_verdict(report))
    return "\n".join(lines)


def _table(dtype: str, cells: list[Cell]) -> list[str]:
    magnitudes = list(dict.fromkeys(cell.magnitude for cell in cells))
    rows = [[dtype, "length", "error", *(f"{m:g}" for m in magnitudes)]]
    found = {(c.comparison.what, (c.queries, c.keys), c.magnitude): c for c in cells}
    lengths = list(dict.fromkeys((c.queries, c.keys) for c in cells))
    for result in dict.fromkeys(c.comparison.what for c in cells):
        for queries, keys in lengths:
            row = [found[result, (queries, keys), magnitude] for magnitude in magnitudes]
            length = str(queries) if queries == keys else f"{queries}x{keys}"
            rows.append([result, length, "largest", *map(_largest, row)])
            rows.append(["", "", "rms", *map(_rms, row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _largest(cell: Cell) -> str:
    comparison = cell.comparison
    mark = "" if cell.passed else " FAILED"
    return _pair(cell, cell.ratio, comparison.error, comparison.plain_error) + mark


def _rms(cell: Cell) -> str:
    return _pair(cell, cell.rms_ratio, cell.rms, cell.plain_rms)


def _pair(cell: Cell, ratio: float, error: float, plain_error: float) -> str:
    if not cell.judged:
        return "out of the type's range"
    if cell.overflows:
        return f"plain overflows, ours {error:.1e}"
    exact = "-" if math.isinf(ratio) and math.isfinite(error) else f"{ratio:.2f}"
    return f"{exact}  {error:.1e}/{plain_error:.1e}"


def _verdict(report: NumericsReport) -> str:
    worst = report.worst
    if worst is None:
        return "nothing was compared"
    failures = sum(not cell.passed for cell in report.cells)
    length = worst.queries if worst.queries == worst.keys else f"{worst.queries}x{worst.keys}"
    where = (
        f"{worst.comparison.what} in {worst.dtype}, length {length}, scores of {worst.magnitude:g}"
    )
    verdict = (
        f"passed: {len(report.cells)} comparisons"
        if report.passed
        else f"FAILED: {failures} of {len(report.cells)} comparisons"
    )
    comparison = worst.comparison
    numbers = (
        f"{comparison.error:.1e} against {comparison.plain_error:.1e}, limit {comparison.limit:.1e}"
    )
    return f"{verdict}; worst ratio {worst.ratio:.2f} ({numbers}): {where}"


def _lengths(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    return None if value is None else tuple(map(int, _numbers(context, parameter, value, int)))


def _magnitudes(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    return None if value is None else _numbers(context, parameter, value, float)


def _numbers(
    context: click.Context, parameter: click.Parameter, value: str, kind: type[int] | type[float]
) -> tuple[float, ...]:
    try:
        numbers = tuple(kind(part) for part in value.split(","))
    except ValueError:
        numbers = (0,)
    if not all(0 < number < math.inf for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise click.BadParameter(
            f"{value!r} is no list of positive {what}, such as 128,512", context, parameter
        )
    return tuple(dict.fromkeys(numbers))
