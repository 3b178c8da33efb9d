"""What formulas cost a pair, counted by hand beside what is counted from the loops."""

from __future__ import annotations

import pytest

from attncompiler.backends.triton_backward_parts import folded
from attncompiler.backends.triton_work import (
    Extra,
    PairWork,
    backward_extra,
    backward_work,
    forward_extra,
    forward_work,
)
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal, document, relu, sigmoid, sliding_window, tanh
from attncompiler.ir.backward import Backward
from attncompiler.ir.kernel import Kernel
from attncompiler.runtime.kernels import Kernels


class Softmax(Variant):
    def mask(self, at):
        return causal(at)


class Distance(Variant):
    slope = Tensor("h")

    def score(self, s, at):
        return s - self.slope[at.h] * (at.q - at.k)


class Capped(Variant):
    def score(self, s, at):
        return 50.0 * tanh(s / 50.0)


class Sigmoid(Variant):
    def normalize(self, s, row):
        return sigmoid(s - 3.0)


class Squares(Variant):
    def normalize(self, s, row):
        return relu(s) * relu(s)


class Documents(Variant):
    ids = Tensor("position", dtype="int")

    def mask(self, at):
        return document(at, self.ids)


class KeyBias(Variant):
    bias = Tensor("h", "k")

    def score(self, s, at):
        return s + self.bias[at.h, at.k]


class PairBias(Variant):
    bias = Tensor("h", "q", "k")

    def score(self, s, at):
        return s + self.bias[at.h, at.q, at.k]


class NearDistance(Distance):
    window: int = 64

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)


class Gated(Variant):
    gate = Tensor("b", "h", "q", "d")

    def output(self, o, at):
        return o * sigmoid(self.gate[at.b, at.h, at.q, at.d])


class Grid(Variant):
    def mask(self, at):
        return (at.q // 8 == at.k // 8) | (at.q % 8 == at.k % 8) | (at.q // 64 > at.k // 64)


class Masked(Variant):
    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return relu(s) / row.count()


def loops(variant: type[Variant]) -> tuple[Kernel, Backward]:
    kernels = Kernels(compile_variant(variant).compilation)
    return kernels.kernel, folded(kernels.loops(kernels.learns))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # A maximum, a scaled difference, a sum, half a conversion; a mask is of few tiles.
        (Softmax, PairWork(3.5, 1, 1, 1)),
        # The distance, its conversion, one product and sum more.
        (Distance, PairWork(6.5, 1, 1, 1)),
        # Two scales, tanh, a factor, a difference, a maximum, a sum, half a conversion.
        (Capped, PairWork(2 + 14 + 1 + 1 + 2.5, 3, 1, 1)),
        # A scaled difference, the sigmoid, half a conversion.
        (Sigmoid, PairWork(1 + 15 + 0.5, 2, 1, 1)),
        # A scale, a maximum with 0, a square, half a conversion.
        (Squares, PairWork(3.5, 0, 1, 1)),
    ],
)
def test_the_work_of_a_forward(variant: type[Variant], expected: PairWork) -> None:
    assert forward_work(loops(variant)[0]) == expected


def test_the_work_of_a_backward() -> None:
    _, backward = loops(Softmax)
    # A scaled difference, two operations for the gradient, conversions of one tile or of two.
    assert backward_work(backward, "rows") == PairWork(3.5, 1, 2, 1)
    assert backward_work(backward, "columns") == PairWork(4.0, 1, 2, 2)


def test_what_kernels_keep() -> None:
    forward, backward = loops(Softmax)
    assert forward_extra(forward) == backward_extra(backward, "rows") == Extra()
    assert backward_extra(backward, "columns") == Extra(across=2)
    # Keys' documents are 64-bit integers, in the columns queries' beside two statistics.
    forward, backward = loops(Documents)
    assert forward_extra(forward) == Extra(across=2.5)
    assert backward_extra(backward, "columns").across == 4.5
    assert forward_extra(loops(KeyBias)[0]).across == 1
    assert backward_extra(loops(Capped)[1], "rows").tiles == 1
    assert backward_extra(loops(Distance)[1], "rows").tiles > 0


def test_what_is_loaded_or_added_for_each_pair_takes_registers() -> None:
    forward, backward = loops(PairBias)
    assert forward_extra(forward).pairs > 0
    assert backward_extra(backward, "rows").pairs > forward_extra(forward).pairs
    assert backward_extra(backward, "columns").pairs == forward_extra(forward).pairs


def test_work_on_value_features_is_counted_where_it_is_done() -> None:
    forward, backward = loops(Gated)
    assert forward_extra(forward).features > Extra().features
    # The gate, and its gradient.
    assert backward_extra(backward, "rows").features > forward_extra(forward).features
    assert backward_extra(backward, "columns").features == Extra().features


def test_positions_count_where_they_are_divided() -> None:
    assert forward_extra(loops(Softmax)[0]).across == 0
    assert 0 < forward_extra(loops(Grid)[0]).across < 3


def test_a_mask_that_terms_need_takes_registers() -> None:
    assert forward_extra(loops(Softmax)[0]).pairs == 0
    assert forward_extra(loops(Masked)[0]).pairs > 0


@pytest.mark.parametrize("variant", [Softmax, Distance, KeyBias, Grid])
def test_what_a_mask_reads_alone_is_not_common(variant: type[Variant]) -> None:
    forward, backward = loops(variant)
    assert forward_extra(forward).common == 0
    assert backward_extra(backward, "rows").common == 0
    assert backward_extra(backward, "columns").common == 0


def test_a_distance_that_a_window_compares_is_common_to_score_and_mask() -> None:
    forward, backward = loops(NearDistance)
    assert forward_extra(forward).common == 1
    assert backward_extra(backward, "rows").common == 1
    assert backward_extra(backward, "columns").common == 1
