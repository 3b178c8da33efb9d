"""Turns a case and a machine's measured limits into the least time that the case can take there: the roofline.

Work is what the definition asks for and no more: multiply-adds of the allowed pairs, and each input read and each
result written once. Exponentials and masks are not counted, so no kernel reaches all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from attncompiler.benchmarks.report import FORWARD, TRAINING, Peak
from attncompiler.comparison import Size
from attncompiler.timing import interleaved
from attncompiler.tuning.cpu_device import measured_rates

# Products of a forward pass (scores, output), and with a backward pass the scores again and four gradients.
_PRODUCTS = {FORWARD: 2, TRAINING: 7}
# q, k, v read and the output written; backward reads those four and the output's gradient, and writes three.
_TRANSFERS = {FORWARD: 4, TRAINING: 12}


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most: as measured, ``source`` says how."""

    flops_per_second: float
    bytes_per_second: float
    source: str

    def named(self, dtype: str) -> Peak:
        """The same with the element type it is of, as a report keeps it."""
        return Peak(dtype, self.flops_per_second, self.bytes_per_second, self.source)


def peaks(device: str, dtype: str) -> Peaks:
    """The best rates of a large matrix product in ``dtype`` and of a large copy.

    A CPU without instructions for a narrow type computes in float32: its limit is the better of the two.
    """
    if device == "cpu":
        rates = measured_rates((dtype,))
        return Peaks(rates[dtype], rates["bandwidth"], "a product of large matrices and a copy")
    rate = _product_rate(device, getattr(torch, dtype))
    return Peaks(rate, _copy_rate(device), f"torch.mm in {dtype} and a copy")


def better(first: Peak | None, second: Peak) -> Peak:
    """The higher of two measurements of each limit: a neighbour can only have lowered them."""
    if first is None:
        return second
    return replace(
        second,
        flops_per_second=max(first.flops_per_second, second.flops_per_second),
        bytes_per_second=max(first.bytes_per_second, second.bytes_per_second),
    )


def least_seconds(size: Size, density: float, peak: Peak, section: str = FORWARD) -> float:
    """The time of the multiply-adds or of the transfers, whichever is longer; ``density`` is the share of pairs."""
    kind = TRAINING if section == TRAINING else FORWARD
    pairs = size.batch * size.heads * size.length**2 * density
    flops = _PRODUCTS[kind] * 2 * pairs * size.head_dim
    of_queries, of_keys = size.heads, size.kv_heads or size.heads
    rows = size.batch * size.length * (of_queries + of_keys) / 2
    item: int = getattr(torch, size.dtype).itemsize
    moved = _TRANSFERS[kind] * rows * size.head_dim * item
    return max(flops / peak.flops_per_second, moved / peak.bytes_per_second)


def _product_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second."""
    side = 8192
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    timing = interleaved({"mm": partial(torch.mm, a, b)}, rounds=5, device=device)["mm"]
    return float(2 * side**3 / min(timing.seconds))


def _copy_rate(device: str) -> float:
    """Bytes read and written a second."""
    source = torch.zeros(2**28, device=device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, rounds=5, device=device)["copy"]
    return 2 * source.numel() * source.element_size() / min(timing.seconds)
