"""Turns this machine into the table of the README: ``python -m attncompiler.benchmark [--quick]``.

Five variants that PyTorch can express, two element types, two head dimensions, two lengths. Everything of one line
runs in turns in one process; ratios are medians over our median. Writes bench/results.json and bench/results.md, and
with --readme the table between the benchmark marks of that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from attncompiler import sparsity_benchmark
from attncompiler.comparison import Row, Size, compare, inputs_for
from attncompiler.dsl import Tensor, Variant, causal, tanh
from attncompiler.runtime.toolchain import processor, tiles_are_lent


class Full(Variant):
    """Softmax attention."""


class Causal(Variant):
    """Softmax attention to the past."""

    def mask(self, at: Any) -> Any:
        return causal(at)


class SoftCap(Causal):
    """Gemma 2's capped scores."""

    cap: float = 50.0

    def score(self, s: Any, at: Any) -> Any:
        return self.cap * tanh(s / self.cap)


class ALiBi(Causal):
    """Scores that fall linearly with the distance, a slope a head."""

    slope = Tensor("h", low=0.0, high=1.0)

    def score(self, s: Any, at: Any) -> Any:
        return s - self.slope[at.h] * (at.q - at.k)


class SlidingWindow(Variant):
    """The last ``window`` keys."""

    window: int = 512

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.window)


SUITE: tuple[tuple[Variant, tuple[str, ...]], ...] = (
    (Full(), ("sdpa", "dense")),
    (Causal(), ("sdpa", "flex", "dense")),
    (SoftCap(), ("flex", "dense")),
    (ALiBi(), ("flex", "dense")),
    (SlidingWindow(), ("flex", "dense")),
)


# What FlexAttention cannot do on a CPU: forward and backward.
TRAINING: tuple[tuple[Variant, tuple[str, ...]], ...] = (
    (Full(), ("sdpa", "dense")),
    (Causal(), ("sdpa", "dense")),
    (ALiBi(), ("dense",)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a table; ``training`` says that a call is a forward and a backward pass."""

    variant: str
    size: Size
    rows: tuple[Row, ...]
    training: bool = False


def run(
    lengths: Sequence[int], head_dims: Sequence[int], *, flex: bool, rounds: int
) -> Iterator[Result]:
    """Measure the suite, a result at a time."""
    for dtype in ("float32", "bfloat16"):
        for head_dim in head_dims:
            for length in lengths:
                # Fewer heads at greater lengths: a dense matrix of 8192 x 8192 for each head has to fit.
                size = Size(length, head_dim, dtype, heads=8 if length <= 2048 else 2)
                for variant, peers in SUITE:
                    chosen = tuple(
                        p
                        for p in peers
                        # Dense matrices at the greater length take minutes and prove nothing more.
                        if (flex or p != "flex") and (length <= 2048 or p != "dense")
                    )
                    rows = compare(variant, inputs_for(variant, size), chosen, rounds=rounds)
                    yield Result(type(variant).__name__, size, tuple(rows))


def run_training(head_dims: Sequence[int], *, rounds: int) -> Iterator[Result]:
    """Measure forward and backward passes at length 2048."""
    for dtype in ("float32", "bfloat16"):
        for head_dim in head_dims:
            size = Size(2048, head_dim, dtype)
            for variant, peers in TRAINING:
                inputs = inputs_for(variant, size)
                rows = compare(variant, inputs, peers, rounds=rounds, training=True)
                yield Result(type(variant).__name__, size, tuple(rows), training=True)


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    tiles = " amx_tile " in f"{processor()} " and tiles_are_lent()
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability() + (" and AMX" if tiles else ""),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


HEADER = (
    "| variant | dtype | S | D | ours, ms | SDPA | flex | dense | error | dense's error |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)
TRAINING_HEADER = HEADER.replace(" flex |", "").replace("---:|", "", 1)


def markdown(result: Result) -> str:
    """One line of the README's table: our median, each peer's time over ours."""
    rows = {row.name: row for row in result.rows if row.timing is not None}
    ours = rows["attncompiler"]
    assert ours.timing is not None
    peers = ("sdpa", "dense") if result.training else ("sdpa", "flex", "dense")
    ratios = [f"{rows[p].ratio:.2f}x" if p in rows else "" for p in peers]
    size = result.size
    cells = [
        result.variant,
        size.dtype,
        size.length,
        size.head_dim,
        f"{1e3 * ours.timing.median:.2f} ±{50 * ours.timing.spread:.0f} %",
        *ratios,
        f"{ours.error:.1e}",
        f"{rows['dense'].error:.1e}" if "dense" in rows else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def replace_table(readme: Path, table: str) -> None:
    """Put the table and the machine it comes from between the benchmark marks of a Markdown file."""
    before, mark, rest = readme.read_text().partition("<!-- benchmark -->\n")
    _, end, after = rest.partition("<!-- /benchmark -->")
    if not mark or not end:
        raise SystemExit(f"{readme} has no benchmark marks")
    found = machine()
    caption = (
        f'Measured by `make bench ARGS="--readme README.md"` on {found["threads"]} threads of a shared '
        f"{found['processor']} with {found['instructions']}, torch {found['torch']}: the peer's median time over ours "
        "and the largest error against float64 beside that of dense PyTorch in the same type, first of forward passes, "
        "then of forward and backward passes (the error is that of the gradient of q), at last of two sparse masks: "
        "the share of our dense causal kernel's pairs that lie in visited tiles, and how near time comes to that share."
    )
    readme.write_text(f"{before}{mark}{caption}\n\n{table}\n{end}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each line as it comes, write both files at the end."""
    parser = argparse.ArgumentParser(prog="python -m attncompiler.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one length and head dimension only")
    parser.add_argument(
        "--no-flex", action="store_true", help="leave FlexAttention's compilations out"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--readme", type=Path, help="file whose benchmark table to replace")
    options = parser.parse_args(arguments)
    lengths, head_dims = ((2048,), (64,)) if options.quick else ((2048, 8192), (64, 128))
    print("\n".join(f"{key}: {value}" for key, value in machine().items()) + "\n")
    print(HEADER, flush=True)
    results = []
    for result in run(lengths, head_dims, flex=not options.no_flex, rounds=options.rounds):
        results.append(result)
        print(markdown(result), flush=True)
    print("\nforward and backward\n\n" + TRAINING_HEADER, flush=True)
    trained = []
    for result in run_training(head_dims, rounds=options.rounds):
        trained.append(result)
        print(markdown(result), flush=True)
    print("\nsparse masks\n\n" + sparsity_benchmark.HEADER, flush=True)
    sparse = []
    for found in sparsity_benchmark.run(head_dims, flex=not options.no_flex, rounds=options.rounds):
        sparse.append(found)
        print(sparsity_benchmark.markdown(found), flush=True)
    tables = [
        [HEADER, *map(markdown, results)],
        [TRAINING_HEADER, *map(markdown, trained)],
        [sparsity_benchmark.HEADER, *map(sparsity_benchmark.markdown, sparse)],
    ]
    table = "\n\n".join("\n".join(lines) for lines in tables)
    results += trained
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "results": [asdict(result) for result in results],
        "sparsity": [asdict(result) for result in sparse],
    }
    (options.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "results.md").write_text(table + "\n")
    if options.readme:
        replace_table(options.readme, table)
    print(
        f"\nratios: the peer's median time over ours; wrote {options.out}/results.json and results.md"
    )


if __name__ == "__main__":
    main()
