"""Turns results into JSON and back: what a run of the suite leaves, which tables and plots are made of."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attncompiler.benchmarks.suite import NAMES
from attncompiler.comparison import Row, Size
from attncompiler.timing import Timing

OURS = "attncompiler"
# The sections whose lines carry ratios that the summary averages.
FORWARD, TRAINING, SWEEP = "forward", "forward+backward", "sweep"


@dataclass(frozen=True, slots=True)
class Line:
    """One case at one size: every implementation's row, ours first.

    ``density`` is the share of pairs that the mask allows, ``least`` the roofline's seconds.
    """

    section: str
    case: str
    size: Size
    rows: tuple[Row, ...]
    density: float
    least: float = math.nan

    @property
    def timed(self) -> dict[str, Row]:
        """The rows that have a time, by name."""
        return {row.name: row for row in self.rows if row.timing is not None}

    @property
    def seconds(self) -> float:
        """Our median."""
        return median_of(self.rows[0])

    @property
    def fraction(self) -> float:
        """The roofline's time over ours: 1 is the most that this machine allows."""
        return self.least / self.seconds

    def range_of(self, row: Row) -> tuple[float, float]:
        """The quartiles of a row's ratio to ours over the rounds, widened to the ratio of the medians."""
        ours = self.rows[0].timing
        assert ours is not None
        assert row.timing is not None
        low, high = row.timing.ratio_range(ours)
        return min(low, row.ratio), max(high, row.ratio)


@dataclass(frozen=True, slots=True)
class SparseLine:
    """A sparse mask against our dense causal kernel; seconds, and shares of pairs (see ``sparse.py``)."""

    mask: str
    size: Size
    visited: float
    ours: float
    dense: float
    ideal: float
    flex: float | None
    planning: float


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """Extra bytes at the peak of one call, by implementation; None with the reason in ``refusals``."""

    case: str
    size: Size
    training: bool
    extra: Mapping[str, int]
    refusals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildLine:
    """Seconds from a variant to its first result in a new process with empty caches."""

    name: str
    case: str
    seconds: float | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Peak:
    """The measured limits of a machine for one element type."""

    dtype: str
    flops_per_second: float
    bytes_per_second: float
    source: str


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    device: str
    machine: Mapping[str, Any]
    quick: bool = False
    peaks: tuple[Peak, ...] = ()
    lines: tuple[Line, ...] = ()
    sparse: tuple[SparseLine, ...] = ()
    memory: tuple[MemoryLine, ...] = ()
    build: tuple[BuildLine, ...] = ()

    def section(self, name: str) -> list[Line]:
        """The lines of a section, in the suite's order of cases, then by type and size."""
        order = {case: place for place, case in enumerate(NAMES)}
        found = [line for line in self.lines if line.section == name]
        # float32 before bfloat16, as measured.
        dtypes = list(dict.fromkeys(line.size.dtype for line in found))
        return sorted(
            found,
            key=lambda line: (
                dtypes.index(line.size.dtype), line.size.head_dim, order[line.case],
                line.size.length,
            ),
        )  # fmt: skip


def median_of(row: Row) -> float:
    """The median seconds of a row that has a time."""
    assert row.timing is not None
    return row.timing.median


def to_json(report: Report, summary: Callable[[Report], Iterable[Any]]) -> str:
    """The report and its summary as text: numbers of four digits, null where there is none.

    The summary is that of the numbers as they stand there, so that it can be made again from the text.
    """
    measured = _plain(asdict(report))
    read = from_json(json.dumps(measured))
    found = {"summary": _plain([asdict(each) for each in summary(read)]), **measured}
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    # The seconds of the rounds stand in one line.
    return re.sub(r"\[[\d.,e+\s-]+\]", lambda m: re.sub(r"\s+", " ", m[0]), text)


def from_json(text: str) -> Report:
    """The report of such a text."""
    found = json.loads(text)
    return Report(
        device=found["device"],
        machine=found["machine"],
        quick=found["quick"],
        peaks=tuple(Peak(**peak) for peak in found["peaks"]),
        lines=tuple(
            Line(**_sized(line) | {"rows": tuple(map(_row, line["rows"]))})
            for line in found["lines"]
        ),
        sparse=tuple(SparseLine(**_sized(line)) for line in found["sparse"]),
        memory=tuple(MemoryLine(**_sized(line)) for line in found["memory"]),
        build=tuple(BuildLine(**line) for line in found["build"]),
    )


def write_all(files: Mapping[Path, str | bytes]) -> None:
    """Write files whole: each is complete beside its name before the first takes its place."""
    finished: list[tuple[str, Path]] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            finished.append((name, path))
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            Path(name).chmod(0o644)
        while finished:
            name, path = finished[0]
            Path(name).replace(path)
            del finished[0]
    finally:
        for name, _ in finished:
            Path(name).unlink(missing_ok=True)


def _sized(line: Mapping[str, Any]) -> dict[str, Any]:
    return {**line, "size": Size(**line["size"])}


def _row(row: Mapping[str, Any]) -> Row:
    timing = row["timing"]
    numbers = {key: float("nan") if row[key] is None else row[key] for key in ("ratio", "error")}
    return Row(
        row["name"],
        None if timing is None else Timing(tuple(timing["seconds"])),
        numbers["ratio"],
        numbers["error"],
        row["refusal"],
    )


def _plain(value: object) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}") if math.isfinite(value) else None
        case dict():
            return {key: _plain(x) for key, x in value.items()}
        case list() | tuple():
            return [_plain(x) for x in _items(value)]
        case _:
            return value


def _items(value: Iterable[object]) -> list[object]:
    return list(value)
