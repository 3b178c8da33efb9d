"""8-bit floats as inputs: results are those of the numbers they hold, as exact as bfloat16 attention on these."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.backends.gpu_targets import EIGHT_BITS, target_of
from attncompiler.block_sparse import BlockSparse
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, document, maximum
from attncompiler.runtime import triton_engine
from attncompiler.runtime.errors import DtypeError, EightBitGradientError
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.tilelang_sources import TilelangSources
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.variant_file import load_variant
from tests.triton_calls import checker, engine_of, failures, use_tiles

EXAMPLES = Path(__file__).parents[2] / "examples"
DTYPES = EIGHT_BITS
# Fewer bits in its sums of 8-bit products than float32 has.
NARROW = replace(target_of("sm_90"), fp8=EIGHT_BITS)
CASE = Case(B=1, H=4, G=2, M=37, N=70, D=24, Dv=40, q_start=33)


class Plain(Variant):
    """No mask, no term: what a kernel does at least."""


class Documents(Variant):
    """Tiles from lists, and features that are read back: an output of the largest one."""

    ids = Input("k", dtype="int")
    gain = Input("h", "d")

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)

    def output(self, out: Any, at: Any) -> Any:
        return maximum(out, out * self.gain[at.h, at.d])


# Softmax, terms of scores, weights that are not bounded, normalizers with passes of their own, several accumulators.
@pytest.mark.parametrize(
    ("name", "turn"),
    [(n, i % 2) for i, n in enumerate((
        "alibi", "sigmoid", "reluformer", "standardized_softmax", "learned_sink", "affine_scaled", "t5_bias", "cog",
    ))],
)  # fmt: skip
def test_examples(name: str, turn: int) -> None:
    mine = checker(load_variant(EXAMPLES / f"{name}.py"))
    use_tiles(mine.operator, 32, 32)
    assert not failures(mine, [replace(CASE, dtype=DTYPES[turn])], gradients=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [Plain, Documents])
def test_types(variant: type[Variant], dtype: str) -> None:
    mine = checker(variant)
    use_tiles(mine.operator, 16, 32)
    assert not failures(mine, [replace(CASE, dtype=dtype)], gradients=False)


@pytest.mark.parametrize("head_dim", [1, 16, 31, 72, 128, 512])
def test_head_dimensions(head_dim: int) -> None:
    """A matrix instruction takes 32 features of queries and keys, and the rest of a tile is 0."""
    mine = checker(Plain)
    use_tiles(mine.operator, 16, 16)
    value_dim = {1: 512, 512: 1}.get(head_dim, head_dim + 8)
    turn, layout = head_dim % 2, ("padded", "swapped")[head_dim % 2]
    case = Case(B=2, H=1, G=1, M=19, N=35, D=head_dim, Dv=value_dim, layout=layout)
    assert not failures(mine, [replace(case, dtype=DTYPES[turn])], gradients=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_as_float16_are_the_same_numbers(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that adds up products of 8-bit floats in few bits: float16 holds all of them, the largest too."""
    op = attncompiler.compile(Plain, backend="triton")
    assert isinstance(op, Operator)
    kind: torch.dtype = getattr(torch, dtype)
    every = torch.arange(-128, 128, dtype=torch.int8)
    every = torch.where(every.view(kind).double().isfinite(), every, 0)
    k = torch.stack([every.roll(n) for n in range(17)]).view(kind)[None, None]
    q, v = torch.randn(1, 1, 9, 256).to(kind), torch.randn(1, 1, 17, 8).to(kind)
    scale = 1 / k.double().abs().max().item()
    wanted = op(q, k, v, scale=scale)
    launch, given = triton_engine.run_forward, []

    def spied(*arguments: Any, **named: Any) -> None:
        given.append(named["as_float16"])
        launch(*arguments, **named)

    monkeypatch.setattr(triton_engine, "run_forward", spied)
    monkeypatch.setattr(triton_engine, "_eight_bit_target", lambda q: NARROW)
    engine_of(op)._sites.clear()
    assert torch.equal(op(q, k, v, scale=scale), wanted)
    assert given == [True]


@pytest.mark.parametrize(
    ("arch", "dtype", "says"),
    [
        ("sm_86", torch.float8_e4m3fn, "sm_86 multiplies no 8-bit floats, not float8_e4m3fn"),
        ("gfx942", torch.float8_e5m2, "gfx942 multiplies float8_e4m3fnuz and float8_e5m2fnuz"),
        ("sm_90", torch.float8_e5m2fnuz, "sm_90 multiplies float8_e4m3fn and float8_e5m2, not"),
    ],
)
def test_gpus_without_the_type_are_refused(
    arch: str, dtype: torch.dtype, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_engine, "_eight_bit_target", lambda q: target_of(arch))
    with pytest.raises(DtypeError) as caught:
        attncompiler.compile(Plain, backend="triton")(**inputs(dtype))
    assert says in caught.value.summary
    assert "bfloat16, which holds them exactly" in caught.value.remedy


def inputs(dtype: torch.dtype = torch.float8_e4m3fn) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(1, 2, 40, 16, generator=generator).to(dtype) for n in "qkv"}


def test_results_are_bfloat16_and_statistics_float32() -> None:
    op = attncompiler.compile(Plain, backend="triton")
    for given in (inputs(), {n: x[:, :, :0] for n, x in inputs().items()}):
        out, stats = op(**given, return_stats=True)
        assert out.dtype == torch.bfloat16
        assert all(x.dtype == torch.float32 for x in stats.values())
    exact = attncompiler.compile(Plain, backend="dense")(**inputs())
    assert exact.dtype == torch.bfloat16
    torch.testing.assert_close(op(**inputs()), exact, rtol=2**-7, atol=2**-8)


def test_block_lists() -> None:
    op = attncompiler.compile(Plain, backend="triton")
    lists = BlockSparse(torch.tensor([[0], [1], [0]]), torch.tensor([1, 1, 1]), (16, 16))
    found = op(**inputs(), sparsity=lists)
    wanted = op(**{n: x.bfloat16() for n, x in inputs().items()}, sparsity=lists)
    torch.testing.assert_close(found, wanted)


def test_a_traced_call_knows_the_type_of_the_output() -> None:
    op = attncompiler.compile(Plain, backend="triton")

    def step(q: Any, k: Any, v: Any) -> Any:
        return op(q.to(torch.float8_e4m3fn), k, v) * 2

    given = inputs()
    q, k, v = given["q"].float(), given["k"], given["v"]
    compiled: Any = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), step(q, k, v))


def test_inputs_of_two_types_are_refused() -> None:
    op = attncompiler.compile(Plain, backend="triton")
    for name, other in (("k", torch.float8_e5m2), ("v", torch.bfloat16)):
        given = inputs() | {name: inputs(other)[name]}
        with pytest.raises(DtypeError, match=f"{name}: it is {other} and q is torch.float8_e4m3fn"):
            op(**given)


@pytest.mark.parametrize("name", ["q", "v", "gain"])
def test_gradients_are_refused_before_anything_runs(name: str) -> None:
    op = attncompiler.compile(Documents, backend="triton")
    given = inputs() | {"ids": torch.arange(40) // 9, "gain": torch.randn(2, 16)}
    expected = op(**given)
    given[name].requires_grad_()
    with pytest.raises(EightBitGradientError) as caught:
        op(**given)
    assert "no gradients for inputs of float8_e4m3fn" in caught.value.summary
    assert "torch.no_grad()" in caught.value.remedy
    assert "bfloat16" in caught.value.remedy
    with torch.no_grad():
        assert torch.equal(op(**given), expected)

    def step(**tensors: torch.Tensor) -> torch.Tensor:
        return op(**tensors)

    compiled: Any = torch.compile(step, backend="aot_eager")
    with pytest.raises(Exception, match="no gradients for inputs of float8_e4m3fn"):
        compiled(**given)


def test_the_tilelang_backend_refuses_them() -> None:
    op = attncompiler.compile(Plain, backend="triton")
    assert isinstance(op, Operator)
    engine = TritonEngine(op._kernels, TilelangSources(op._kernels))
    with pytest.raises(DtypeError, match=r"tilelang(?s:.*)convert q, k and v to bfloat16"):
        engine.forward(*inputs().values(), (), 0, 1.0, ())


def test_captured_tensors_of_eight_bits_are_refused() -> None:
    op = attncompiler.compile(Documents, backend="triton")
    given = inputs() | {"ids": torch.arange(40), "gain": torch.randn(2, 16)}
    given["gain"] = given["gain"].to(torch.float8_e4m3fn)
    with pytest.raises(
        DtypeError, match=r"gain: it is (?s:.*)convert it to one of float32, bfloat16"
    ):
        op(**given)


def test_the_example_of_the_documentation() -> None:
    page = (EXAMPLES.parent / "docs" / "gpu.md").read_text().partition("## 8-bit floats")[2]
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    # Its own module, where the variant's source is found.
    names: dict[str, Any] = {"__name__": "documentation"}
    torch.manual_seed(0)
    exec(example, names)
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(names[n].double() for n in "qkv"), is_causal=True
    )
    error = (names["out"].double() - exact).abs()
    assert names["out"].dtype == torch.bfloat16
    assert error.mean() < 0.02
    assert error.max() < 0.3
