"""Turns compiled configurations into a table for people: one line each, what it takes and why it was dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attncompiler.backends.triton_configs import Config
from attncompiler.runtime.offline import Built, Failed
from attncompiler.runtime.triton_requests import TRITON_TYPES
from attncompiler.tuning.cost import Prediction
from attncompiler.tuning.occupancy import occupancy, problems

_HEADINGS = (
    "arch", "kernel", "block", "warps", "stages", "regs", "spills", "shared", "blocks/SM", "bound", "verdict",
)  # fmt: skip
_DTYPES = {f"*{short}": name for name, short in TRITON_TYPES.items()}
_NUMBERS = ("warps", "stages", "regs", "spills", "shared", "blocks/SM")


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """One configuration, what compiling it gave, its predicted time where a size was given, whether it was chosen."""

    config: Config
    result: Built | Failed
    prediction: Prediction | None = None
    chosen: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons to drop it, each a short phrase; empty for one that can be chosen."""
        if isinstance(self.result, Failed):
            return (self.result.reason.strip().partition("\n")[0][:100],)
        return problems(self.result, self.result.target)

    @property
    def dtype(self) -> str:
        """The element type of the inputs, by the type of the first pointer."""
        return _DTYPES.get(next(iter(self.result.request.signature.values()), ""), "")

    def record(self) -> dict[str, object]:
        """The row as plain data, for a file."""
        result, config = self.result, self.config
        known: dict[str, object] = {
            "arch": result.target.name,
            "kernel": result.request.kernel,
            "dtype": self.dtype,
            "block_m": config.block_m,
            "block_n": config.block_n,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "descriptors": config.descriptors,
            "chosen": self.chosen,
            "problems": list(self.problems),
        }
        if isinstance(result, Built):
            held = occupancy(result, result.target)
            known |= {
                "registers": result.registers,
                "spill_stores": result.spill_stores,
                "spill_loads": result.spill_loads,
                "shared": result.shared,
                "blocks_per_sm": held.blocks,
                "limited_by": held.limiter,
            }
        if self.prediction is not None:
            known |= {"seconds": self.prediction.seconds, "bound": self.prediction.bound}
        return known


def resource_table(rows: Iterable[ResourceRow]) -> str:
    """The rows under headings, as text; registers and bytes spilled are a thread's, shared memory a block's."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADINGS))]
    lines = []
    for line in cells:
        parts = [
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(line, widths, _HEADINGS, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cells(row: ResourceRow) -> tuple[str, ...]:
    config, result = row.config, row.result
    request, target = result.request, result.target
    loads = " tma" if config.descriptors else ""
    start = (target.name, request.kernel, f"{config.block_m}x{config.block_n}{loads}")
    match result:
        case Failed():
            sizes = (str(request.num_warps), str(request.num_stages))
            return (*start, *sizes, "-", "-", "-", "-", "-", f"dropped: {row.problems[0]}")
        case Built():
            held = occupancy(result, target)
            reasons = row.problems
            return (
                *start,
                str(result.num_warps),
                str(request.num_stages),
                str(result.registers),
                f"{result.spill_stores} B",
                f"{result.shared / 1024:.1f} KiB",
                f"{held.blocks} ({held.fraction:.0%})",
                _predicted(row.prediction),
                f"dropped: {'; '.join(reasons)}" if reasons else "chosen" if row.chosen else "ok",
            )


def _predicted(prediction: Prediction | None) -> str:
    if prediction is None:
        return "-"
    seconds = prediction.seconds
    time = f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
    return f"{time} {prediction.bound}"
