"""flex_attention against dense float64 attention, and against torch's own function where that is right."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as peer
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask
from torch.utils.checkpoint import checkpoint

import attncompiler.flex
from attncompiler import flex_attention
from attncompiler.captured_numbers import RunTimeInt, with_marked_numbers
from attncompiler.flex import operator_of
from tests import flex_cases
from tests.flex_cases import CASES
from tests.flex_reference import DV, Body, causal, dense, inputs, window_of

pytestmark = pytest.mark.usefixtures("quick_builds")


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_published_bodies(case: Callable[[], tuple[Body | None, Body | None]]) -> None:
    q, k, v = inputs()
    with torch.no_grad():
        score_mod, mask_mod = case()
        wanted = dense(q, k, v, score_mod, mask_mod)
        out, lse = flex_attention(
            q, k, v, score_mod, mask_mod=mask_mod, enable_gqa=True, return_lse=True
        )
    close(out, wanted.out)
    close(lse, wanted.lse)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", ["sliding_window", "alibi_tensor", "packed_documents", "soft_cap"])
def test_torch_agrees(case: str) -> None:
    q, k, v = inputs()
    score_mod, mask_mod = getattr(flex_cases, case)()
    block_mask = create_block_mask(mask_mod, 2, 4, 70, 70, device="cpu")
    options = {"score_mod": score_mod, "block_mask": block_mask, "enable_gqa": True, "scale": 0.3}
    aux = AuxRequest(lse=True)
    with torch.no_grad():
        ours, theirs = (
            f(q, k, v, **options, return_aux=aux) for f in (flex_attention, peer.flex_attention)
        )
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1].lse, theirs[1].lse)
    assert ours[1].max_scores is None
    assert type(ours[1]) is type(theirs[1])


def test_auxiliary_outputs() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(groups=4))
    mask_mod = flex_cases.sequence_lengths()[1]
    wanted = dense(q, k, v, None, mask_mod)
    out, aux = flex_attention(
        q, k, v, mask_mod=mask_mod, return_aux=AuxRequest(lse=True, max_scores=True)
    )
    close(out, wanted.out)
    close(aux.lse, wanted.lse)
    close(aux.max_scores, wanted.max_scores)
    assert aux.max_scores.dtype == torch.float32
    assert aux.lse.requires_grad
    assert not aux.max_scores.requires_grad
    _, aux = flex_attention(q, k, v, mask_mod=mask_mod, return_aux=AuxRequest())
    assert aux == (None, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_element_types(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs())
    score_mod, mask_mod = flex_cases.alibi_formula()
    wanted = dense(q, k, v, score_mod, mask_mod, scale=0.2)
    out = flex_attention(q, k, v, score_mod, None, 0.2, True, mask_mod=mask_mod)
    assert out.dtype == dtype
    close(out, wanted.out, {torch.float64: 1e-12, torch.float16: 3e-3}.get(dtype, 3e-2))


def test_layouts_and_broadcast_batches() -> None:
    q, k, v = inputs()
    wanted = dense(q, k, v, None, causal)
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    close(flex_attention(*columns, enable_gqa=True, mask_mod=causal), wanted.out)
    block_mask = create_block_mask(causal, 2, None, 70, 70, device="cpu")
    shared = flex_attention(q, k[:1], v[:1], block_mask=block_mask, enable_gqa=True)
    expanded = [x[:1].expand(2, -1, -1, -1) for x in (k, v)]
    close(shared, dense(q, *expanded, None, causal).out)


def test_empty_inputs() -> None:
    for batch, heads, queries, keys in [(0, 2, 4, 4), (1, 0, 4, 4), (1, 2, 0, 4), (1, 2, 4, 0)]:
        q, k, v = inputs(batch=batch, heads=heads, groups=heads, queries=queries, keys=keys)
        out, lse = flex_attention(q, k, v, mask_mod=causal, return_lse=True)
        assert out.shape == (*q.shape[:3], DV)
        assert not out.any()
        assert (lse == -math.inf).all()


def test_numbers_in_torch_functions() -> None:
    """Captured numbers are marked, which torch and Python must not notice."""
    size, factor = 5, 0.5
    q, k, v = inputs(groups=4)

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        made = torch.arange(size)[q_idx % size] * torch.full((), factor) + torch.tensor(size)
        table = torch.ones(size, int(size / factor))[kv_idx % size, 0]
        number = (
            math.log(size) + round(factor) + min(size, 3) + len(range(size)) + sum([size] * size)
        )
        score = (
            score
            + made * table
            + number / torch.tensor([factor])[0]
            + -size % 3
            + divmod(size, 2)[1]
        )
        return score.masked_fill(q_idx < kv_idx, torch.finfo(score.dtype).min)

    close(flex_attention(q, k, v, score_mod), dense(q, k, v, score_mod).out)


def test_autocast_and_checkpoints() -> None:
    q, k, v = (x.requires_grad_() for x in inputs())
    score_mod, mask_mod = flex_cases.alibi_tensor()

    def call(q: Tensor) -> Tensor:
        return flex_attention(q, k, v, score_mod, mask_mod=mask_mod, enable_gqa=True)

    with torch.autocast("cpu", torch.bfloat16):
        assert call(q).dtype == torch.bfloat16
    weight = torch.randn(2, 4, 70, DV)
    again = checkpoint(call, q, use_reentrant=False)
    for found, wanted in zip(
        torch.autograd.grad((again * weight).sum(), (q, k, v)),
        torch.autograd.grad((call(q) * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(found, wanted)


# -- what rebuilds, and what does not --------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How many kernels have been built since the test began."""
    monkeypatch.setenv("ATTNCOMPILER_CACHE", str(tmp_path))
    monkeypatch.setattr(attncompiler.flex, "_OPERATORS", {})
    return lambda: len(list(tmp_path.rglob("kernel.so")))


def chunked(size: int, slope: float, table: Tensor) -> tuple[Body, Body]:
    shift = torch.tensor(size // 3)

    def near(q_idx: Any, kv_idx: Any) -> Any:
        return q_idx - kv_idx < 2 * size

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any, limit: int = size + 1) -> Any:
        same = q_idx // size == (kv_idx + shift) // size
        return (same | (kv_idx < limit)) & near(q_idx, kv_idx)

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, *, factor: float) -> Any:
        if factor < 0:
            raise ValueError("Python sees the number")
        return score * factor + slope * table[h, (q_idx - kv_idx) % len(table[0])]

    return partial(score_mod, factor=1.0 / size), mask_mod


def test_new_numbers_and_lengths_build_nothing(builds: Callable[[], int]) -> None:
    """Divisors, and numbers that formulas could fold (0, 1, 2, 0.5), are run-time values too."""
    for size, slope, length in [
        (7, 0.3, 20),
        (1, 1.0, 33),
        (2, 0.5, 65),
        (3, 0.0, 1),
        (64, -2.0, 90),
    ]:
        q, k, v = inputs(queries=length, keys=length + 3)
        score_mod, mask_mod = chunked(size, slope, torch.randn(4, 9))
        out = flex_attention(q, k, v, score_mod, mask_mod=mask_mod, enable_gqa=True)
        close(out, dense(q, k, v, score_mod, mask_mod).out)
        assert builds() == 1
    q, k, v = inputs(queries=40, keys=40)
    score_mod, mask_mod = chunked(5, 0.1, torch.randn(4, 11))
    flex_attention(q, k, v, score_mod, mask_mod=mask_mod, enable_gqa=True)
    assert builds() == 2  # the length of the table is a constant of the formula
    flex_attention(q.double(), k.double(), v.double(), score_mod, enable_gqa=True)
    assert builds() == 3


def test_twenty_lengths_with_block_masks(builds: Callable[[], int]) -> None:
    for length in range(33, 1333, 65):
        q = torch.randn(1, 1, length, 8)
        block_mask = create_block_mask(window_of(length // 4), None, None, length, length, "cpu")
        out = flex_attention(q, q, q, block_mask=block_mask)
        close(out, dense(q, q, q, None, window_of(length // 4)).out)
    assert builds() == 1


def test_python_may_choose_the_formula(builds: Callable[[], int]) -> None:
    q, k, v = inputs(groups=4)

    def body(kind: str) -> Body:
        def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score * 2 if kind == "double" else score + (q_idx == kv_idx)

        return score_mod

    for kind in ("double", "diagonal", "double"):
        close(flex_attention(q, k, v, body(kind)), dense(q, k, v, body(kind)).out)
    assert builds() == 2


def test_numbers_of_closures_are_marked_and_others_kept() -> None:
    size, names = 5, ["a", "b"]
    numbers, nested = (3, 2.5), window_of(4)

    def body(x: int, y: int = 7, *, z: int = 8) -> list[Any]:
        return [size, names, numbers, nested, x, y, z, body]

    body.note = "kept"  # type: ignore[attr-defined]
    marked: Any = with_marked_numbers(body)
    found = marked(1)
    assert found[:3] == [5, names, (3, 2.5)]
    assert found[1] is names
    assert found[4:7] == [1, 7, 8]
    assert isinstance(found[0], RunTimeInt)
    assert type(found[4]) is int
    assert found[7] is marked
    assert marked.note == "kept"
    origins = [found[0], found[5], found[6], *found[2]]
    assert len({x.origin for x in origins}) == len(origins)
    assert (found[0] - 1).origin == (found[0] - 1).origin != (found[0] + 1).origin
    assert with_marked_numbers(causal) is causal


def test_the_operator_of_a_call_can_be_read() -> None:
    q, k, v = inputs(groups=4)
    score_mod, _ = flex_cases.alibi_tensor()
    operator = operator_of(q, k, v, score_mod, mask_mod=causal)
    for text in (operator.explain(), operator.source(head_dim=16, value_dim=24)):
        assert "return score + slopes[h] * (kv_idx - q_idx).float()" in text
        assert "return q_idx >= kv_idx" in text
    assert operator.name == "flex_alibi_causal"
    flex_attention(q, k, v, score_mod, mask_mod=causal)
    assert operator is operator_of(q, k, v, score_mod, mask_mod=causal)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(operator)


# -- porting ---------------------------------------------------------------------------------------------------


def test_a_model_written_for_torch_runs_unchanged() -> None:
    """The import is all that differs."""
    source = Path(__file__).with_name("ported_model.txt").read_text()
    ours: dict[str, Any] = {}
    exec(source.replace("# IMPORT", "from attncompiler import flex_attention"), ours)
    torch.manual_seed(1)
    model = ours["Attention"](64, 4, 2)
    x = torch.randn(2, 50, 64)
    found = model(x, torch.tensor([[0] * 20 + [1] * 30, [0] * 50]))
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    wanted = ours["by_definition"](model, x, torch.tensor([[0] * 20 + [1] * 30, [0] * 50]))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "flex_attention.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})


# Dynamo looks at .grad of what a resumed function returns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_under_torch_compile() -> None:
    """The call is a graph break: what is around it is compiled, and fullgraph=True is refused by torch."""
    q, k, v = (x.requires_grad_() for x in inputs(groups=4))
    slope = nn.Parameter(torch.tensor(0.5))

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score - slope * (q_idx - kv_idx)

        return flex_attention(q * 2, k, v, score_mod, mask_mod=causal).sin()

    found, wanted = torch.compile(f, backend="aot_eager")(q, k, v), f(q, k, v)
    torch.testing.assert_close(found, wanted)
    gradients = (torch.autograd.grad(out.sum(), (q, k, v, slope)) for out in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(f, backend="eager", fullgraph=True)(q, k, v)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import attncompiler, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


INFINITE: dict[str, Body] = {
    "additive masks": lambda s, b, h, i, j: s + keys[j] + torch.where(i < 9, 0, -math.inf),
    "subtracted penalty": lambda s, b, h, i, j: torch.where(i >= j, s, -math.inf) - -keys[j],
    "otherwise": lambda s, b, h, i, j: torch.where(i < 30, -math.inf, s * s) + 1,
    "nested": lambda s, b, h, i, j: torch.where(
        i < j, -math.inf, torch.where(i % 3 == 0, s, -math.inf)
    ),
    "by the score": lambda s, b, h, i, j: torch.where(s > 1.0, s, -math.inf),
    "in a product": lambda s, b, h, i, j: torch.where(i > 4, s, -math.inf) * 2 + h,
    "infinity subtracted": lambda s, b, h, i, j: s - torch.where(i > 4, 0.0, math.inf),
}
keys = torch.where(torch.arange(70) % 4 == 1, 0.5, -math.inf)


@pytest.mark.parametrize("name", INFINITE)
def test_scores_of_minus_infinity(name: str) -> None:
    """A row of nothing else is an empty row, however the formula says so; its gradients are 0."""
    q, k, v = (x.double().requires_grad_() for x in inputs())
    if name == "by the score":
        q = q.detach().index_fill(2, torch.tensor([7]), 0.0).requires_grad_()
    out, lse = flex_attention(q, k, v, INFINITE[name], enable_gqa=True, return_lse=True)
    wanted = dense(q, k, v, INFINITE[name])
    close(out, wanted.out)
    close(lse, wanted.lse)
    assert (lse == -math.inf).any()
    found, exact = (
        torch.autograd.grad(o.square().sum() + x[x > -math.inf].sum(), (q, k, v))
        for o, x in ((out, lse), (wanted.out, wanted.lse))
    )
    for ours, theirs in zip(found, exact, strict=True):
        close(ours, theirs)
