"""Every slot reaches the generated code, and run-time values never do."""

from __future__ import annotations

import pytest

from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal, exp, log, maximum, where


class Base(Variant):
    cap: float = 50.0
    window: int = 16
    slope = Tensor("h")
    gate = Tensor("h", "d")

    def score(self, s, at):
        return s * self.cap - self.slope[at.h] * (at.q - at.k)

    def mask(self, at):
        return causal(at) & (at.q - at.k < self.window)

    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", m + log(total))
        return e / (total + 3.5)

    def output(self, o, at):
        return o * self.gate[at.h, at.d]


def code(variant: Variant | type[Variant]) -> str:
    """The generated code without the comments at its top, which quote the user's source."""
    lines = compile_variant(variant).source(head_dim=16).splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    return "\n".join(lines[start:])


class OtherScore(Base):
    def score(self, s, at):
        return s * self.cap + self.slope[at.h] * (at.q - at.k)


class NoScore(Base):
    score = Variant.score


class OtherComparison(Base):
    def mask(self, at):
        return causal(at) & (at.q - at.k <= self.window)


class OtherDirection(Base):
    def mask(self, at):
        return (at.q <= at.k) & (at.k - at.q < self.window)


class NoMask(Base):
    mask = Variant.mask


class OtherBody(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(where(at_sink(row), 0.0, e))
        row.keep("lse", m + log(total))
        return e / (total + 3.5)


def at_sink(row):
    return row.k < 1


class OtherWeight(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", m + log(total))
        return e / maximum(total, 3.5)


class OtherReduction(Base):
    def normalize(self, s, row):
        m = row.min(s)
        e = exp(m - s)
        total = row.sum(e)
        row.keep("lse", m + log(total))
        return e / (total + 3.5)


class OtherKept(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", m - log(total))
        return e / (total + 3.5)


class OtherKeptName(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("logsum", m + log(total))
        return e / (total + 3.5)


class MoreKept(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", m + log(total))
        row.keep("top", m)
        return e / (total + 3.5)


class OtherOutput(Base):
    def output(self, o, at):
        return o + self.gate[at.h, at.d]


class OutputReduction(Base):
    def output(self, o, at):
        return o * self.gate[at.h, at.d] / (at.sum(o * o) + 1)


class ReadsKept(Base):
    def output(self, o, at):
        return o * self.gate[at.h, at.d] * at.stats.lse


class NoOutput(Base):
    output = Variant.output


class OtherAxes(Base):
    slope = Tensor("b", "h")

    def score(self, s, at):
        return s * self.cap - self.slope[at.b, at.h] * (at.q - at.k)


class OtherIndex(Base):
    slope = Tensor("n")


class OtherRead(Base):
    gate = Tensor("h", "d")

    def output(self, o, at):
        return o * self.gate[at.h, 0]


class OtherType(Base):
    slope = Tensor("h", dtype="int")


class OtherKind(Base):
    cap: int = 50


CHANGES = [
    OtherScore, NoScore, OtherComparison, OtherDirection, NoMask, OtherBody, OtherWeight, OtherReduction,
    OtherKept, OtherKeptName, MoreKept, OtherOutput, OutputReduction, ReadsKept, NoOutput, OtherAxes,
    OtherIndex, OtherRead, OtherType, OtherKind,
]  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES, ids=lambda c: c.__name__)
def test_changing_a_slot_changes_the_code(changed):
    assert code(changed) != code(Base)


def test_all_changes_differ_from_each_other():
    texts = [code(c) for c in (Base, *CHANGES)]
    assert len(set(texts)) == len(texts)


class OtherLiteral(Base):
    def normalize(self, s, row):
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", m + log(total))
        return e / (total + 7.25)


class OtherScale(Base):
    scale = 0.25


class ScaleParameter(Base):
    scale: float = 0.25


class OtherDefaults(Base):
    cap: float = -1.0
    window: int = 0


@pytest.mark.parametrize(
    "same",
    [Base(cap=30.0, window=1), OtherLiteral, OtherScale, ScaleParameter, OtherDefaults],
    ids=["parameters", "literal", "scale", "scale as a parameter", "defaults"],
)
def test_run_time_values_are_not_in_the_code(same):
    assert code(same) == code(Base)


def test_dtypes_and_head_dimensions_change_the_code():
    import torch

    op = compile_variant(Base)
    texts = {
        op.source(head_dim=16),
        op.source(head_dim=32),
        op.source(head_dim=16, value_dim=8),
        op.source(head_dim=16, dtype=torch.bfloat16),
        op.source(head_dim=16, dtype=torch.float64),
        op.source(head_dim=16, tensor_dtypes={"slope": torch.float16}),
    }
    assert len(texts) == 6
