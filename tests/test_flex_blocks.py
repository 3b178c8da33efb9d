"""BlockMask: a pair is allowed when its block is full, or is listed and mask_mod allows the pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, noop_mask

import attncompiler.flex
from attncompiler import errors, flex_attention
from attncompiler.block_lists import block_lists
from attncompiler.runtime.errors import DeviceError
from tests.flex_cases import document_mask, prefix_lm
from tests.flex_reference import Body, causal, dense, inputs, window_of

pytestmark = pytest.mark.usefixtures("quick_builds")


def lists_of(chosen: Tensor, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers and indices of the chosen blocks; what lies behind the end of a list is undefined."""
    numbers = chosen.sum(-1).int()
    indices = chosen.int().argsort(dim=-1, descending=True, stable=True)
    filled = torch.cat(
        [indices, torch.full_like(indices[..., :1], 77).expand(*indices.shape[:3], extra)], -1
    )
    past = torch.arange(filled.shape[-1]) >= numbers[..., None]
    return numbers, torch.where(past, 77, filled).int()


def mask_of(
    states: Tensor, block: tuple[int, int], lengths: tuple[int, int], mask_mod: Any
) -> BlockMask:
    full = lists_of(states == 2) if (states == 2).any() else (None, None)
    return BlockMask.from_kv_blocks(
        *lists_of(states == 1, 3),
        *full,
        BLOCK_SIZE=block,
        mask_mod=mask_mod,
        seq_lengths=lengths,
        compute_q_blocks=False,
    )


def allowed(states: Tensor, block: tuple[int, int], size: tuple[int, ...], mask: Tensor) -> Tensor:
    of_pair = states.repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)
    of_pair = of_pair[:, :, : size[2], : size[3]].expand(size)
    return (of_pair == 2) | ((of_pair == 1) & mask)


def shifted(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx + 3 * h >= kv_idx + b


MODS: list[Body | None] = [None, noop_mask, causal, shifted]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_lists(data: st.DataObject) -> None:
    batch, heads, groups = data.draw(st.sampled_from([(1, 1, 1), (2, 4, 2), (3, 2, 2)]))
    block = data.draw(st.sampled_from([(16, 16), (5, 24)]))
    lengths = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    mask_mod = data.draw(st.sampled_from(MODS))
    rows, columns = (-(-n // size) for n, size in zip(lengths, block, strict=True))
    shape = data.draw(st.sampled_from([1, batch])), data.draw(st.sampled_from([1, heads]))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    odds = torch.tensor(
        data.draw(st.sampled_from([(1.0, 1, 1), (8.0, 1, 0), (0.0, 1, 3), (1.0, 0, 1)]))
    )
    states = torch.multinomial(
        odds, shape[0] * shape[1] * rows * columns, True, generator=generator
    )
    states = states.view(*shape, rows, columns)

    q, k, v = inputs(batch=batch, heads=heads, groups=groups, queries=lengths[0], keys=lengths[1])
    block_mask = mask_of(states, block, lengths, mask_mod)
    at = torch.meshgrid(*map(torch.arange, (batch, heads, *lengths)), indexing="ij")
    mask = (
        torch.ones_like(at[0], dtype=torch.bool) if mask_mod in (None, noop_mask) else mask_mod(*at)
    )
    pairs = allowed(states, block, tuple(at[0].shape), mask)
    wanted = dense(q, k, v, allowed=pairs)
    out, lse = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True, return_lse=True)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), wanted.lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [(128, 128), (96, 160), (256, 64), (300, 1000)])
@pytest.mark.parametrize("mask_mod", [None, causal])
def test_blocks_larger_than_tiles(block: tuple[int, int], mask_mod: Body | None) -> None:
    """Tiles inside empty blocks are skipped, inside full ones not masked, and those across borders looked at."""
    lengths = 610, 777
    rows, columns = (-(-n // size) for n, size in zip(lengths, block, strict=True))
    states = torch.multinomial(torch.tensor([3.0, 1, 1]), 4 * rows * columns, True)
    states = states.view(1, 4, rows, columns)
    q, k, v = inputs(queries=lengths[0], keys=lengths[1])
    i, j = torch.meshgrid(*map(torch.arange, lengths), indexing="ij")
    mask = (i >= j) | torch.tensor(mask_mod is None)
    wanted = dense(q, k, v, allowed=allowed(states, block, (2, 4, *lengths), mask))
    block_mask = mask_of(states, block, lengths, mask_mod)
    out = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)


def test_lists_that_say_nothing_new_are_left_out() -> None:
    """Then the formula alone decides which tiles are visited; edited lists come back in."""
    q, k, _ = inputs(queries=200, keys=300)
    for mask_mod in (causal, window_of(40), lambda b, h, i, j: (i >= j) | (j < 70)):
        block_mask = create_block_mask(mask_mod, None, None, 200, 300, "cpu", BLOCK_SIZE=32)
        assert reads_table(q, k, block_mask, mask_mod) == 0
        block_mask.kv_num_blocks[0, 0, 3] -= 1
        assert reads_table(q, k, block_mask, mask_mod) == 1
    for mask_mod in (
        document_mask()[1],
        prefix_lm()[1],
    ):  # formulas that read tensors prove nothing
        block_mask = create_block_mask(mask_mod, 2, None, 70, 70, "cpu", BLOCK_SIZE=32)
        assert reads_table(q[:, :, :70], k[:, :, :70], block_mask, mask_mod) == 1
    everything = BlockMask.from_kv_blocks(
        torch.ones(1, 1, 1, dtype=torch.int32),
        torch.zeros(1, 1, 1, 1, dtype=torch.int32),
        BLOCK_SIZE=1 << 30,
    )
    assert reads_table(q, k, everything, noop_mask) == 0


def reads_table(q: Tensor, k: Tensor, block_mask: BlockMask, mask_mod: Any) -> int:
    """How many int8 tensors the operator of a mask takes: the table of block states, or none."""
    operator, arguments = attncompiler.flex._operator(q, k, None, block_mask, None, False)
    assert operator is attncompiler.flex._operator(q, k, None, block_mask, None, False)[0]
    return sum(isinstance(x, Tensor) and x.dtype == torch.int8 for x in arguments.values())


def test_a_mask_for_all_heads_whose_formula_tells_heads_apart() -> None:
    """Lists may be shared by heads for which the formula differs: what they say must be proved for each head."""
    q, k, v = inputs(heads=4, groups=4)
    block_mask = create_block_mask(shifted, None, None, 70, 70, "cpu", BLOCK_SIZE=16)
    states = block_lists(block_mask, q, k).states
    at = torch.meshgrid(*map(torch.arange, (2, 4, 70, 70)), indexing="ij")
    wanted = dense(q, k, v, allowed=allowed(states, (16, 16), (2, 4, 70, 70), shifted(*at)))
    out = flex_attention(q, k, v, block_mask=block_mask)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)
    assert reads_table(q, k, block_mask, shifted) == 1


@pytest.mark.parametrize("inference", [False, True])
def test_changes_of_a_mask_are_seen(inference: bool) -> None:
    with torch.inference_mode(inference):
        q, k, v = inputs(groups=4, queries=64, keys=64)
        block_mask = create_block_mask(causal, None, None, 64, 64, "cpu", BLOCK_SIZE=16)
        plain = flex_attention(q, k, v, block_mask=block_mask)
        block_mask.full_kv_num_blocks.zero_()
        without = flex_attention(q, k, v, block_mask=block_mask)
        i, j = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        near = (i >= j) & (i // 16 == j // 16)
        wanted = dense(q, k, v, allowed=near.expand(2, 4, 64, 64))
        torch.testing.assert_close(without.double(), wanted.out, atol=1e-5, rtol=1e-5)
        block_mask.full_kv_num_blocks = torch.arange(4, dtype=torch.int32)[None, None]
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=block_mask), plain)
        block_mask.mask_mod = window_of(3)
        block_mask.full_kv_num_blocks.zero_()
        narrow = dense(q, k, v, window_of(3) and None, window_of(3), near.expand(2, 4, 64, 64))
        found = flex_attention(q, k, v, block_mask=block_mask)
        torch.testing.assert_close(found.double(), narrow.out, atol=1e-5, rtol=1e-5)


def test_both_masks_must_allow() -> None:
    q, k, v = inputs()
    block_mask = create_block_mask(causal, None, None, 70, 70, "cpu", BLOCK_SIZE=16)
    block_mask.kv_num_blocks[..., 2] = 0

    def even(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx % 2 == h % 2

    pairs = allowed(
        block_lists(block_mask, q, k).states,
        (16, 16),
        (2, 4, 70, 70),
        torch.ones(70, 70).tril().bool(),
    )
    wanted = dense(q, k, v, None, even, pairs)
    out = flex_attention(q, k, v, block_mask=block_mask, mask_mod=even, enable_gqa=True)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)


def test_a_list_names_a_set() -> None:
    """What is named twice counts once, in torch's own list and in both; entries past the end have no pairs."""
    q, k, v = inputs(groups=4, keys=30)
    twice = torch.tensor([0, 0, 1, 9], dtype=torch.int32).expand(1, 1, 5, 4)
    four = torch.full((1, 1, 5), 4, dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(
        four, twice, four - 3, twice, (16, 16), causal, (70, 30), compute_q_blocks=False
    )
    i, j = torch.meshgrid(torch.arange(70), torch.arange(30), indexing="ij")
    wanted = dense(q, k, v, allowed=((j < 16) | (i >= j)).expand(2, 4, 70, 30))
    out = flex_attention(q, k, v, block_mask=block_mask)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)


def test_slices_and_crops() -> None:
    """A part of a mask needs a mask_mod of its own; a crop is what torch makes of it."""
    q, k, v = inputs(groups=4)
    block_mask = create_block_mask(shifted, 2, 4, 70, 70, "cpu", BLOCK_SIZE=16)
    head = block_mask[:, 1:2]
    with pytest.raises(errors.SlotFailedError, match="sliced BlockMask"):
        flex_attention(q[:, 1:2], k[:, 1:2], v[:, 1:2], block_mask=head)
    head.mask_mod = lambda b, h, i, j: shifted(b, h + 1, i, j)
    whole = flex_attention(q, k, v, block_mask=block_mask)
    torch.testing.assert_close(
        flex_attention(q[:, 1:2], k[:, 1:2], v[:, 1:2], block_mask=head), whole[:, 1:2]
    )
    cropped = create_block_mask(causal, None, None, 70, 70, "cpu", BLOCK_SIZE=16)._adjust(50, 50)
    q, k, v = (x[:, :, :50] for x in (q, k, v))
    at = torch.ones(50, 50).tril().bool()
    pairs = allowed(block_lists(cropped, q, k).states, (16, 16), (2, 4, 50, 50), at)
    wanted = dense(q, k, v, allowed=pairs)
    out = flex_attention(q, k, v, block_mask=cropped)
    torch.testing.assert_close(out.double(), wanted.out, atol=1e-5, rtol=1e-5)


def test_masks_that_do_not_fit() -> None:
    q, k, v = inputs(groups=4)

    def call(block_mask: Any) -> None:
        flex_attention(q, k, v, block_mask=block_mask)

    def made(m: int = 70, n: int = 70, b: int | None = None, h: int | None = None) -> BlockMask:
        return create_block_mask(causal, b, h, m, n, "cpu", BLOCK_SIZE=16)

    for block_mask, text in [
        (made(60), "made for 60 queries and 70 keys, the call has 70 and 70"),
        (made(70, 90), "made for 70 queries and 90 keys"),
        (made(b=3), "3 entries along the axis of batch, the query has 2"),
        (made(h=2), "2 entries along the axis of heads, the query has 4"),
    ]:
        with pytest.raises(errors.ShapeError, match=text):
            call(block_mask)
    with pytest.raises(errors.ArgumentsError, match="block_mask is a function"):
        call(causal)
    with pytest.raises(DeviceError, match=r"block_mask\.kv_num_blocks is on meta"):
        call(made().to("meta"))
    wrong = made()
    wrong.kv_num_blocks[0, 0, 1] = 9
    with pytest.raises(errors.ShapeError, match="longer than its storage"):
        call(wrong)
    wrong = made()
    wrong.kv_indices[0, 0, 1, 0] = -1
    with pytest.raises(errors.ShapeError, match="negative index"):
        call(wrong)
    wrong = made()
    wrong.kv_indices, wrong.kv_num_blocks = (
        wrong.kv_indices[:, :, :2],
        wrong.kv_num_blocks[:, :, :2],
    )
    with pytest.raises(errors.ShapeError, match="lists for 2 blocks of queries, the call has 5"):
        call(wrong)
    wrong = made()
    wrong.kv_num_blocks = wrong.kv_num_blocks[:, :, :2]
    with pytest.raises(errors.ShapeError, match="give a length for each list"):
        call(wrong)
