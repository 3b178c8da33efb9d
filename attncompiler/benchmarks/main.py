"""Turns the options of `attncompiler bench` without a file into results, pictures, a page and a README's tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attncompiler.benchmarks.plan import Plan, plan_for
from attncompiler.benchmarks.plots import pictures
from attncompiler.benchmarks.report import (
    BuildLine,
    Line,
    MemoryLine,
    Report,
    from_json,
    to_json,
    write_all,
)
from attncompiler.benchmarks.run import Result, Runner
from attncompiler.benchmarks.suite import chosen
from attncompiler.benchmarks.summary import means, sentences
from attncompiler.benchmarks.tables import page, picture_names, readme_block, replace_block
from attncompiler.tile_picture import check_picture
from attncompiler.variant_file import UsageError


class NoMarksError(UsageError):
    """A file that has no place for the tables."""

    message = "{path} has no marks of the {device} benchmark"
    advice = (
        "write <!-- benchmark {device} --> and <!-- /benchmark {device} --> where the tables belong"
    )


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; ``only`` are names of cases, none for all."""

    device: str = "cpu"
    quick: bool = False
    only: tuple[str, ...] = ()
    flex: bool = True
    rounds: int = 7
    out: Path = Path("bench")
    readme: Path | None = None


def run_suite(options: Options, echo: Callable[[str], None], plan: Plan | None = None) -> Report:
    """Measure, say each line as it comes, and write everything at the end: an interrupted run leaves nothing.

    ``plan`` takes the place of the device's own. Raises NoMarksError and MissingPackageError before it measures.
    """
    check_picture(Path("benchmark.svg"))
    if options.readme is not None:
        _marked(options.readme, options.device, "")
    plan = plan or plan_for(options.device, quick=options.quick, flex=options.flex)
    runner = Runner(
        plan, chosen(options.only), options.rounds, lambda result: echo(_said(result)),
        whole=not options.only, quick=options.quick,
    )  # fmt: skip
    text = to_json(runner.report(), means)
    # What is shown and drawn is what stands in the file, its rounding included.
    report = from_json(text)
    write_all(files(report, text, options.out, options.readme, options.device))
    for sentence in sentences(means(report)):
        echo(sentence)
    echo(f"wrote {options.out / options.device}.json, .md and pictures")
    return report


def show_again(recorded: Path, out: Path, readme: Path | None) -> None:
    """Write page, pictures and the README's tables of a JSON file that a run wrote, without a measurement."""
    check_picture(Path("benchmark.svg"))
    text = recorded.read_text()
    report = from_json(text)
    write_all(files(report, text, out, readme, report.device))


def files(
    report: Report, text: str, out: Path, readme: Path | None, device: str
) -> dict[Path, str | bytes]:
    """Every file of a report with its content."""
    found: dict[Path, str | bytes] = {
        out / f"{device}.json": text,
        out / f"{device}.md": page(report),
    }
    names = picture_names(device)
    found |= {out / names[name]: drawn for name, drawn in pictures(report).items()}
    if readme is not None:
        folder = Path(os.path.relpath(out, readme.parent)).as_posix()
        found[readme] = _marked(readme, device, readme_block(report, folder))
    return found


def _marked(readme: Path, device: str, block: str) -> str:
    text = replace_block(readme.read_text(), device, block)
    if text is None:
        raise NoMarksError(path=readme, device=device)
    return text


def _said(result: Result) -> str:
    """A result in one line of the terminal."""
    match result:
        case Line():
            rows = [
                f"{row.name} {1e3 * row.timing.median:.2f} ms {row.ratio:.2f}x err {row.error:.0e}"
                for row in result.rows
                if row.timing is not None
            ]
            return "  ".join([f"{result.section:16} {result.case:9} {result.size}", *rows])
        case MemoryLine():
            return "  ".join(
                [f"memory{'+' if result.training else ' '} {result.case:9} {result.size}"]
                + [f"{name} {extra / 2**20:.1f} MiB" for name, extra in result.extra.items()]
            )
        case BuildLine():
            took = "none" if result.seconds is None else f"{result.seconds:.1f} s"
            return f"build  {result.name} {result.case}: {took} {result.refusal}".rstrip()
        case _:
            return (
                f"sparse {result.mask:9} {result.size}  ours {1e3 * result.ours:.2f} ms  "
                f"share of ideal {result.ideal:.2f}"
            )
