"""Streaming plans: their passes, tiles and merges against dense evaluation, on written and on random formulas."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from formula_cases import CASES
from formulas import PARAMS, F, Inputs, K, Q, dense, inputs, streamed, where
from random_formulas import RandomFormula

from attncompiler.ir.expr import Call, Const
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.streaming import StreamingPlan
from attncompiler.ir.streaming_run import State, Walk

PLANS = {name: derive(case.program) for name, case in CASES.items()}


def random_tiles(n: int, seed: int) -> list[torch.Tensor]:
    """All keys, shuffled, cut into tiles of random sizes; some are empty."""
    draw = random.Random(seed)
    keys = torch.tensor(draw.sample(range(n), n), dtype=torch.int64)
    cuts = sorted(draw.choices(range(n + 1), k=draw.randint(0, 9)))
    return [keys[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


def walk_of(plan: StreamingPlan, x: Inputs) -> Walk:
    return Walk(plan, x.query, x.key, x.value, x.q_start, 1.0, PARAMS, x.tensors, torch.float64)


def run_merged(plan: StreamingPlan, x: Inputs, seed: int):
    """Each tile absorbed by a state of its own, the states merged in a random tree."""
    draw = random.Random(seed)
    walk = walk_of(plan, x)
    finals = []
    for pass_ in range(plan.passes):
        tiles = random_tiles(x.key.shape[2], seed + pass_)
        states: list[State] = [walk.absorb(pass_, walk.start(pass_), t) for t in tiles]
        while len(states) > 1:
            a = states.pop(draw.randrange(len(states)))
            b = states.pop(draw.randrange(len(states)))
            states.append(walk.merge(pass_, a, b))
        walk.close(states[0])
        finals.append(states[0])
    return walk.finish(finals)


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Equal within a part of the tensor's largest value wherever the dense result is finite."""
    finite = torch.isfinite(want)
    scale = want[finite].abs().max() if finite.any() else torch.tensor(1.0)
    error = (got - want)[finite].abs()
    assert bool((error <= tolerance * (scale + 1e-3)).all()), error.max()
    infinite = torch.isinf(want)
    assert torch.equal(got[infinite], want[infinite])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("seed", "m", "n", "q_start"), [(0, 5, 37, 30), (1, 9, 14, 0), (2, 3, 1, 0)]
)
def test_tiles_and_merges_equal_the_dense_result(name, seed, m, n, q_start):
    program = CASES[name].program
    x = inputs(seed, m=m, n=n, q_start=q_start)
    want, want_kept = dense(program, x)
    finite = torch.isfinite(want).double().mean()
    assert name in ("not vanishing", "minus infinity in the score") or finite > 0.5
    tiles = random_tiles(n, seed)
    for out, kept in (streamed(PLANS[name], x, tiles), run_merged(PLANS[name], x, seed)):
        assert_close(out, want)
        for key, value in want_kept.items():
            assert_close(kept[key], value)


@pytest.mark.parametrize("infinity", [float("-inf"), float("inf")])
@pytest.mark.parametrize("name", CASES)
def test_infinite_scores_give_the_dense_result_wherever_it_is_finite(name, infinity):
    program = CASES[name].program
    infinite = ((K * 7 + Q * 3) % 5 < 2) | (K < 8)
    program = canonicalize(replace(program, score=where(infinite, infinity, F(program.score)).expr))
    plan = derive(program)
    x = inputs(3, m=6, n=23, q_start=15)
    want, want_kept = dense(program, x)
    # In order, so that the first tiles hold nothing but infinite scores, and in random order.
    in_order = [torch.tensor([i]) for i in range(12)] + [torch.arange(12, 23)]
    for tiles in (in_order, random_tiles(23, 4)):
        out, kept = streamed(plan, x, tiles)
        assert_close(out, want)
        for key, value in want_kept.items():
            assert_close(kept[key], value)
    assert_close(run_merged(plan, x, 5)[0], want)


def test_rows_without_keys_give_the_output_of_zero():
    program = replace(CASES["softmax"].program, mask=Const(False))
    x = inputs(0)
    out, kept = streamed(derive(program), x, random_tiles(37, 0))
    assert not out.any()
    assert torch.equal(kept["lse"], torch.full((2, 4, 5), -torch.inf, dtype=torch.float64))


def test_no_keys_at_all():
    x = inputs(0, n=0)
    for name in ("softmax", "sigmoid", "z-scored", "redistribution"):
        out, _ = streamed(PLANS[name], x, [])
        assert out.shape == (2, 4, 5, 2)
        assert not out.any()


def test_scores_far_from_zero_neither_overflow_nor_lose_digits():
    program = CASES["softmax"].program
    x = inputs(1, q_start=30)
    for shift in (-1e4, 1e4):
        moved = replace(program, score=Call("add", (program.score, Const(shift))))
        out, _ = streamed(derive(moved), x, random_tiles(37, 7))
        want, _ = dense(program, x)
        assert float((out - want).abs().max()) < 1e-9


@pytest.mark.parametrize("batch", range(4))
def test_random_formulas_equal_their_dense_result(batch):
    for seed in range(40 * batch, 40 * batch + 40):
        program = RandomFormula(seed).program()
        x = inputs(seed, m=4, n=19, q_start=7, spread=2.0)
        want, want_kept = dense(program, x)
        plan = derive(program)
        for out, kept in (streamed(plan, x, random_tiles(19, seed)), run_merged(plan, x, seed)):
            assert_close(out, want, 1e-8)
            assert_close(kept["last"], want_kept["last"], 1e-8)
