"""What a kernel's file holds of the Triton mathematics: what it calls, and nothing else."""

from __future__ import annotations

import ast

from attncompiler.backends.triton_math import _functions, math_for
from attncompiler.templates.triton import math

KERNEL = '''
@triton.jit
def kernel(x, out, size: tl.constexpr):
    """Mentions truncate(x) and sine, calls neither."""
    i = tl.arange(0, size)
    y = {call}
    tl.store(out + i, tl.maximum(y, 0.0))
'''


def names(text: str) -> list[str]:
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]


def test_what_a_kernel_calls_comes_with_what_that_calls_in_the_order_of_the_file() -> None:
    text = math_for(KERNEL.format(call="tl.load(x + i) * sigmoid(tl.load(x + i))"))
    assert names(text) == ["product", "exponential2_of_sum", "exponential", "sigmoid"]
    assert text.startswith('@triton.jit\ndef product(x, y):\n    """The rounded x * y')
    assert "\n\n\n@triton.jit\ndef sigmoid(x):\n" in text
    assert text.endswith("1.0 + e)\n")


def test_methods_and_quotations_call_nothing() -> None:
    assert math_for(KERNEL.format(call="tl.load(x + i) + tl.sigmoid(1.0)")) == ""


def test_every_function_can_be_had_alone() -> None:
    given = {"range", "float"}
    for name in _functions("triton"):
        text = math_for(f"{name}(x)")
        assert name in names(text)
        used = {n.func.id for n in ast.walk(ast.parse(text))
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
        assert used <= {*names(text), *given}
        assert hasattr(math, name)


def test_functions_use_nothing_but_triton_from_outside() -> None:
    tree = ast.parse(math_for("\n".join(f"{name}(x)" for name in _functions("triton"))))
    for function in tree.body:
        assert isinstance(function, ast.FunctionDef)
        stored = {n.id for n in ast.walk(function)
                  if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
        known = {*stored, *(a.arg for a in function.args.args), *_functions("triton")}
        loaded = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
        assert loaded <= known | {"triton", "tl", "range", "float"}
