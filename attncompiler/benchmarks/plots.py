"""Turns a report into three pictures: speed-ups by case, time by length under the roofline, shares of the roofline."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

from attncompiler.benchmarks.report import FORWARD, OURS, SWEEP, TRAINING, Line, Report, median_of
from attncompiler.benchmarks.suite import NAMES
from attncompiler.benchmarks.summary import RIVALS, rival_row

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours stay apart for every kind of colour vision; markers and hatches tell them apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MARKERS = "os^DvPX*"
_HATCHES = ("", "///", "...")


def pictures(report: Report) -> dict[str, bytes]:
    """Each picture's SVG by its name in ``tables.PICTURES``; the same report gives the same bytes."""
    drawn: dict[str, Callable[[Report], Figure]] = {
        "speedup": _speedups,
        "sweep": _sweep,
        "roofline": _shares,
    }
    return {name: _svg(report, draw) for name, draw in drawn.items()}


def _svg(report: Report, draw: Callable[[Report], Figure]) -> bytes:
    import matplotlib

    with matplotlib.rc_context():
        # What a user likes in plots of their own has no say.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "attncompiler", "svg.fonttype": "none"})
        written = BytesIO()
        metadata = {"Date": None, "Creator": None}
        draw(report).savefig(written, format="svg", metadata=metadata, facecolor="white")
    # The writer leaves blanks at the ends of its lines.
    return b"\n".join(line.rstrip() for line in written.getvalue().splitlines()) + b"\n"


def _panels(report: Report) -> list[tuple[str, list[Line]]]:
    """Forward and training lines of each element type and head dimension that more than two cases were measured at."""
    found: dict[str, list[Line]] = {}
    for section in (FORWARD, TRAINING):
        for line in report.section(section):
            size = line.size
            found.setdefault(f"{section}, {size}", []).append(line)
    largest = max((len(lines) for lines in found.values()), default=0)
    return [(name, lines) for name, lines in found.items() if 2 * len(lines) > largest]


def _figure(count: int, title: str, *, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """``count`` panels in two columns under a title."""
    from matplotlib.figure import Figure

    columns = min(2, max(count, 1))
    rows = -(-max(count, 1) // columns)
    figure = Figure(figsize=(5.2 * columns, height * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _speedups(report: Report) -> Figure:
    panels = _panels(report)
    figure, all_axes = _figure(
        len(panels), f"Speed-up of attncompiler on {report.machine['processor']}"
    )
    for axes, (title, lines) in zip(all_axes, panels, strict=True):
        names = [name for name in NAMES if any(line.case == name for line in lines)]
        for place, rival in enumerate(RIVALS):
            bars = [
                (names.index(line.case) + 0.27 * (place - 1), row, line.range_of(row))
                for line in lines
                if (row := rival_row(line, rival)) is not None
            ]
            if not bars:
                continue
            # From 1x up or down: what is faster and what is slower.
            heights = [row.ratio - 1 for _, row, _ in bars]
            below = [row.ratio - low for _, row, (low, _) in bars]
            above = [high - row.ratio for _, row, (_, high) in bars]
            axes.bar(
                [x for x, _, _ in bars], heights, bottom=1, width=0.25, color=COLOURS[place], hatch=_HATCHES[place],
                edgecolor="white", linewidth=0.3, label=f"over {rival}", yerr=[below, above], ecolor="0.25",
                capsize=1.5, error_kw={"linewidth": 0.8},
            )  # fmt: skip
        axes.axhline(1.0, color="0.2", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_ylabel("rival's time / ours")
        _plain_ticks(axes)
        _cases_below(axes, names, title)
    _legend(figure, all_axes)
    return figure


def _sweep(report: Report) -> Figure:
    lines = report.section(SWEEP)
    dtypes = list(dict.fromkeys(line.size.dtype for line in lines))
    figure, all_axes = _figure(
        len(dtypes), f"Causal forward pass by length on {report.machine['processor']}", height=3.6
    )
    names = list(dict.fromkeys(name for line in lines for name in line.timed))
    for axes, dtype in zip(all_axes, dtypes, strict=True):
        mine = [line for line in lines if line.size.dtype == dtype]
        for place, name in enumerate(names):
            points = [(x.size.length, median_of(x.timed[name])) for x in mine if name in x.timed]
            if points:
                axes.plot(
                    [x for x, _ in points], [1e3 * y for _, y in points], color=COLOURS[place % len(COLOURS)],
                    marker=_MARKERS[place % len(_MARKERS)], markersize=4.5, label=name,
                    linewidth=2.0 if name == OURS else 1.2,
                )  # fmt: skip
        lengths = [line.size.length for line in mine]
        axes.plot(
            lengths, [1e3 * line.least for line in mine], color="0.35", linestyle="--",
            linewidth=1.2, label="roofline: least time",
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, labels=[str(n) for n in lengths])
        axes.set_xlabel("length S, queries and keys")
        axes.set_ylabel("milliseconds")
        size = mine[0].size
        axes.set_title(f"{dtype}, H={size.heads} D={size.head_dim}", fontsize=9)
        axes.grid(True, which="major", color="0.9", linewidth=0.6)
    _legend(figure, all_axes)
    return figure


def _shares(report: Report) -> Figure:
    panels = _panels(report)
    figure, all_axes = _figure(
        len(panels), f"Share of the roofline on {report.machine['processor']}"
    )
    for axes, (title, lines) in zip(all_axes, panels, strict=True):
        names = [name for name in NAMES if any(line.case == name for line in lines)]
        for place, rival in enumerate((None, *RIVALS[:2])):
            points = []
            for line in lines:
                row = line.rows[0] if rival is None else rival_row(line, rival)
                if row is not None:
                    points.append((names.index(line.case), 100 * line.least / median_of(row)))
            if points and rival is None:
                axes.bar(
                    [x for x, _ in points], [y for _, y in points], width=0.6, color=COLOURS[0], label=OURS
                )  # fmt: skip
            elif points:
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], color=COLOURS[place], linestyle="none",
                    marker=_MARKERS[place], markersize=5, markeredgecolor="white", label=rival,
                )  # fmt: skip
        axes.set_ylim(0, max(axes.get_ylim()[1], 105))
        axes.axhline(100.0, color="0.35", linestyle="--", linewidth=1.2, label="roofline")
        axes.set_ylabel("% of the roofline")
        _cases_below(axes, names, title)
    _legend(figure, all_axes)
    return figure


def _cases_below(axes: Axes, names: list[str], title: str) -> None:
    axes.set_xticks(range(len(names)), labels=names, rotation=35, ha="right", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.grid(True, axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _plain_ticks(axes: Axes) -> None:
    """Ratios as 0.5, 1, 2, 5, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))


def _legend(figure: Figure, all_axes: list[Axes]) -> None:
    """One legend for all panels, each name once."""
    found: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            handles=list(found.values()), labels=list(found), loc="outside lower center", ncols=4,
            fontsize=8, frameon=False,
        )  # fmt: skip
