"""Turns variant files into kernels and runs each on a real encoder's queries, keys and values: ``make demo``."""

from __future__ import annotations

import argparse
import pydoc_data.topics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import attncompiler.oracle
from attncompiler.comparison import compare
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.encoder import Projections, project
from attncompiler.timing import interleaved
from attncompiler.torch_formulas import Inputs
from attncompiler.variant_file import load_variant

# The oracle holds float64 matrices of queries x keys for every head, so it sees a shorter piece of the text.
_ORACLE_TOKENS = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, check and time every variant file on the command line."""
    parser = argparse.ArgumentParser(prog="python -m attncompiler.demo", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    text = " ".join(pydoc_data.topics.topics.values())
    layer = project(text, options.tokens)
    console.print(
        "Input: Python's language reference through the first layer of all-MiniLM-L6-v2.\n"
        f"{layer.note}.\n"
    )
    table = Table("variant", "error", "PyTorch's error", "time", "PyTorch", "speed-up")
    places = []
    for file in options.files:
        console.print(f"{file} ... ", end="")
        places.append(_one(file, layer, console, table))
    console.print()
    console.print(table)
    console.print(
        f"error: largest difference from the definition in float64, on {_ORACLE_TOKENS} tokens;"
        " PyTorch: the same formula, dense, in float32.\n\nThe kernels, to read:"
    )
    for place in places:
        console.print(f"  {place}")
    console.print(f"\n{_for_scale(layer)}")


def _for_scale(layer: Projections) -> str:
    """What PyTorch's fused kernel takes on the same q, k, v, though for plain softmax attention only."""

    def sdpa(causal: bool) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            layer.q, layer.k, layer.v, is_causal=causal
        )

    times = interleaved({"full": lambda: sdpa(False), "causal": lambda: sdpa(True)}, rounds=5)
    full, causal = (1e3 * times[name].median for name in ("full", "causal"))
    return (
        "For scale: scaled_dot_product_attention, which can express none of these variants, takes "
        f"{full:.1f} ms for plain softmax attention and {causal:.1f} ms for causal."
    )


def _one(file: Path, layer: Projections, console: Console, table: Table) -> Path:
    variant = load_variant(file)
    begin = time.perf_counter()
    operator = compile_variant(variant)
    built = operator.build(dtype=torch.float32, head_dim=layer.q.shape[-1])
    seconds = time.perf_counter() - begin
    console.print(f"built in {seconds:.2f} s" + (" (from the cache)" if built.cached else ""))
    short = _inputs(variant, layer, _ORACLE_TOKENS)

    def oracle(dtype: torch.dtype | None) -> torch.Tensor:
        q, k, v = short.q, short.k, short.v
        result = attncompiler.oracle.attention(
            variant, q, k, v, tensors=dict(short.tensors), dtype=dtype
        )
        return result.out.double()

    exact = oracle(torch.float64)
    ours = operator(short.q, short.k, short.v, **short.tensors).double()
    rows = compare(variant, _inputs(variant, layer, None), ("dense",), rounds=3, check=False)
    times = {row.name: row.timing.median for row in rows if row.timing is not None}
    table.add_row(
        type(variant).__name__,
        f"{(ours - exact).abs().max().item():.1e}",
        f"{(oracle(None) - exact).abs().max().item():.1e}",
        f"{1e3 * times['attncompiler']:.1f} ms",
        f"{1e3 * times['dense']:.1f} ms",
        f"{times['dense'] / times['attncompiler']:.1f}x",
    )
    return built.path_source


def _inputs(variant: Variant, layer: Projections, tokens: int | None) -> Inputs:
    q, k, v = (x[:, :, :tokens] for x in (layer.q, layer.k, layer.v))
    sizes = Inputs(q, k, v, {}).sizes
    generator = torch.Generator().manual_seed(0)
    return Inputs(q, k, v, variant.sample({**sizes, "q_start": 0}, generator))


if __name__ == "__main__":
    main()
