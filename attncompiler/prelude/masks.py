"""Masks of the literature, written in the DSL: each turns ``at`` and a few numbers or tensors into "is the pair allowed"."""

from __future__ import annotations

from attncompiler.functions import Value


def causal(at: Value) -> Value:
    """Keys up to and including the query's own position: k <= q."""
    return at.k <= at.q
