"""Runs of tiles: known for both walks or for none, and never where a tensor's numbers decide whether they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.frontend import trace
from attncompiler.ir.expr import Const
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.tile_runs import tile_runs
from attncompiler.variant_file import load_variant
from tests.example_table import files


class Spans(Variant):
    """Each head has a window of its own."""

    span = Tensor("h", dtype="int")

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.span[at.h])


class Nothing(Variant):
    """No key for anyone."""

    def mask(self, at: Any) -> Any:
        return at.q < at.q


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_both_walks_have_runs_or_neither(path: Path) -> None:
    mask = canonicalize(trace(load_variant(path)).program).mask
    if mask is not Const(True):
        assert (tile_runs(mask, "keys") is None) == (tile_runs(mask, "queries") is None)


@pytest.mark.parametrize("variant", [Spans, Nothing])
def test_masks_without_runs(variant: type[Variant]) -> None:
    assert tile_runs(canonicalize(trace(variant()).program).mask, "keys") is None


def test_a_window_has_three_ends_on_each_side() -> None:
    mask = canonicalize(trace(load_variant(files()[0].parent / "gemma2_local.py")).program).mask
    for side in ("keys", "queries"):
        runs = tile_runs(mask, side)  # type: ignore[arg-type]
        assert runs is not None
        assert (len(runs.allowed), len(runs.forbidden)) == (1, 3)
