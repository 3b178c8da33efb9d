"""Turns compiled configurations into a table for people: one line each, what it takes and why it was dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attncompiler.backends.triton_configs import Config
from attncompiler.runtime.offline_records import Built, Failed, Lowered
from attncompiler.runtime.triton_requests import TRITON_TYPES
from attncompiler.tuning.cost import Prediction
from attncompiler.tuning.occupancy import occupancy, problems, too_much_shared

_HEADINGS = (
    "arch", "kernel", "backend", "block", "warps", "stages", "regs", "spills", "shared", "blocks/SM", "bound",
    "instructions", "verdict",
)  # fmt: skip
_DTYPES = {f"*{short}": name for name, short in TRITON_TYPES.items()}
_NUMBERS = ("warps", "stages", "regs", "spills", "shared", "blocks/SM")


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """One configuration, what compiling it gave, its predicted time where a size was given, whether it was chosen."""

    config: Config
    result: Built | Lowered | Failed
    prediction: Prediction | None = None
    chosen: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons to drop it, each a short phrase; empty for one that can be chosen."""
        match self.result:
            case Failed(reason=reason):
                return (reason.strip().partition("\n")[0][:100],)
            case Lowered(shared=shared, target=target):
                return too_much_shared(shared, target)
            case Built(target=target):
                return problems(self.result, target)

    @property
    def kind(self) -> str:
        """Which kernel: forward, rows or columns. A forward of TileLang has two schedules."""
        kernel = self.result.request.kernel
        return "forward" if kernel == "groups" else kernel

    @property
    def dtype(self) -> str:
        """The element type of the inputs: a constant of TileLang's kernels, that of the first pointer of Triton's."""
        request = self.result.request
        if "dtype" in request.constexprs:
            return str(request.constexprs["dtype"])
        return _DTYPES.get(next(iter(request.signature.values()), ""), "")

    def record(self) -> dict[str, object]:
        """The row as plain data, for a file."""
        result, config = self.result, self.config
        known: dict[str, object] = {
            "arch": result.target.name,
            "kernel": self.kind,
            "backend": result.request.language,
            "dtype": self.dtype,
            "block_m": config.block_m,
            "block_n": config.block_n,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "descriptors": config.descriptors,
            "chunk": config.chunk,
            "apart": config.apart,
            "held": config.held,
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
                "instructions": dict(result.instructions),
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
    loads += f" by {config.chunk}" if config.chunk else ""
    block = f"{config.block_m}x{config.block_n}{loads}"
    block += " apart" if config.apart else ""
    block += " held" if config.held else ""
    start = (target.name, row.kind, request.language, block)
    reasons = row.problems
    verdict = f"dropped: {'; '.join(reasons)}" if reasons else "chosen" if row.chosen else "ok"
    match result:
        case Failed():
            sizes = (str(request.num_warps), str(request.num_stages))
            return (*start, *sizes, "-", "-", "-", "-", "-", "-", verdict)
        case Lowered():
            sizes = (str(result.num_warps), str(request.num_stages))
            shared = f"{result.shared / 1024:.1f} KiB"
            verdict += f", not compiled: {result.reason}"
            return (*start, *sizes, "-", "-", shared, "-", "-", "-", verdict)
        case Built():
            held = occupancy(result, target)
            return (
                *start,
                str(result.num_warps),
                str(request.num_stages),
                str(result.registers),
                f"{result.spill_stores} B",
                f"{result.shared / 1024:.1f} KiB",
                f"{held.blocks} ({held.fraction:.0%})",
                _predicted(row.prediction),
                ", ".join(f"{count} {name}" for name, count in result.instructions.items()),
                verdict,
            )


def _predicted(prediction: Prediction | None) -> str:
    if prediction is None:
        return "-"
    seconds = prediction.seconds
    time = f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
    return f"{time} {prediction.bound}"
