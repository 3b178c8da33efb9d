"""The dense backend: the oracle under an operator's call, by name only."""

from __future__ import annotations

import pytest
import torch

import attncompiler
from attncompiler.dsl import Tensor, Variant, causal, sink_softmax
from attncompiler.runtime.errors import BackendError


class Sink(Variant):
    """A causal variant with everything a call can carry."""

    gain: float = 1.0
    sink = Tensor("h")

    def mask(self, at):  # type: ignore[no-untyped-def]
        """Causal."""
        return causal(at)

    def score(self, s, at):  # type: ignore[no-untyped-def]
        """Scaled once more."""
        return self.gain * s

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        """With a sink."""
        return sink_softmax(s, row, self.sink[row.h])


def test_dense_and_cpp_operators_agree_on_the_same_call() -> None:
    q, k, v = torch.randn(3, 2, 4, 33, 16)
    call = {"q_start": 3, "gain": 0.5, "sink": torch.randn(4), "return_stats": True}
    dense, dense_stats = attncompiler.compile(Sink, backend="dense")(q, k, v, **call)
    fused, fused_stats = attncompiler.compile(Sink, backend="cpp")(q, k, v, **call)
    assert dense.dtype == q.dtype
    torch.testing.assert_close(fused, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_stats["lse"].double(), dense_stats["lse"])


def test_dense_operators_differentiate() -> None:
    q, k, v = torch.randn(3, 1, 2, 8, 4, requires_grad=True)
    out = attncompiler.compile(Sink, backend="dense")(q, k, v, sink=torch.zeros(2))
    out.sum().backward()


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        attncompiler.compile(Sink, backend="cuda")
