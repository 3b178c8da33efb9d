"""What ``explain`` tells about a compilation."""

from __future__ import annotations

from attncompiler.compiler import Compilation, compile_levels
from attncompiler.dsl import Tensor, Variant, causal, exp, log, sqrt, square, tanh
from attncompiler.explanation import explain
from attncompiler.frontend import trace
from attncompiler.ir.kernel_printer import print_kernel
from attncompiler.ir.printer import print_program


def compilation(variant: Variant) -> Compilation:
    return compile_levels(trace(variant))


def story(variant: Variant) -> dict[str, str]:
    """The chapters of an explanation, by the first word of interest in their titles."""
    text = explain(compilation(variant))
    chapters = text.split("\n\n1. ", 1)[1]
    found, number = {}, 2
    while chapters:
        chapter, _, chapters = chapters.partition(f"\n\n{number}. ")
        number += 1
        title, _, body = chapter.partition("\n")
        found[title.split()[-1]] = body
    assert list(found) == [
        "wrote", "means", "rewritten", "keys", "merge", "visited", "loops",
        "computed", "argument",
    ]  # fmt: skip
    return found


class SoftCap(Variant):
    """Limited scores."""

    cap: float = 50.0
    slope = Tensor("h")
    unused: float = 1.0

    def score(self, s, at):
        return self.cap * tanh(s / self.cap) - self.slope[at.h] * 3.25 * at.k

    def mask(self, at):
        return causal(at)


def test_every_level_is_shown():
    levels = compilation(SoftCap())
    parts = story(SoftCap())
    assert "def score(self, s, at):" in parts["wrote"]
    assert "test_explanation.py:" in parts["wrote"]
    assert "Slots of its own: score (line " in parts["wrote"]
    assert print_program(levels.steps[0][1]).splitlines()[3] in parts["means"]
    for line in print_kernel(levels.kernel).splitlines():
        assert line in parts["loops"]
    for name, _ in levels.steps[1:]:
        assert f"   {name}: " in parts["rewritten"]


def test_arguments_and_where_they_come_from():
    lines = story(SoftCap(cap=30.0))["argument"]
    assert "cap: float = 30.0 (parameter)" in lines
    assert "c0: float = 3.25 (a number in your formulas)" in lines
    assert "slope[h]: float (tensor)" in lines
    assert "scale (1/sqrt(D))" in lines
    assert "Not read by the kernel: unused." in lines


def test_tiles_are_classified_in_words():
    assert "q_hi >= k_lo" in story(SoftCap())["visited"]
    assert "q_lo >= k_hi" in story(SoftCap())["visited"]
    assert "All of them, and no element is masked." in story(Variant())["visited"]


def test_merging_is_written_as_formulas():
    parts = story(Variant())
    lines = [line.strip() for line in parts["merge"].splitlines()]
    assert "max0 = max(max0_a, max0_b)" in lines
    assert "sum1 = sum1_a * exp2(max0_a - max0) + sum1_b * exp2(max0_b - max0)" in lines
    assert "acc0 = acc0_a * exp2(max0_a - max0) + acc0_b * exp2(max0_b - max0)" in lines
    assert "times 1.4426950408889634 taken out of the formulas" in parts["argument"]


class Unguarded(Variant):
    def normalize(self, s, row):
        e = exp(s)
        row.keep("lse", log(row.sum(e)))
        return e / row.sum(exp(s))


class Shifted(Variant):
    def normalize(self, s, row):
        return exp(s) / (1 + row.sum(exp(s)))


def test_inserted_maximum_is_explained():
    text = story(Unguarded())["rewritten"]
    assert "stabilize: turns exponentials" in text
    assert "exp(score) is computed relative to the row's maximum" in text
    assert "- keep lse = " in text
    assert "+ keep lse = " in text
    assert "merge_reductions: nothing to do" in text


def test_what_did_not_apply_is_explained():
    text = story(Shifted())["rewritten"]
    assert "stabilize: nothing to do" in text
    assert "exp(score) stays as written" in text


class Standardized(Variant):
    def normalize(self, s, row):
        mean = row.mean(s)
        return square(s - mean) / sqrt(row.mean(square(s - mean)) + 1e-3)


def test_the_number_of_passes_has_a_reason():
    parts = story(Standardized())
    assert parts["keys"].startswith("   2 passes over the keys, ")
    assert "because " in parts["keys"]
    assert "pass 1, with the final statistics of the passes before" in parts["merge"]


def test_a_class_without_a_file():
    made = type("Made", (Variant,), {})
    assert "class Made (source not available)" in story(made())["wrote"]


def test_explaining_twice_gives_the_same_text():
    assert explain(compilation(SoftCap())) == explain(compilation(SoftCap()))


class Sinks(Variant):
    """A window and the first keys."""

    window: int = 100
    sink: int = 4

    def mask(self, at):
        return causal(at) & ((at.k < self.sink) | (at.q - at.k < self.window))


class Tree(Variant):
    """Keys that end."""

    end = Tensor("k", dtype="int")

    def mask(self, at):
        return causal(at) & (at.q < self.end[at.k])


class Distances(Variant):
    """Keys a power of two away."""

    def mask(self, at):
        distance = at.q - at.k
        return (distance > 0) & (distance & (distance - 1) == 0)


def test_what_is_known_about_tiles_is_told():
    text = story(Sinks())["visited"]
    assert "Proved exact, for all lengths and all numbers below 2**40: no tile" in text
    assert text.endswith(
        """\
   Queries q_lo..q_hi may see the keys
     0 <= k < min(sink, q_hi + 1)
     max(q_lo - window + 1, 0) <= k < q_hi + 1, if window > 0
   Keys k_lo..k_hi may be seen by the queries
     k_lo <= q < q_start + M, if sink > k_lo
     k_lo <= q < window + k_hi, if window > 0"""
    )
    text = story(Tree())["visited"]
    assert "not proved to find every tile without a pair and every full one:" in text
    assert "     end[k] is read from a tensor for each query, key or head." in text
    assert "see the keys" not in text
    text = story(Distances())["visited"]
    assert "Proved exact, for all lengths: no tile" in text
    assert (
        "Not as ranges: the keys of a query tile are no short list of ranges: there is one" in text
    )
