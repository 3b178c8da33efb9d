"""What a mistake in a body or a call of flex_attention says, and which line it shows."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest

from attncompiler import errors, flex_attention
from attncompiler.errors import AttnCompilerError
from attncompiler.runtime.errors import DeviceError, DtypeError
from tests.flex_reference import causal, inputs

table = torch.randn(4, 70)
elsewhere = torch.randn(4, device="meta")
spectrum = torch.randn(4, dtype=torch.complex64)


def branch(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    if q_idx >= kv_idx:  # error: `if` needs a value that is known
        return score
    return score - 1


def shortcut(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score * math.exp(score)  # error: a symbolic value has no number yet


def open_axis(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + table[h]  # error: its axes captured0_axis1 have no index


def float_index(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + table[h, q_idx / 2]  # error: is a float, it must be an int


def whole_tensor(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + table  # error: cannot use a torch tensor of shape (4, 70) as one number


def reduction(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.softmax(score, -1)  # error: unknown function torch.softmax


def other_device(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    slope = elsewhere[h]  # error: a tensor that the body reads is on meta
    return score + slope


def complex_numbers(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + spectrum[h]  # error: elements of type torch.complex64 are not supported


def undefined(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + slopes[h]  # type: ignore[name-defined]  # noqa: F821 # error: stops with NameError


def truth(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx  # error: flex_attention.score_mod must return a float, it returns a bool


def silent(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # error: it returns nothing
    score = score + 1


def mask_signature(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # error: takes (b: Any, h
    return q_idx >= kv_idx


def fails_inside(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + {}["slope"]  # type: ignore[operator,index] # error: score_mod stops with KeyError


MISTAKES = [
    branch,
    shortcut,
    open_axis,
    float_index,
    whole_tensor,
    reduction,
    other_device,
    complex_numbers,
    undefined,
    truth,
    silent,
    mask_signature,
    fails_inside,
    partial(fails_inside),
]


def marked(body: Any) -> tuple[int, str]:
    """The line of a body that carries a mark, and the text after it."""
    code = getattr(body, "func", body).__code__
    lines = Path(__file__).read_text().splitlines()
    for number in range(code.co_firstlineno, len(lines) + 1):
        if "# error: " in lines[number - 1]:
            return number, lines[number - 1].split("# error: ")[1]
    raise AssertionError("no mark")


@pytest.mark.parametrize("body", MISTAKES, ids=lambda body: getattr(body, "__name__", "partial"))
def test_mistakes_in_a_body_show_its_line(body: Any) -> None:
    line, text = marked(body)
    with pytest.raises(AttnCompilerError) as caught:
        flex_attention(*inputs(groups=4), body)
    assert text in str(caught.value)
    location = caught.value.location
    assert location is not None
    assert (location.filename, location.line) == (__file__, line)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            lambda b, h, q_idx, kv_idx: q_idx - kv_idx,
            "mask_mod must return a bool, it returns an int",
        ),
        (lambda b, h, q_idx, kv_idx: kv_idx <= q_idx and kv_idx > 2, "`and` needs a value"),
        (
            lambda b, h, q_idx: q_idx > 0,
            "mask_mod takes (b, h, q_idx), expected (b, h, q_idx, kv_idx)",
        ),
        (3, "mask_mod is a int"),
    ],
)
def test_mistakes_in_a_mask(body: Any, text: str) -> None:
    with pytest.raises(AttnCompilerError) as caught:
        flex_attention(*inputs(groups=4), mask_mod=body)
    assert text in str(caught.value)
    assert caught.value.location is not None
    assert caught.value.location.filename == __file__


def wrong_calls() -> dict[str, tuple[type[AttnCompilerError], str, dict[str, Any]]]:
    q, k, v = inputs()
    equal = inputs(groups=4)
    named = dict(zip(("query", "key", "value"), equal, strict=True))
    return {
        "grouped": (
            errors.ShapeError,
            "it has 4 heads, key has 2",
            {"query": q, "key": k, "value": v},
        ),
        "three axes": (
            errors.ShapeError,
            "query: expected a tensor of four axes",
            named | {"query": q[0]},
        ),
        "list": (errors.ShapeError, "key: expected a tensor", named | {"key": [1, 2]}),
        "dtype": (DtypeError, "is torch.float64 and", named | {"value": equal[2].double()}),
        "device": (DeviceError, "is on meta", named | {"key": equal[1].to("meta")}),
        "batch": (errors.ShapeError, "batch", named | {"key": equal[1][:1], "value": equal[2][:1]}),
        "head_dim": (errors.ShapeError, "head_dim", named | {"key": equal[1][..., :8]}),
        "scale": (errors.ParameterTypeError, "'scale'", named | {"scale": "0.5"}),
        "both": (
            errors.ArgumentsError,
            "exclude each other",
            named | {"return_lse": True, "return_aux": AuxRequest(lse=True)},
        ),
        "options": (
            errors.ArgumentsError,
            "BLOCK_M=64 tunes GPU kernels",
            named | {"kernel_options": {"BACKEND": "AUTO", "BLOCK_M": 64}},
        ),
        "backend": (
            errors.ArgumentsError,
            "BACKEND='FLASH'",
            named | {"kernel_options": {"BACKEND": "FLASH"}},
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_mistakes_in_a_call_show_the_call(name: str) -> None:
    kind, text, arguments = wrong_calls()[name]
    with pytest.raises(kind) as caught:
        flex_attention(**arguments)
    assert text in str(caught.value)
    assert caught.value.location is not None
    assert caught.value.location.filename == __file__
    assert "flex_attention(**arguments)" in str(caught.value)


def test_promises_about_inputs_are_accepted() -> None:
    q, k, v = inputs(groups=4)
    promises = {"ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": True, "PRESCALE_QK": False}
    out = flex_attention(q, k, v, mask_mod=causal, kernel_options=promises)
    torch.testing.assert_close(out, flex_attention(q, k, v, mask_mod=causal, kernel_options={}))


def test_a_failing_body_leaves_its_exception() -> None:
    with pytest.raises(errors.SlotFailedError) as caught:
        flex_attention(*inputs(groups=4), fails_inside)
    assert isinstance(caught.value.__cause__, KeyError)
