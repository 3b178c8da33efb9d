"""Normalizers of the literature, written in the DSL: each turns the scores of a row into its weights, as on paper."""

from __future__ import annotations

from attncompiler.functions import Value, exp, log


def softmax(s: Value, row: Value) -> Value:
    """exp(s) / sum exp(s), after a shift by the row's maximum; keeps ``lse``, the natural log of the sum."""
    m = row.max(s)
    e = exp(s - m)
    total = row.sum(e)
    row.keep("lse", log(total) + m)
    return e / total
