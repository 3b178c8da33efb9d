"""Turns a report into Markdown: the block of a README, and a page with everything that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attncompiler.benchmarks.report import (
    FORWARD,
    OURS,
    SWEEP,
    TRAINING,
    Line,
    MemoryLine,
    Report,
    median_of,
)
from attncompiler.benchmarks.suite import CASES
from attncompiler.benchmarks.summary import ALL, RIVALS, means, rival_row
from attncompiler.comparison import Row

PICTURES = {
    "speedup": "Speed-up over each rival, case by case",
    "sweep": "Time of a causal forward pass by length, and the least time by the roofline",
    "roofline": "Share of the roofline that each case reaches",
}
Cells = Sequence[object]


def readme_block(report: Report, folder: str) -> str:
    """What stands between a README's marks; ``folder`` leads from it to the pictures and the page."""
    parts = [caption(report), summary_table(report), _pictures(report, folder)]
    for section, title in ((FORWARD, "Forward"), (TRAINING, "Forward and backward")):
        if report.section(section):
            parts += [f"{title}:", case_table(report.section(section))]
    parts.append(
        f"Each backend's own time, the length sweep, sparse masks, memory, build times and what cannot be expressed "
        f"and why: [{folder}/{report.device}.md]({folder}/{report.device}.md)."
    )
    return "\n\n".join(part for part in parts if part)


def page(report: Report) -> str:
    """Everything, as a page of its own beside the pictures."""
    cases = table("ll", ("case", "what it is"), ((case.name, case.what) for case in CASES))
    parts = [
        f"# Measured on {report.machine['processor']}",
        caption(report),
        summary_table(report),
        _pictures(report, "."),
        "## Cases",
        cases,
        "## Limits of the machine",
        table(
            "lrrl",
            ("dtype", "GFLOP/s", "GB/s", "measured by"),
            (
                (p.dtype, f"{p.flops_per_second / 1e9:.0f}", f"{p.bytes_per_second / 1e9:.1f}", p.source)
                for p in report.peaks
            ),
        ),
    ]  # fmt: skip
    for section, title in (
        (FORWARD, "Forward"),
        (TRAINING, "Forward and backward"),
        (SWEEP, "Causal by length"),
    ):
        lines = report.section(section)
        if lines:
            parts += [f"## {title}", full_table(lines)]
            parts += [refusals(lines)]
    if report.sparse:
        parts += ["## Sparse masks", _SPARSE, sparse_table(report)]
    if report.memory:
        parts += ["## Memory", _MEMORY, memory_table(report.memory)]
    if report.build:
        parts += ["## Time to the first result", _BUILD, build_table(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def caption(report: Report) -> str:
    """The machine, and how to read a ratio."""
    machine = report.machine
    threads = f"{machine['threads']} threads of a shared " if "threads" in machine else ""
    means_of = f" with {machine['instructions']}" if "instructions" in machine else ""
    return (
        f"Measured by `make bench{'' if report.device == 'cpu' else '-gpu'}` on {threads}{machine['processor']}"
        f"{means_of}, torch {machine['torch']}{', a short run' if report.quick else ''}. All implementations of a line "
        "run in turns in one process. A ratio is the rival's median time over ours, above 1 we are faster, in brackets "
        "the quartiles over rounds; beside every time stands the largest error against float64, in training that of "
        "the gradient of q. Roofline is the least time by the machine's measured limits over ours."
    )


def summary_table(report: Report) -> str:
    """Geometric means: a row a rival, a column an element type."""
    found = means(report)
    dtypes = list(dict.fromkeys(mean.dtype for mean in found))
    ordered = [*(d for d in dtypes if d != ALL), *([ALL] if ALL in dtypes else [])]
    by_place = {(m.section, m.rival, m.dtype): m for m in found}
    rows = []
    for section in (FORWARD, TRAINING):
        for rival in RIVALS:
            cells = [by_place.get((section, rival, dtype)) for dtype in ordered]
            if any(cells):
                texts = [f"{m.ratio:.2f}x ({m.cases})" if m else "" for m in cells]
                rows.append((section, rival, *texts))
    header = ("geometric means (lines)", "against", *ordered)
    return table("ll" + "r" * len(ordered), header, rows)


def case_table(lines: Sequence[Line]) -> str:
    """A line a case: ours, and each rival's ratio and error."""
    rivals = [r for r in RIVALS if any(rival_row(line, r) for line in lines)]
    rows = [
        (
            *_place(line),
            f"{_ms(line.rows[0])}, {line.rows[0].error:.0e}",
            *(_rival_cell(line, rival_row(line, rival)) for rival in rivals),
            f"{line.fraction:.2f}",
        )
        for line in lines
    ]
    header = ("case", "dtype", "S", "D", "ours: ms, error", *rivals, "roofline")
    return table("llrrr" + "r" * len(rivals) + "r", header, rows)


def full_table(lines: Sequence[Line]) -> str:
    """A line an implementation."""
    rows = []
    for line in lines:
        for row in line.timed.values():
            low, high = line.range_of(row)
            ratio = "" if row.name == OURS else f"{row.ratio:.2f}x ({low:.2f} to {high:.2f})"
            share = line.least / median_of(row)
            rows.append(
                (*_place(line), row.name, _ms(row), ratio, f"{row.error:.1e}", f"{share:.2f}")
            )
    header = ("case", "dtype", "S", "D", "implementation", "ms", "over ours", "error", "roofline")
    return table("llrrlrrrr", header, rows)  # fmt: skip


def refusals(lines: Sequence[Line]) -> str:
    """Who cannot express which case, and why; a reason that several cases share once."""
    cases: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for row in line.rows:
            if row.refusal:
                cases.setdefault((row.name, row.refusal), []).append(line.case)
    rows = [
        (name, ", ".join(dict.fromkeys(found)), reason) for (name, reason), found in cases.items()
    ]
    return table("lll", ("not measured", "cases", "reason"), rows) if rows else ""


_SPARSE = (
    "Visited is the share of our dense causal kernel's pairs that lie in visited tiles of 64 x 64; share of ideal says "
    "how near our time comes to that share of the dense causal kernel's."
)


def sparse_table(report: Report) -> str:
    """The masks' lines."""
    rows = [
        (
            line.mask, line.size.dtype, line.size.length, line.size.head_dim, f"{line.visited:.3f}",
            f"{1e3 * line.ours:.2f}", f"{1e3 * line.dense:.2f}", f"{line.ideal:.2f}",
            "" if line.flex is None else f"{line.flex / line.ours:.2f}x",
            f"{1e3 * line.planning:.2f}",
        )
        for line in report.sparse
    ]  # fmt: skip
    header = (
        "mask", "dtype", "S", "D", "visited", "ours, ms", "our dense causal, ms", "share of ideal", "flex",
        "planning, ms",
    )  # fmt: skip
    return table("llrrrrrrrr", header, rows)


_MEMORY = (
    "MiB that one call adds at its peak, its result included; what is made before and kept, such as SDPA's matrix of a "
    "mask, is not counted."
)


def memory_table(lines: Sequence[MemoryLine]) -> str:
    """A line a case, a column an implementation."""
    names = list(dict.fromkeys(name for line in lines for name in line.extra))
    rows = [
        (
            line.case,
            TRAINING if line.training else FORWARD,
            line.size.dtype,
            line.size.batch * line.size.heads,
            line.size.length,
            *(f"{line.extra[name] / 2**20:.1f}" if name in line.extra else "" for name in names),
        )
        for line in lines
    ]
    return table("lllrr" + "r" * len(names), ("case", "call", "dtype", "B x H", "S", *names), rows)


_BUILD = (
    "Seconds from the variant to its first result, in a new process after imports, with empty caches. The first case "
    "of a process also pays for what its compiler sets up once."
)


def build_table(report: Report) -> str:
    """A line a case and implementation."""
    rows = [
        (line.name, line.case, f"{line.seconds:.1f}" if line.seconds is not None else line.refusal)
        for line in report.build
    ]
    return table("llr", ("implementation", "case", "seconds"), rows)


def table(alignment: str, header: Sequence[str], rows: Iterable[Cells]) -> str:
    """A Markdown table; ``alignment`` is a letter a column, l or r."""
    rule = "".join("---:|" if letter == "r" else "---|" for letter in alignment)
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}", *lines])


def replace_block(text: str, device: str, block: str) -> str | None:
    """The text with the block between its benchmark marks of a device; None if it has none."""
    first, last = f"<!-- benchmark {device} -->\n", f"<!-- /benchmark {device} -->"
    before, mark, rest = text.partition(first)
    _, end, after = rest.partition(last)
    return f"{before}{mark}{block}\n{end}{after}" if mark and end else None


def picture_names(device: str) -> dict[str, Path]:
    """The file of each picture."""
    return {name: Path(f"{device}-{name}.svg") for name in PICTURES}


def _pictures(report: Report, folder: str) -> str:
    names = picture_names(report.device)
    return "\n\n".join(f"![{PICTURES[x]}]({folder}/{path})" for x, path in names.items())


def _place(line: Line) -> tuple[object, ...]:
    return line.case, line.size.dtype, line.size.length, line.size.head_dim


def _ms(row: Row) -> str:
    assert row.timing is not None
    return f"{1e3 * row.timing.median:.2f} ±{50 * row.timing.spread:.0f} %"


def _rival_cell(line: Line, row: Row | None) -> str:
    if row is None:
        return ""
    low, high = line.range_of(row)
    return f"{row.ratio:.2f}x ({low:.2f} to {high:.2f}), {row.error:.0e}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
