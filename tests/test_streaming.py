from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from formula_cases import CASES
from formulas import PARAMS, F, Inputs, K, Q, dense, inputs, where

from attncompiler.ir.expr import Call, Const
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.streaming import StreamingPlan
from attncompiler.ir.streaming_run import State, Walk, run_plan

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
        walk.finals |= states[0].stats
        finals.append(states[0])
    return walk.finish(finals)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal within 1e-10 of the tensor's largest value wherever the dense result is finite."""
    finite = torch.isfinite(want)
    scale = want[finite].abs().max() if finite.any() else torch.tensor(1.0)
    error = (got - want)[finite].abs()
    assert bool((error <= 1e-10 * (scale + 1e-3)).all()), error.max()
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
    common = {"q_start": q_start, "params": PARAMS, "tensors": x.tensors}
    for out, kept in (
        run_plan(PLANS[name], x.query, x.key, x.value, partition=tiles, **common),
        run_merged(PLANS[name], x, seed),
    ):
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
        out, kept = run_plan(
            plan,
            x.query,
            x.key,
            x.value,
            q_start=15,
            params=PARAMS,
            tensors=x.tensors,
            partition=tiles,
        )
        assert_close(out, want)
        for key, value in want_kept.items():
            assert_close(kept[key], value)
    assert_close(run_merged(plan, x, 5)[0], want)


def test_rows_without_keys_give_the_output_of_zero():
    program = replace(CASES["softmax"].program, mask=Const(False))
    x = inputs(0)
    out, kept = run_plan(derive(program), x.query, x.key, x.value, params=PARAMS)
    assert not out.any()
    assert torch.equal(kept["lse"], torch.full((2, 4, 5), -torch.inf, dtype=torch.float64))


def test_no_keys_at_all():
    x = inputs(0, n=0)
    for name in ("softmax", "sigmoid", "z-scored", "redistribution"):
        out, _ = run_plan(PLANS[name], x.query, x.key, x.value, params=PARAMS, tensors=x.tensors)
        assert out.shape == (2, 4, 5, 2)
        assert not out.any()


def test_scores_far_from_zero_neither_overflow_nor_lose_digits():
    program = CASES["softmax"].program
    x = inputs(1)
    for shift in (-1e4, 1e4):
        moved = replace(program, score=Call("add", (program.score, Const(shift))))
        out, _ = run_plan(
            derive(moved),
            x.query,
            x.key,
            x.value,
            q_start=30,
            params=PARAMS,
            partition=random_tiles(37, 7),
        )
        want, _ = dense(program, replace(x, q_start=30))
        assert float((out - want).abs().max()) < 1e-9
