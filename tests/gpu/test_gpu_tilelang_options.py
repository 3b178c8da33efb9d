"""What tuning tries of TileLang's kernels on the device that is here: all choices give the numbers of the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_calls import packed

from attncompiler.dsl import Variant, causal
from attncompiler.runtime.tilings import Tilings
from tests.triton_calls import engine_of


class Past(Variant):
    def mask(self, at: Any) -> Any:
        return causal(at)


def test_every_choice_gives_the_same(device: torch.device) -> None:
    pytest.importorskip("tilelang", reason="TileLang is not installed here")
    op, qkv = packed(Past, device, "tilelang", length=500)
    for x in qkv:
        x.requires_grad_()

    def results() -> list[torch.Tensor]:
        out = op(*qkv)
        return [out, *torch.autograd.grad(out.float().sin().sum(), qkv)]

    engine = engine_of(op, "cuda")
    wanted = results()
    (site,) = engine._sites.values()
    (pair,) = engine._gradient_sites.values()
    choices: dict[str, Tilings] = {"forward": site.tilings, **dict(pair)}
    usual = {kind: tilings.current for kind, tilings in choices.items()}
    for kind, tilings in choices.items():
        assert any(t.raster > 1 for t in tilings.options)
        for tiling in tilings.options:
            engine.fixed = {**usual, kind: tiling}  # type: ignore[dict-item]
            engine.forget()
            for mine, right in zip(results(), wanted, strict=True):
                torch.testing.assert_close(mine, right, rtol=3e-2, atol=3e-2)
