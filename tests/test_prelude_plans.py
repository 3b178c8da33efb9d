"""Every normalizer of the prelude, compiled: its plan equals the oracle, in any partition merged in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attncompiler import dsl, oracle
from attncompiler.compiler import compile_levels
from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.frontend import trace
from attncompiler.ir.streaming_run import Walk
from attncompiler.prelude import normalizers

ROW = Tensor("h", "q", low=0.3, high=1.2)
WEIGHTS: dict[str, Callable[..., Any]] = {
    "softmax": lambda self, s, row: dsl.softmax(s, row),
    "sink_softmax": lambda self, s, row: dsl.sink_softmax(s, row, self.number[row.h, row.q]),
    "softmax_off_by_one": lambda self, s, row: dsl.softmax_off_by_one(s, row),
    "sigmoid_weights": lambda self, s, row: dsl.sigmoid_weights(s, row, -2.0),
    "relu_weights": lambda self, s, row: dsl.relu_weights(s, row, 1.0 / row.count()),
    "relu_squared_weights": lambda self, s, row: dsl.relu_squared_weights(s, row, 0.3),
    "sum_normalized": lambda self, s, row: dsl.sum_normalized(s, row),
    "signed_normalized": lambda self, s, row: dsl.signed_normalized(s, row),
    "cog": lambda self, s, row: dsl.cog(s, row),
    "affine_scaled": lambda self, s, row: dsl.affine_scaled(
        s, row, self.number[row.h, row.q], -0.02
    ),
    "top_theta": lambda self, s, row: dsl.top_theta(s, row, self.number[row.h, row.q]),
}


def variant(name: str) -> Variant:
    """A causal variant with the normalizer and one number a row."""
    slots = {"number": ROW, "normalize": WEIGHTS[name], "mask": lambda self, at: causal(at)}
    cls: type[Variant] = type(name.title().replace("_", ""), (Variant,), slots)
    return cls()


def test_no_normalizer_is_left_out() -> None:
    public = {
        n
        for n, f in vars(normalizers).items()
        if getattr(f, "__module__", "") == normalizers.__name__ and not n.startswith("_")
    }
    assert public == set(WEIGHTS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_plans_equal_the_oracle_however_keys_are_split_and_merged(name: str) -> None:
    instance = variant(name)
    generator = torch.Generator().manual_seed(len(name))
    q = 2 * torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 2, 2, 37, 8, dtype=torch.float64, generator=generator)
    tensors = {"number": torch.rand(4, 9, dtype=torch.float64, generator=generator)}
    expected = oracle.attention(instance, q, k, v, q_start=5, tensors=tensors)
    traced = trace(instance)
    plan = compile_levels(traced).plan
    walk = Walk(
        plan=plan,
        query=q,
        key=k,
        value=v,
        q_start=5,
        scale=8**-0.5,
        params=traced.params,
        tensors=tensors,
        dtype=torch.float64,
    )
    choice = random.Random(name)
    for _ in range(3):
        states = []
        walk.finals.clear()
        for pass_ in range(plan.passes):
            keys = torch.randperm(37, generator=generator)
            cuts = sorted(choice.sample(range(1, 37), 5))
            parts = [
                walk.absorb(pass_, walk.start(pass_), part)
                for part in torch.tensor_split(keys, cuts)
            ]
            while len(parts) > 1:
                choice.shuffle(parts)
                parts.append(walk.merge(pass_, parts.pop(), parts.pop()))
            walk.close(parts[0])
            states.append(parts[0])
        out, kept = walk.finish(states)
        torch.testing.assert_close(out, expected.out, rtol=1e-10, atol=1e-12)
        for stat, value in expected.stats.items():
            torch.testing.assert_close(kept[stat], value, rtol=1e-10, atol=1e-12)
