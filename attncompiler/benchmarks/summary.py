"""Turns a report's lines into a few numbers: the geometric mean of the speed-ups over each rival, by element type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from attncompiler.benchmarks.report import FORWARD, TRAINING, Line, Report
from attncompiler.comparison import Row

SDPA, FLEX, DENSE = "SDPA, its fastest backend", "FlexAttention, compiled", "dense PyTorch"
RIVALS = (SDPA, FLEX, DENSE)
ALL = "all"


@dataclass(frozen=True, slots=True)
class Mean:
    """The geometric mean of a rival's time over ours, over the ``cases`` lines that the rival can express."""

    section: str
    rival: str
    dtype: str
    ratio: float
    cases: int


def rival_row(line: Line, rival: str) -> Row | None:
    """The row of a rival, of SDPA its fastest backend's; None where it cannot express the case."""
    timed = line.timed
    if rival == SDPA:
        backends = [row for name, row in timed.items() if name.startswith("sdpa")]
        return min(backends, key=lambda row: row.ratio, default=None)
    return timed.get({FLEX: "flex", DENSE: "dense"}[rival])


def means(report: Report) -> list[Mean]:
    """The means of forward passes and training steps, by element type and over all."""
    found = []
    for section in (FORWARD, TRAINING):
        lines = report.section(section)
        dtypes = list(dict.fromkeys(line.size.dtype for line in lines))
        for rival in RIVALS:
            for dtype in (*dtypes, ALL):
                ratios = _ratios([x for x in lines if dtype in (ALL, x.size.dtype)], rival)
                if ratios:
                    found.append(Mean(section, rival, dtype, geometric_mean(ratios), len(ratios)))
    return found


def sentences(found: Sequence[Mean]) -> list[str]:
    """The means over all types, a line each."""
    return [
        f"{mean.section}: {mean.ratio:.2f}x the speed of {mean.rival} (geometric mean of {mean.cases} lines)"
        for mean in found
        if mean.dtype == ALL
    ]


def _ratios(lines: Sequence[Line], rival: str) -> list[float]:
    rows = [rival_row(line, rival) for line in lines]
    return [row.ratio for row in rows if row is not None]
