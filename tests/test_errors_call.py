"""Mistakes in a call of a compiled operator: each is refused before anything is built, with a name and a remedy."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import attncompiler
from attncompiler import errors
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant
from attncompiler.runtime import errors as run_errors


class Everything(Variant):
    """Every kind of argument: parameters of three kinds, tensors over every kind of axis."""

    window: int = 8
    slope: float = 0.5
    flip: bool = False
    sink = Input("h")
    table = Input("rows", 2)
    rows = Input("b", "k", dtype="int")
    allowed = Input("q", "k", dtype="bool")

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s * self.slope + self.table[self.rows[at.b, at.k], 1] + self.sink[at.h] * self.flip

    def mask(self, at):  # type: ignore[no-untyped-def]
        return self.allowed[at.q - at.q, at.k] & (at.q - at.k < self.window)


B, H, G, M, N, D = 2, 4, 2, 10, 12, 8


def arguments() -> dict[str, Any]:
    return {
        "q": torch.randn(B, H, M, D),
        "k": torch.randn(B, G, N, D),
        "v": torch.randn(B, G, N, 6),
        "sink": torch.randn(H),
        "table": torch.randn(5, 2),
        "rows": torch.randint(0, 5, (B, N)),
        "allowed": torch.ones(M, N, dtype=torch.bool),
    }


OPERATOR = attncompiler.compile(Everything)
Change = Callable[[Tensor], object]


def changed(name: str, change: Change) -> dict[str, Any]:
    given = arguments()
    given[name] = change(given[name])
    return given


def test_the_call_itself_is_right() -> None:
    assert OPERATOR(**arguments()).shape == (B, H, M, 6)


# (argument, how it is spoilt, the error, what its text says, what its remedy says)
MISTAKES: list[tuple[str, Change, type[errors.AttnCompilerError], str, str]] = [
    ("q", lambda x: x[0], errors.ShapeError, r"q: it has shape \[4, 10, 8\]", r"q\[None, None\]"),
    ("k", lambda x: x[..., None], errors.ShapeError, "k: it has shape", "reshape"),
    (
        "k",
        lambda x: x[:1],
        errors.ShapeError,
        "k: its batch is 1, the batch of q is 2",
        r"k\.expand\(2",
    ),
    ("v", lambda x: x[:1], errors.ShapeError, "v: its batch is 1", r"v\.expand"),
    ("v", lambda x: x[:, :1], errors.ShapeError, "v: it has 1 heads, k has 2", "same heads"),
    ("v", lambda x: x[:, :, 1:], errors.ShapeError, "v: it has length 11, k has 12", "same length"),
    (
        "k",
        lambda x: x[..., :7],
        errors.ShapeError,
        "k: its head_dim is 7, that of q is 8",
        "one head_dim",
    ),
    (
        "q",
        lambda x: x[:, :3],
        errors.ShapeError,
        "q: it has 3 heads, which is no multiple of the 2",
        "multiple",
    ),
    (
        "q",
        lambda x: torch.randn(B, H, M, 513),
        errors.ShapeError,
        "head_dim is 8, that of q is 513",
        "head_dim",
    ),
    (
        "v",
        lambda x: torch.randn(B, G, N, 513),
        run_errors.LimitError,
        "head_dim of v is 513",
        "split",
    ),
    ("v", lambda x: x[..., :0], run_errors.LimitError, "head_dim of v is 0", ""),
    ("q", lambda x: x[..., :0], errors.ShapeError, "head_dim is 8, that of q is 0", ""),
    ("q", lambda x: x.sum(), errors.ShapeError, r"q: it has shape \[\]", "reshape"),
    (
        "q",
        lambda x: x.mT.contiguous().mT,
        run_errors.LayoutError,
        "q has stride 10",
        r"q\.contiguous\(\)",
    ),
    (
        "k",
        lambda x: x[..., :1].expand(x.shape),
        run_errors.LayoutError,
        "k has stride 0",
        "contiguous",
    ),
    (
        "v",
        lambda x: torch.randn(B, G, N, 12)[..., ::2],
        run_errors.LayoutError,
        "v has stride 2",
        "contiguous",
    ),
    (
        "k",
        lambda x: x.double(),
        run_errors.DtypeError,
        "k: it is torch.float64 and q is torch.float32",
        r"k\.to",
    ),
    (
        "q",
        lambda x: x.long(),
        run_errors.DtypeError,
        "q: elements of type torch.int64",
        "float32, bfloat16",
    ),
    (
        "q",
        lambda x: x.to(torch.complex64),
        run_errors.DtypeError,
        "q: elements of type torch.complex64",
        "float32",
    ),
    (
        "k",
        lambda x: x.to(torch.float8_e5m2),
        run_errors.DtypeError,
        "k: it is torch.float8_e5m2 and q is torch.float32",
        r"k\.to",
    ),
    (
        "q",
        lambda x: x.numpy(),
        run_errors.DtypeError,
        "q: expected a torch tensor, got ndarray",
        "tensor",
    ),
    (
        "v",
        lambda x: None,
        run_errors.DtypeError,
        "v: expected a torch tensor, got NoneType",
        "tensor",
    ),
    ("q", lambda x: x.to("meta"), run_errors.DeviceError, "q is on meta", r"q\.cpu\(\)"),
    ("sink", lambda x: x.to("meta"), run_errors.DeviceError, "sink is on meta", r"sink\.cpu\(\)"),
    (
        "k",
        lambda x: x.to_sparse(),
        run_errors.DtypeError,
        "k: its layout is torch.sparse_coo",
        r"k\.to_dense",
    ),
    (
        "sink",
        lambda x: x[:2],
        errors.ShapeError,
        r"sink: axis 0 \(h\) has extent 2, but .* is 4",
        r"\(h\)",
    ),
    ("sink", lambda x: x[None], errors.ShapeError, r"sink: it has shape \[1, 4\]", "1 axes"),
    ("sink", lambda x: x.sum(), errors.ShapeError, r"sink: it has shape \[\]", "1 axes"),
    (
        "sink",
        lambda x: x.long(),
        run_errors.DtypeError,
        "sink: it is torch.int64, declared as float",
        "float32",
    ),
    (
        "sink",
        lambda x: x.tolist(),
        run_errors.DtypeError,
        "sink: expected a torch tensor, got list",
        "tensor",
    ),
    ("sink", lambda x: None, errors.AttnCompilerError, "sink", "tensor|pass it"),
    (
        "table",
        lambda x: x[:, :1],
        errors.ShapeError,
        r"table: axis 1 \(2\) has extent 1",
        "rows, 2",
    ),
    (
        "rows",
        lambda x: x.float(),
        run_errors.DtypeError,
        "rows: it is torch.float32, declared as int",
        "int64",
    ),
    (
        "rows",
        lambda x: x.bool(),
        run_errors.DtypeError,
        "rows: it is torch.bool, declared as int",
        "int64",
    ),
    (
        "allowed",
        lambda x: x.to(torch.uint8),
        run_errors.DtypeError,
        "allowed: it is torch.uint8",
        "bool",
    ),
    ("allowed", lambda x: x.T, errors.ShapeError, r"allowed: axis 0 \(q\) has extent 12", ""),
]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("name", "change", "kind", "says", "remedy"), MISTAKES)
def test_wrong_tensors(
    name: str,
    change: Change,
    kind: type[errors.AttnCompilerError],
    says: str,
    remedy: str,
    recorded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where another tensor needs a gradient, so that the call goes through torch."""
    monkeypatch.setattr(subprocess, "run", None)  # nothing is built for a wrong call
    given = changed(name, change)
    if recorded:
        given["v" if name != "v" else "table"].requires_grad_()
    with pytest.raises(kind, match=f"(?s){says}.*help: .*{remedy}"):
        OPERATOR(**given)


OTHERS: list[tuple[dict[str, object], type[errors.AttnCompilerError], str]] = [
    ({"q_start": -1}, run_errors.LimitError, "q_start is -1"),
    ({"q_start": 2**30}, run_errors.LimitError, "q_start is 1073741824"),
    ({"q_start": 2**80}, errors.AttnCompilerError, "q_start"),
    ({"q_start": 1.5}, errors.ParameterTypeError, "'q_start' of Everything is an int, got 1.5"),
    ({"q_start": "3"}, errors.ParameterTypeError, "'q_start' of Everything is an int, got '3'"),
    ({"q_start": None}, errors.ParameterTypeError, "q_start"),
    ({"q_start": True}, errors.AttnCompilerError, "q_start"),
    ({"q_start": torch.zeros(2)}, errors.ParameterTypeError, "q_start"),
    ({"scale": "1"}, errors.ParameterTypeError, "'scale' of Everything is a float, got '1'"),
    ({"scale": torch.ones(2)}, errors.ParameterTypeError, "scale"),
    ({"scale": [1.0]}, errors.ParameterTypeError, "scale"),
    ({"window": 2.5}, errors.ParameterTypeError, "'window' of Everything is an int, got 2.5"),
    ({"window": True}, errors.ParameterTypeError, "window"),
    ({"window": 2**63}, errors.ParameterTypeError, "window"),
    ({"window": torch.tensor([1, 2])}, errors.ParameterTypeError, "window"),
    ({"slope": "0.5"}, errors.ParameterTypeError, "'slope' of Everything is a float"),
    ({"slope": 1j}, errors.ParameterTypeError, "slope"),
    ({"slope": None}, errors.ParameterTypeError, "slope"),
    ({"flip": 1}, errors.ParameterTypeError, "give True or False"),
    ({"windw": 3}, errors.UnknownArgumentError, "takes no argument 'windw'(?s:.*)it takes window"),
    ({"sinks": torch.zeros(4)}, errors.UnknownArgumentError, "'sinks'(?s:.*)it takes sink"),
]


@pytest.mark.parametrize(("wrong", "kind", "says"), OTHERS, ids=lambda x: str(x)[:30])
def test_wrong_numbers_and_names(
    wrong: dict[str, object], kind: type[errors.AttnCompilerError], says: str
) -> None:
    for change in (torch.detach, lambda x: x.requires_grad_()):
        with pytest.raises(kind, match=says) as caught:
            OPERATOR(**changed("q", change), **wrong)
        assert caught.value.remedy


def test_tensors_go_by_name() -> None:
    given = arguments()
    q, k, v, sink = (given.pop(name) for name in ("q", "k", "v", "sink"))
    for operator in (OPERATOR, attncompiler.compile(OPERATOR.variant, backend="dense")):
        with pytest.raises(run_errors.PositionalTensorError, match=r"1 more(?s:.*)sink=\.\.\."):
            operator(q, k, v, sink, **given)


def test_a_missing_tensor_is_named_with_its_axes() -> None:
    for name, axes in (("sink", "h"), ("table", "rows, 2"), ("allowed", "q, k")):
        given = arguments()
        del given[name]
        with pytest.raises(
            errors.MissingTensorError, match=rf"{name}' of axes \({axes}\)(?s:.*){name}=\.\.\."
        ):
            OPERATOR(**given)


NUMBERS: list[dict[str, object]] = [
    {"window": 4, "slope": 2.0, "flip": True, "q_start": 3, "scale": 0.25},
    {"window": np.int32(4), "slope": np.float32(2), "flip": np.bool_(True), "q_start": np.int64(3), "scale": 0.25},
    {"window": np.array(4), "slope": np.array(2.0), "flip": np.array(True), "q_start": 3, "scale": np.float64(0.25)},
    {"window": torch.tensor(4), "slope": torch.tensor(2.0), "flip": torch.tensor(True), "q_start": torch.tensor(3),
     "scale": torch.tensor(0.25)},
    {"window": 4, "slope": 2, "flip": True, "q_start": 3, "scale": 0.25},
]  # fmt: skip


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    given = arguments()
    first, *others = (OPERATOR(**given, **numbers) for numbers in NUMBERS)
    for other in others:
        assert torch.equal(other, first)


def test_a_scale_of_nan_shows() -> None:
    assert OPERATOR(**arguments(), scale=math.nan).isnan().any()


def test_a_number_that_requires_a_gradient_is_refused() -> None:
    """Its value alone would be taken, and its gradient silently lost."""
    learnable = torch.tensor(0.5, requires_grad=True)
    for name in ("slope", "scale"):
        with pytest.raises(errors.ParameterTypeError, match=rf"{name}(?s:.*)pass {name}\.item\(\)"):
            OPERATOR(**arguments(), **{name: learnable})
        with torch.no_grad():
            OPERATOR(**arguments(), **{name: learnable})
    with pytest.raises(errors.ParameterTypeError, match="no gradient"):
        Everything(slope=learnable)


class Prepared(Variant):
    """``prepare`` returns a tensor that the call may give as well."""

    bias = Input("h")
    gain = Input("k")

    def prepare(self, q, k, v, gain):  # type: ignore[no-untyped-def]
        return q, k * gain[:, None], v, {"bias": k.sum((0, 2, 3)) * 0 + 3}

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s + self.bias[at.h] * at.k

    def mask(self, at):  # type: ignore[no-untyped-def]
        return at.k < 5


def test_what_prepare_returns_wins_over_what_the_call_gives() -> None:
    q, k, v = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    op = attncompiler.compile(Prepared)
    own = op(q, k, v, gain=torch.ones(7))
    given = op(q, k, v, gain=torch.ones(7), bias=torch.full((2,), -3.0))
    assert torch.equal(own, given)
    from attncompiler import oracle

    tensors = {"gain": torch.ones(7), "bias": torch.full((2,), -3.0)}
    wanted = oracle.attention(Prepared(), q, k, v, tensors=tensors).out
    torch.testing.assert_close(given.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_tensor_that_prepare_needs_is_missed_before_it_runs() -> None:
    q = torch.randn(1, 2, 6, 4)
    with pytest.raises(errors.MissingTensorError, match="'gain'"):
        attncompiler.compile(Prepared)(q, q, q)


def test_prepare_sees_only_tensors() -> None:
    with pytest.raises(errors.AttnCompilerError, match="q"):
        attncompiler.compile(Prepared)(None, None, None, gain=torch.ones(7))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_eight_bit_floats_are_refused_on_the_cpu(backend: Any) -> None:
    q = torch.randn(1, 2, 6, 4).to(torch.float8_e4m3fn)
    op = attncompiler.compile(Variant, backend=backend)
    for call in (op, torch.compile(op, backend="eager")):
        with pytest.raises(run_errors.DtypeError) as caught:
            call(q, q, q)
        assert "float8_e4m3fn are not supported by the cpp backend" in caught.value.summary
        assert "convert q, k and v to bfloat16, which holds them exactly" in caught.value.remedy
    with pytest.raises(errors.AttnCompilerError, match=r"no gradients|not supported"):
        op(q, q, q.clone().requires_grad_())
