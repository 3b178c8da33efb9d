"""Score terms of the literature, written in the DSL: each turns a score into the changed score."""

from __future__ import annotations

from attncompiler.functions import Value, tanh


def soft_cap(s: Value, cap: Value) -> Value:
    """cap * tanh(s / cap): scores limited to (-cap, cap) (Gemma 2, arXiv:2408.00118)."""
    return cap * tanh(s / cap)
