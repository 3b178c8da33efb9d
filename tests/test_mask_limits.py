"""Windows, blocks and strides that no mask can have are refused, with the line that gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.dsl import (
    Tensor,
    Variant,
    block_causal,
    causal,
    chunked,
    dilated,
    global_window,
    halo,
    neighborhood,
    power_of_two,
    prefix_lm,
    radial,
    shifted_chunks,
    sink_window,
    sliding_window,
)
from attncompiler.errors import ArgumentsError, TooSmallError

pytestmark = pytest.mark.usefixtures("quick_builds")

WRONG: dict[str, Callable[[Any], Any]] = {
    "window of sliding_window": lambda at: sliding_window(at, -1),
    "prefix of prefix_lm": lambda at: prefix_lm(at, -1),
    "window of dilated": lambda at: dilated(at, -1, 2),
    "dilation of dilated": lambda at: dilated(at, 4, 0),
    "sink of sink_window": lambda at: sink_window(at, -1, 4),
    "window of sink_window": lambda at: sink_window(at, 4, -1),
    "chunk of chunked": lambda at: chunked(at, 0),
    "block of block_causal": lambda at: block_causal(at, 0),
    "group of shifted_chunks": lambda at: shifted_chunks(at, 0, 0),
    "block of power_of_two": lambda at: power_of_two(at, 0),
    "window of power_of_two": lambda at: power_of_two(at, 8, -1),
    "global_tokens of global_window": lambda at: global_window(at, -1, 4),
    "halo of halo": lambda at: halo(at, 4, -1),
    "window of neighborhood": lambda at: neighborhood(at, (3, 0), (8, 8)),
    "stride of neighborhood": lambda at: neighborhood(at, 3, (8, 8), stride=0),
    "frame of radial": lambda at: radial(at, 0, 4),
}


@pytest.mark.parametrize("what", WRONG)
def test_numbers_are_refused_where_they_are_written(what: str) -> None:
    class Wrong(Variant):
        def mask(self, at: Any) -> Any:
            return WRONG[what](at)

    with pytest.raises(TooSmallError, match=f"the {what} is (-1|0)") as caught:
        compile_variant(Wrong)
    assert caught.value.location is not None
    assert caught.value.location.filename == __file__


class Window(Variant):
    window: int = 8
    span = Tensor("h", dtype=int)

    def mask(self, at: Any) -> Any:
        return causal(at) & sliding_window(at, self.window) & sliding_window(at, self.span[at.h])


@pytest.mark.parametrize("backend", ["cpp", "dense"])
def test_parameters_are_refused_at_the_call(backend: str) -> None:
    op = compile_variant(Window, backend=backend)
    x, span = torch.randn(1, 1, 16, 8), torch.tensor([-3])
    with pytest.raises(TooSmallError, match=r"window of sliding_window.* is -1") as caught:
        op(x, x, x, window=-1, span=span)
    assert caught.value.location is not None
    # An empty window, and one that a tensor holds, are windows without keys.
    for window in (0, 4):
        assert not op(x, x, x, window=window, span=span).any()


def test_parameters_are_refused_when_they_are_fixed() -> None:
    with pytest.raises(TooSmallError, match="is -2"):
        compile_variant(Window(window=-2))
    with pytest.raises(TooSmallError, match="is -2"):
        compile_variant(Window).tile_map(64, window=-2, span=torch.tensor([1]))


def test_the_larger_limit_of_two_uses_counts() -> None:
    class Both(Variant):
        size: int = 4

        def mask(self, at: Any) -> Any:
            return sliding_window(at, self.size) & chunked(at, self.size)

    with pytest.raises(TooSmallError, match=r"chunk of chunked.* is 0"):
        compile_variant(Both(size=0))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (lambda at: neighborhood(at, (7, 7)), "expected one value or 1, one an axis, got 2"),
        (
            lambda at: neighborhood(at, (7, 9), (8, 8)),
            "a window of 9 does not fit into an axis of 8",
        ),
    ],
)
def test_windows_that_do_not_fit_their_grid(mask: Callable[[Any], Any], says: str) -> None:
    class Wrong(Variant):
        def mask(self, at: Any) -> Any:
            return mask(at)

    with pytest.raises(ArgumentsError, match=says) as caught:
        compile_variant(Wrong)
    assert caught.value.location is not None
    assert caught.value.location.filename == __file__
