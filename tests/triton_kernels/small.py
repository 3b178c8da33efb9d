"""Turns plain mistakes and excesses into kernels: what a report on a compiled kernel must notice."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def double(x, y, n, block: tl.constexpr):
    places = tl.program_id(0) * block + tl.arange(0, block)
    inside = places < n
    tl.store(y + places, tl.load(x + places, inside) * 2, inside)


@triton.jit
def spilling(x, y, block: tl.constexpr):
    # Every element of a large tile is needed again after a sum over all of them.
    places = tl.arange(0, block)
    values = tl.load(x + places)
    total = tl.sum(values, 0)
    for turn in range(2):
        values = values * total + turn
        total = tl.sum(values, 0)
    tl.store(y + places, values * total)


@triton.jit
def product(a, b, c, size: tl.constexpr):
    rows = tl.arange(0, size)
    places = rows[:, None] * size + rows[None, :]
    acc = tl.zeros([size, size], tl.float32)
    for turn in range(4):
        left = tl.load(a + turn * size * size + places)
        right = tl.load(b + turn * size * size + places)
        acc = tl.dot(left, right, acc)
    tl.store(c + places, acc)


@triton.jit
def mismatched(x, y):
    tl.store(y + tl.arange(0, 16), tl.load(x + tl.arange(0, 32)))


@triton.jit
def outer(x, y):
    mismatched(x, y)
