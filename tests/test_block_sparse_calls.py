"""Calls with a BlockSparse: mistakes are refused with the line of the call, and torch traces right ones whole."""

from __future__ import annotations

import io
import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, noop_mask

import attncompiler
from attncompiler import BlockSparse, errors, flex_attention
from attncompiler.dsl import Variant, causal
from attncompiler.runtime.errors import BlockListError, DeviceError, DtypeError, TransformError

pytestmark = pytest.mark.usefixtures("quick_builds")

PAGE = Path(__file__).parent.parent / "docs" / "block_sparse.md"
B, H, G, M, N, D = 2, 4, 2, 100, 150, 8


class Causal(Variant):
    """A mask, to be met by lists."""

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)


OPERATOR = attncompiler.compile(Causal)
ORACLE = attncompiler.compile(Causal, backend="dense")


def inputs(queries: int = M, keys: int = N) -> list[Tensor]:
    return [torch.randn(B, heads, n, D) for heads, n in ((H, queries), (G, keys), (G, keys))]


def lists_of(
    *lead: int, rows: int = 4, block: tuple[int, int] = (32, 32), **changes: Any
) -> BlockSparse:
    """Blocks 0, 2 and 4 of five, with one place to spare; ``changes`` sets entries of counts or indices."""
    indices = torch.tensor([0, 2, 4, -1], dtype=torch.int32).repeat(*lead, rows, 1)
    counts = torch.full((*lead, rows), 3, dtype=torch.int32)
    for value in changes.get("indices", []):
        indices[..., 1, 1] = value
    for value in changes.get("counts", []):
        counts[..., 2] = value
    return BlockSparse(indices, counts, block)


# (what is given, the error, what its text says, what its remedy says)
MISTAKES: list[tuple[Callable[[], Any], type[errors.AttnCompilerError], str, str]] = [
    (
        lambda: [[0], [1]],
        errors.ArgumentsError,
        "expected a BlockSparse, got a list",
        "BlockSparse",
    ),
    (
        lambda: create_block_mask(noop_mask, None, None, M, N, "cpu"),
        errors.ArgumentsError,
        "got a BlockMask",
        "flex_attention",
    ),
    (
        lambda: lists_of(rows=3),
        errors.ShapeError,
        "lists for 3 blocks of queries, the call has 4: 100 queries in blocks of 32",
        "one list for each block",
    ),
    (lambda: lists_of(rows=5), errors.ShapeError, "lists for 5 blocks of queries", "q_start"),
    (
        lambda: lists_of(3, 1),
        errors.ShapeError,
        "lists for 3 batches, the call has 2",
        "each batch",
    ),
    (
        lambda: lists_of(3),
        errors.ShapeError,
        "lists for 3 heads, the call has 4 in 2 groups",
        "each group of heads",
    ),
    (
        lambda: lists_of(indices=[5]),
        BlockListError,
        r"query block 1 \(batch 0, head 0\) names block 5, there are 5 blocks of keys",
        "count from 0",
    ),
    (lambda: lists_of(indices=[-1]), BlockListError, "names block -1", "behind the end"),
    (
        lambda: lists_of(B, H, indices=[4]),
        BlockListError,
        "query block 1 .* names block 4 twice",
        "different blocks",
    ),
    (
        lambda: lists_of(counts=[5]),
        BlockListError,
        "query block 2 .* has the length 5, its storage holds 4",
        "how many entries",
    ),
    (lambda: lists_of(counts=[-1]), BlockListError, "has the length -1", "from 0 up"),
    (
        lambda: BlockSparse(lists_of().indices.to("meta"), lists_of().counts, (32, 32)),
        DeviceError,
        r"sparsity\.indices is on meta",
        r"sparsity\.indices\.cpu\(\)",
    ),
    (
        lambda: BlockSparse(lists_of().indices, lists_of().counts.to("meta"), (32, 32)),
        DeviceError,
        r"sparsity\.counts is on meta",
        r"sparsity\.counts\.cpu\(\)",
    ),
]


@pytest.mark.parametrize(("given", "error", "text", "remedy"), MISTAKES)
@pytest.mark.parametrize("operator", [OPERATOR, ORACLE])
def test_mistakes(
    monkeypatch: pytest.MonkeyPatch,
    operator: Any,
    given: Callable[[], Any],
    error: type[errors.AttnCompilerError],
    text: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(subprocess, "run", None)  # nothing is built
    sparsity = given()
    with pytest.raises(error, match=text) as caught:
        operator(*inputs(), sparsity=sparsity)
    assert caught.value.location is not None
    assert "operator(*inputs(), sparsity=sparsity)" in caught.value.location.excerpt()
    assert re.search(remedy, caught.value.remedy)


def test_mistakes_of_lists_that_no_call_could_take() -> None:
    ints, table = torch.zeros(4, 2).int(), torch.ones(4, 5, dtype=torch.bool)
    for made, error, text in [
        (
            lambda: BlockSparse(torch.zeros(4, 2), ints[:, 0]),
            DtypeError,
            "indices: .* got torch.float32",
        ),
        (lambda: BlockSparse(ints, ints[:, 0] > 0), DtypeError, "counts: .* got torch.bool"),
        (lambda: BlockSparse([[0]], ints[:, 0]), DtypeError, "indices: .* got list"),
        (lambda: BlockSparse(ints, ints), errors.ShapeError, r"shape \[4, 2\], counts \[4, 2\]"),
        (lambda: BlockSparse(ints, ints[:3, 0]), errors.ShapeError, r"counts \[3\]"),
        (lambda: BlockSparse(ints[0], ints[0, 0]), errors.ShapeError, r"shape \[2\]"),
        (
            lambda: BlockSparse(ints, ints[:, 0], (0, 16)),
            errors.ArgumentsError,
            r"block is \(0, 16\)",
        ),
        (lambda: BlockSparse(ints, ints[:, 0], 16), errors.ArgumentsError, "block is 16"),
        (lambda: BlockSparse(ints, ints[:, 0], (2.0, 16)), errors.ArgumentsError, "block is"),
        (lambda: BlockSparse.from_dense(ints), errors.ArgumentsError, "got torch.int32 of 2 axes"),
        (lambda: BlockSparse.from_dense(table[0]), errors.ArgumentsError, "torch.bool of 1 axes"),
    ]:  # type: ignore[var-annotated]
        with pytest.raises(error, match=text) as caught:
            made()
        assert "BlockSparse" in str(caught.value.location and caught.value.location.excerpt())


def test_mistakes_in_inputs_come_first() -> None:
    q, k, v = inputs()
    with pytest.raises(errors.ShapeError, match="q: it has shape"):
        OPERATOR(q[0], k, v, sparsity=lists_of())
    with pytest.raises(DeviceError, match="k is on meta"):
        OPERATOR(q, k.to("meta"), v, sparsity=lists_of())
    with pytest.raises(errors.ShapeError, match="lists for 3 blocks of queries"):
        flex_attention(q, k, v, block_mask=lists_of(rows=3), enable_gqa=True)
    with pytest.raises(TransformError):
        torch.vmap(
            lambda x: OPERATOR(q, k, v, sparsity=BlockSparse(x, lists_of().counts, (32, 32)))
        )(torch.stack([lists_of().indices] * 2))


def test_sparsity_is_no_name_for_a_tensor() -> None:
    with pytest.raises(errors.DeclarationError, match="argument of every operator"):
        type("Bad", (Variant,), {"sparsity": attncompiler.dsl.Tensor("h")})


# Inside torch's tracers.


def random_lists(queries: int, keys: int, block: int, *lead: int) -> BlockSparse:
    table = torch.rand(*lead, -(-queries // block), -(-keys // block)) < 0.5
    return BlockSparse.from_dense(table, (block, block))


def twice(q: Tensor, k: Tensor, v: Tensor, first: BlockSparse, second: BlockSparse) -> Tensor:
    """Lists of two forms in one graph."""
    return OPERATOR(q, k, v, sparsity=first, q_start=70) + OPERATOR(q, k, v, sparsity=second)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    for queries, keys, block in [(100, 150, 32), (110, 150, 32), (300, 70, 32), (300, 70, 64)]:
        given = [x.requires_grad_() for x in inputs(queries, keys)]
        lists = random_lists(queries, keys, block), random_lists(queries, keys, 32, B, G)
        outs = twice(*given, *lists), compiled(*given, *lists)
        torch.testing.assert_close(*outs)
        torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), given) for x in outs))
        lists[0].indices[0, 0] = 99
        lists[0].counts[0] = 1
        with pytest.raises(BlockListError, match="names block 99"):
            compiled(*given, *lists)
    # What torch raises for an op that refuses fake tensors names the reason.
    with pytest.raises(Exception, match="sparsity: it has lists for"):
        compiled(*inputs(), lists_of(rows=3), lists_of(B, 1))


def test_lists_may_be_made_in_a_trace() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return OPERATOR(q, k, v, sparsity=BlockSparse.from_dense(table, (32, 32)))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    given, table = inputs(), torch.rand(B, G, 4, 5) < 0.5
    torch.testing.assert_close(compiled(*given, table), run(*given, table))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_take_lists(strict: bool) -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, lists: BlockSparse) -> Any:
            return OPERATOR(q, k, v, sparsity=lists)

    given, file = inputs(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its serialiser
        exported = torch.export.export(Layer(), (*given, random_lists(M, N, 32)), strict=strict)
        torch.export.save(exported, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
    lists = random_lists(M, N, 32)
    torch.testing.assert_close(loaded(*given, lists), OPERATOR(*given, sparsity=lists))


def test_opcheck() -> None:
    sizes = (B, H, G, M, N)
    torch.library.opcheck(
        torch.ops.attncompiler.block_table.default,
        (lists_of(B, G).indices, lists_of(B, G).counts, (32, 32), sizes),
    )


def test_the_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})


def test_the_generated_file_says_what_it_is_for() -> None:
    OPERATOR(*inputs(), sparsity=lists_of())
    made = OPERATOR._listed.blocks_32_32_  # type: ignore[attr-defined]
    assert "Called with sparsity=BlockSparse(..., block=(32, 32))" in made.source()
    assert "a call of attncompiler.compile(Causal) with sparsity" in made.source()
    assert "listed" in made.explain()
