"""Choices that change how Triton kernels run and not what they give: persistent programs, sums in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attncompiler.compiler import compile as compile_variant
from attncompiler.runtime.operator import Operator
from attncompiler.variant_file import load_variant
from tests.triton_calls import engine_of, use_tiles

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"B": 2, "H": 4, "G": 2, "M": 70, "N": 75, "D": 16, "Dv": 24, "q_start": 5}


def operator(name: str, **options: Any) -> Operator:
    found = compile_variant(load_variant(EXAMPLES / f"{name}.py"), "triton", **options)
    assert isinstance(found, Operator)
    return found


def call(op: Operator) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and the gradients of q, k, v and of all floating tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: str, length: str, dim: str) -> torch.Tensor:
        shape = (SIZES["B"], SIZES[heads], SIZES[length], SIZES[dim])
        return torch.randn(shape, generator=generator).requires_grad_()

    q, k, v = draw("H", "M", "D"), draw("G", "N", "D"), draw("G", "N", "Dv")
    tensors = op.variant.sample(SIZES, generator)
    leaves = [q, k, v, *(x.requires_grad_() for x in tensors.values() if x.is_floating_point())]
    out = op(q, k, v, q_start=SIZES["q_start"], **tensors)
    return out.detach(), list(torch.autograd.grad(out.square().sum(), leaves))


@pytest.mark.parametrize("name", ["alibi", "packed_documents"])
def test_persistent_programs_take_every_block_once(name: str) -> None:
    op = operator(name)
    outputs = []
    for programs in (0, 3, 1000):
        use_tiles(op, 32, 32, persistent=programs)
        outputs.append(call(op)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["alibi", "gated_attention"])
def test_sums_in_any_order_are_the_same_but_for_rounding(name: str) -> None:
    loose = operator(name, deterministic=False)
    found, expected = call(loose), call(operator(name))
    assert torch.equal(found[0], expected[0])
    for x, y in zip(found[1], expected[1], strict=True):
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()
    assert "may differ in their last bits" in loose.explain()
    again, arguments = loose.__reduce__()
    assert again(*arguments)._engines.deterministic is False


def test_what_nobody_wants_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator("gemma2_local")
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    ran: list[str] = []
    engine = engine_of(op)
    launch = engine.sources.backward

    def spied(*arguments: Any) -> Any:
        signature, module = launch(*arguments)

        class Spy:
            REVERSED, DOT_SCALE = module.REVERSED, module.DOT_SCALE

            def __getattr__(self, name: str) -> Any:
                if not name.startswith("__"):
                    ran.append(name)
                return getattr(module, name)

        return signature, Spy()

    monkeypatch.setattr(engine.sources, "backward", spied)
    op(q.requires_grad_(), k, v).sum().backward()
    assert ran == ["rows"]
    op(q.detach(), k.requires_grad_(), v).sum().backward()
    assert ran == ["rows", "rows", "columns"]
