"""Turns a GPU into a table: ``python -m attncompiler.gpu_benchmark [--quick]``, or ``make bench-gpu``.

Every line runs in turns with its peers in one process: medians of event times, ratios over ours, errors against
float64. Forward, and forward with backward, of full and causal softmax; a sliding window and packed documents, with the
share that is reached of what their visited tiles allow; sigmoid against our own softmax. Where TileLang is there its
kernels run beside Triton's, forwards on Hopper in both schedules. Writes bench/gpu.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attncompiler.benchmark import Causal, Full
from attncompiler.comparison import Row, Size, compare, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, log, sigmoid
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling
from attncompiler.sparsity_benchmark import Documents, Window
from attncompiler.timing import Timing

TOKENS = 32768


class Sigmoid(Variant):
    """Weights that each stand alone."""

    def normalize(self, s: Any, at: Any) -> Any:
        return sigmoid(s - log(at.N))


@dataclass(frozen=True, slots=True)
class Line:
    """One variant at one size; ``tflops`` is ours, ``share`` of the ideal ratio to our dense causal kernel."""

    variant: str
    size: Size
    training: bool
    rows: tuple[Row, ...]
    tflops: float
    share: float | None = None

    def text(self) -> str:
        """One line of the table."""
        what = "forward+backward" if self.training else "forward"
        cells = [f"{self.variant:14} {what:16} {self.size}  {self.tflops:7.1f} TFLOP/s"]
        for row in self.rows:
            if row.timing is None:
                cells.append(f"{row.name}: none ({row.refusal})")
            else:
                ms = row.timing.median * 1000
                cells.append(f"{row.name} {ms:.3f} ms {row.ratio:.2f}x err {row.error:.1e}")
        if self.share is not None:
            cells.append(f"share of ideal {self.share:.2f}")
        return "  ".join(cells)


def run(
    lengths: Sequence[int],
    head_dims: Sequence[int],
    *,
    device: str,
    backend: str,
    heads: int,
    rounds: int,
    tokens: int = TOKENS,
) -> Iterator[Line]:
    """Measure the suite, a line at a time."""
    for head_dim in head_dims:
        for length in lengths:
            size = Size(length, head_dim, "bfloat16", max(tokens // length, 1), heads)
            dense: dict[str, float] = {}

            def measured(
                variant: Variant, peers: Sequence[str], training: bool, size: Size = size
            ) -> Line:
                inputs = inputs_for(variant, size, device=device)
                rows = compare(
                    variant, inputs, peers, backend=backend, rounds=rounds, training=training,
                    others=_others(variant, device, training=training),
                )  # fmt: skip
                ours = rows[0].timing
                assert ours is not None
                products = 14 if training else 4  # 2 and 5 products, each 2 operations a number
                pairs = size.batch * size.heads * _visited(variant, size, inputs.tensors)
                return Line(
                    type(variant).__name__,
                    size,
                    training,
                    tuple(rows),
                    products * pairs * size.head_dim / ours.median / 1e12,
                )

            for training in (False, True):
                for variant in (Full(), Causal()):
                    line = measured(variant, ("sdpa", "flex"), training)
                    yield line
                    timing = line.rows[0].timing
                    if timing is not None and not training:
                        dense[line.variant] = timing.median
            for sparse in (Window(window=min(1024, length // 4)), Documents()):
                line = measured(sparse, ("flex",), False)
                yield _with_share(line, sparse, dense["Causal"], device)
            line = measured(Sigmoid(), (), False)
            timing = line.rows[0].timing
            assert timing is not None
            softmax = Row("our softmax", Timing((dense["Full"],)), dense["Full"] / timing.median)
            yield replace(line, rows=(*line.rows, softmax))


def _others(variant: Variant, device: str, *, training: bool) -> dict[str, Operator]:
    """The TileLang operators of a variant, on a GPU that can have them."""
    if device != "cuda" or importlib.util.find_spec("tilelang") is None:
        return {}
    plain, apart = (compile_variant(variant, backend="tilelang") for _ in range(2))
    assert isinstance(plain, Operator)
    assert isinstance(apart, Operator)
    hopper = torch.version.cuda and torch.cuda.get_device_capability()[0] == 9
    if training or not hopper:
        return {"tilelang": plain}
    engine = apart._engines[device]
    assert isinstance(engine, TritonEngine)
    engine.tiling = Tiling(128, 128, 8, 2, descriptors=True, apart=True)
    return {"tilelang": plain, "tilelang apart": apart}


def _visited(variant: Variant, size: Size, tensors: Any, tile: int = 64) -> int:
    """The pairs of the tiles that a mask meets, for one head."""
    operator = compile_variant(variant)
    assert isinstance(operator, Operator)
    on_cpu = {name: x.cpu() for name, x in tensors.items()}
    states = operator.tile_map(size.length, tile, heads=1, **on_cpu).states
    return int((states != 0).sum()) * tile * tile


def _with_share(line: Line, variant: Variant, dense: float, device: str) -> Line:
    """The line with our time compared to the dense causal kernel's, in proportion to the visited tiles."""
    inputs = inputs_for(variant, line.size, device=device)
    visited = _visited(variant, line.size, inputs.tensors)
    all_pairs = _visited(Causal(), line.size, {})
    timing = line.rows[0].timing
    assert timing is not None
    share = dense * visited / all_pairs / timing.median
    return replace(line, share=share)


def main() -> None:
    """Measure, print a line at a time, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one length, one head_dim")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of all batches together")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("bench/gpu.json"))
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="cpu tries the script itself, with TRITON_INTERPRET=1 and small sizes",
    )  # fmt: skip
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch finds no GPU here. Try the script itself with: TRITON_INTERPRET=1 python -m "
            "attncompiler.gpu_benchmark --device cpu --lengths 128 --head-dims 16 --heads 1 --tokens 128 --rounds 1"
        )
    lengths, head_dims = chosen.lengths, chosen.head_dims
    if chosen.quick:
        lengths, head_dims = lengths[:1], head_dims[:1]
    card = torch.cuda.get_device_name() if chosen.device == "cuda" else "the interpreter"
    print(f"{card}, torch {torch.__version__}")
    lines = []
    for line in run(
        lengths,
        head_dims,
        device=chosen.device,
        backend="triton",
        heads=chosen.heads,
        rounds=chosen.rounds,
        tokens=chosen.tokens,
    ):
        print(line.text(), flush=True)
        lines.append(asdict(line))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"card": card, "lines": lines}, indent=1) + "\n")
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
