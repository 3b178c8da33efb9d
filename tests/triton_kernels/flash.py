"""Turns q, k and v into flash attention and its gradients, as plainly as Triton kernels of the real shape can be.

They stand in for generated kernels where configurations are compiled offline: head dimensions padded to powers of two,
values wider or narrower than keys, loads by pointer or by descriptor, a loop without masks before one with them.

m, l, acc: the row's maximum (base 2, scaled), the sum of its weights, the weighted sum of values.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tile(base, row, start, rows, dim, block: tl.constexpr, padded: tl.constexpr, edge: tl.constexpr,
              descriptors: tl.constexpr):  # fmt: skip
    """Rows ``start``.. of a matrix of ``rows`` x ``dim``, zero beyond them; ``row`` is the stride of a row."""
    if descriptors:
        tile = tl.make_tensor_descriptor(base, [rows, dim], [row, 1], [block, padded])
        return tile.load([start, 0])
    places = start + tl.arange(0, block)
    lanes = tl.arange(0, padded)
    pointers = base + places[:, None] * row + lanes[None, :]
    if edge:
        return tl.load(pointers, (places[:, None] < rows) & (lanes[None, :] < dim), 0.0)
    if dim != padded:
        return tl.load(pointers, (lanes < dim)[None, :], 0.0)
    return tl.load(pointers)


@triton.jit
def store_tile(base, row, start, rows, dim, value, block: tl.constexpr, padded: tl.constexpr):
    """The counterpart of ``load_tile``."""
    places = start + tl.arange(0, block)
    lanes = tl.arange(0, padded)
    inside = (places[:, None] < rows) & (lanes[None, :] < dim)
    tl.store(base + places[:, None] * row + lanes[None, :], value.to(base.dtype.element_ty), inside)


@triton.jit
def sweep(q, k, v, k_row, v_row, places, keys, low, high, m, l, acc, factor,
          dim: tl.constexpr, value_dim: tl.constexpr, block_n: tl.constexpr, padded: tl.constexpr,
          value_padded: tl.constexpr, masked: tl.constexpr, causal: tl.constexpr, descriptors: tl.constexpr,
          precision: tl.constexpr):  # fmt: skip
    """The online softmax over keys ``low`` to ``high``."""
    if descriptors:
        k_tiles = tl.make_tensor_descriptor(k, [keys, dim], [k_row, 1], [block_n, padded])
        v_tiles = tl.make_tensor_descriptor(
            v, [keys, value_dim], [v_row, 1], [block_n, value_padded]
        )
    for start in tl.range(low, high, block_n):
        if descriptors:
            k_tile = k_tiles.load([start, 0])
        else:
            k_tile = load_tile(k, k_row, start, keys, dim, block_n, padded, masked, False)
        s = tl.dot(q, k_tile.T, input_precision=precision)
        if masked:
            columns = start + tl.arange(0, block_n)
            allowed = (columns < keys)[None, :]
            if causal:
                allowed = allowed & (places[:, None] >= columns[None, :])
            s = tl.where(allowed, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * factor)
        p = tl.math.exp2(s * factor - m_new[:, None])
        alpha = tl.math.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        if descriptors:
            v_tile = v_tiles.load([start, 0])
        else:
            v_tile = load_tile(
                v, v_row, start, keys, value_dim, block_n, value_padded, masked, False
            )
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision=precision)
        m = m_new
    return m, l, acc


@triton.jit
def forward(q, k, v, out, lse, scale, queries, keys, q_row, k_row, v_row, o_row, q_head, k_head, v_head, o_head,
            dim: tl.constexpr, value_dim: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
            padded: tl.constexpr, value_padded: tl.constexpr, causal: tl.constexpr, descriptors: tl.constexpr,
            precision: tl.constexpr):  # fmt: skip
    """One block of queries of one head: ``out`` and the log2 of the row sums."""
    first = tl.program_id(0) * block_m
    head = tl.program_id(1).to(tl.int64)
    places = first + tl.arange(0, block_m)
    q_tile = load_tile(
        q + head * q_head, q_row, first, queries, dim, block_m, padded, True, descriptors
    )
    k += head * k_head
    v += head * v_head
    m = tl.full([block_m], -float("inf"), tl.float32)
    l = tl.zeros([block_m], tl.float32)
    acc = tl.zeros([block_m, value_padded], tl.float32)
    end = tl.minimum(keys, first + block_m) if causal else keys
    whole = (tl.minimum(first, keys) if causal else keys) // block_n * block_n
    factor = scale * LOG2E
    m, l, acc = sweep(q_tile, k, v, k_row, v_row, places, keys, 0, whole, m, l, acc, factor, dim, value_dim,
                      block_n, padded, value_padded, False, causal, descriptors, precision)  # fmt: skip
    m, l, acc = sweep(q_tile, k, v, k_row, v_row, places, keys, whole, end, m, l, acc, factor, dim, value_dim,
                      block_n, padded, value_padded, True, causal, descriptors, precision)  # fmt: skip
    store_tile(
        out + head * o_head,
        o_row,
        first,
        queries,
        value_dim,
        acc / l[:, None],
        block_m,
        value_padded,
    )
    tl.store(lse + head * queries + places, m + tl.math.log2(l), places < queries)


@triton.jit
def rows_backward(q, k, v, do, dq, lse, delta, scale, queries, keys, q_row, k_row, v_row, o_row, q_head, k_head,
                  v_head, o_head, dim: tl.constexpr, value_dim: tl.constexpr, block_m: tl.constexpr,
                  block_n: tl.constexpr, padded: tl.constexpr, value_padded: tl.constexpr, causal: tl.constexpr,
                  descriptors: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The gradient of one block of queries: q and do stay, k and v stream."""
    first = tl.program_id(0) * block_m
    head = tl.program_id(1).to(tl.int64)
    places = first + tl.arange(0, block_m)
    inside = places < queries
    q_tile = load_tile(
        q + head * q_head, q_row, first, queries, dim, block_m, padded, True, descriptors
    )
    do_tile = load_tile(
        do + head * o_head,
        o_row,
        first,
        queries,
        value_dim,
        block_m,
        value_padded,
        True,
        descriptors,
    )
    row_lse = tl.load(lse + head * queries + places, inside, 0.0)
    row_delta = tl.load(delta + head * queries + places, inside, 0.0)
    k += head * k_head
    v += head * v_head
    if descriptors:
        k_tiles = tl.make_tensor_descriptor(k, [keys, dim], [k_row, 1], [block_n, padded])
        v_tiles = tl.make_tensor_descriptor(
            v, [keys, value_dim], [v_row, 1], [block_n, value_padded]
        )
    acc = tl.zeros([block_m, padded], tl.float32)
    for start in tl.range(0, tl.minimum(keys, first + block_m) if causal else keys, block_n):
        if descriptors:
            k_tile = k_tiles.load([start, 0])
            v_tile = v_tiles.load([start, 0])
        else:
            k_tile = load_tile(k, k_row, start, keys, dim, block_n, padded, True, False)
            v_tile = load_tile(v, v_row, start, keys, value_dim, block_n, value_padded, True, False)
        columns = start + tl.arange(0, block_n)
        s = tl.dot(q_tile, k_tile.T, input_precision=precision)
        p = tl.math.exp2(s * (scale * LOG2E) - row_lse[:, None])
        allowed = (columns < keys)[None, :]
        if causal:
            allowed = allowed & (places[:, None] >= columns[None, :])
        p = tl.where(allowed, p, 0.0)
        dp = tl.dot(do_tile, v_tile.T, input_precision=precision)
        ds = p * (dp - row_delta[:, None])
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision=precision)
    store_tile(dq + head * q_head, q_row, first, queries, dim, acc * scale, block_m, padded)


@triton.jit
def columns_backward(q, k, v, do, dk, dv, lse, delta, scale, queries, keys, q_row, k_row, v_row, o_row, q_head,
                     k_head, v_head, o_head, dim: tl.constexpr, value_dim: tl.constexpr, block_m: tl.constexpr,
                     block_n: tl.constexpr, padded: tl.constexpr, value_padded: tl.constexpr,
                     causal: tl.constexpr, descriptors: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """The gradients of one block of keys: k and v stay, q and do stream."""
    first = tl.program_id(0) * block_n
    head = tl.program_id(1).to(tl.int64)
    columns = first + tl.arange(0, block_n)
    k_tile = load_tile(
        k + head * k_head, k_row, first, keys, dim, block_n, padded, True, descriptors
    )
    v_tile = load_tile(
        v + head * v_head, v_row, first, keys, value_dim, block_n, value_padded, True, descriptors
    )
    q += head * q_head
    do += head * o_head
    if descriptors:
        q_tiles = tl.make_tensor_descriptor(q, [queries, dim], [q_row, 1], [block_m, padded])
        do_tiles = tl.make_tensor_descriptor(
            do, [queries, value_dim], [o_row, 1], [block_m, value_padded]
        )
    dk_acc = tl.zeros([block_n, padded], tl.float32)
    dv_acc = tl.zeros([block_n, value_padded], tl.float32)
    for start in tl.range(first // block_m * block_m if causal else 0, queries, block_m):
        places = start + tl.arange(0, block_m)
        inside = places < queries
        if descriptors:
            q_tile = q_tiles.load([start, 0])
            do_tile = do_tiles.load([start, 0])
        else:
            q_tile = load_tile(q, q_row, start, queries, dim, block_m, padded, True, False)
            do_tile = load_tile(
                do, o_row, start, queries, value_dim, block_m, value_padded, True, False
            )
        row_lse = tl.load(lse + head * queries + places, inside, 0.0)
        row_delta = tl.load(delta + head * queries + places, inside, 0.0)
        s = tl.dot(k_tile, q_tile.T, input_precision=precision)
        p = tl.math.exp2(s * (scale * LOG2E) - row_lse[None, :])
        allowed = inside[None, :] & (columns < keys)[:, None]
        if causal:
            allowed = allowed & (places[None, :] >= columns[:, None])
        p = tl.where(allowed, p, 0.0)
        dv_acc = tl.dot(p.to(do_tile.dtype), do_tile, dv_acc, input_precision=precision)
        dp = tl.dot(v_tile, do_tile.T, input_precision=precision)
        ds = p * (dp - row_delta[None, :])
        dk_acc = tl.dot(ds.to(q_tile.dtype), q_tile, dk_acc, input_precision=precision)
    store_tile(dk + head * k_head, k_row, first, keys, dim, dk_acc * scale, block_n, padded)
    store_tile(dv + head * v_head, v_row, first, keys, value_dim, dv_acc, block_n, value_padded)
