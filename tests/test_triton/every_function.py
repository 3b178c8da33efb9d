"""A kernel that calls every function of the Triton mathematics; run as a script it compiles it for one device.

    python compiled_math.py cuda 90 OUT

writes OUT.ptx or OUT.amdgcn. Not to be imported where TRITON_INTERPRET is set: nothing is compiled there.
"""

import sys

import triton
import triton.language as tl

from attncompiler.templates.triton import math


@triton.jit
def floats(x, y):
    """The sum of every function of floats."""
    total = math.floor_divide(x, y) + math.modulo(x, y) + math.sign(x) + math.power(x, y)
    total += math.exponential(x) + math.exponential2(x) + math.exponential_minus_one(x)
    total += math.logarithm(x) + math.logarithm2(x) + math.logarithm_one_plus(x)
    total += math.square_root(x) + math.reciprocal_square_root(x) + math.hyperbolic_tangent(x)
    total += math.sigmoid(x) + math.error_function(x) + math.sine(x) + math.cosine(x)
    total += math.truncate(x) + math.round_half_even(x) + math.divide(x, y)
    total += (
        math.maximum(x, y) + 2.0 * math.minimum(x, y) + math.fold_max(x, y) + math.fold_min(x, y)
    )
    return total


@triton.jit
def integers(n, m):
    """The sum of every function of integers."""
    total = math.floor_divide_int(n, m) + math.modulo_int(n, m)
    total += math.maximum(n, m) * 3 - math.minimum(n, m)
    return total + math.sign_int(n) + math.bit_length(n)


@triton.jit
def everything(x, n, w, out, size: tl.constexpr):
    """Calls them with blocks, with scalars and with literals."""
    i = tl.arange(0, size)
    block, number = tl.load(x + i), tl.load(x + size)
    total = floats(block, tl.load(x + i + 1)) + floats(number, number + 1.0)
    total += floats(block, number) + floats(block, 2.5) + floats(2.5, block)
    narrow, wide = tl.load(n + i), tl.load(w + i)
    count = integers(narrow, tl.load(n + i + 1)) + integers(wide, tl.load(w + i + 1))
    count += integers(tl.load(n), tl.load(w)) + integers(narrow, 3) + integers(wide, narrow)
    tl.store(out + i, total + count.to(tl.float32))


def main(backend: str, arch: str, path: str) -> None:
    """Compiles for one device and writes its assembler text."""
    from triton.backends.compiler import GPUTarget

    signature = {"x": "*fp32", "n": "*i32", "w": "*i64", "out": "*fp32", "size": "constexpr"}
    source = triton.compiler.ASTSource(everything, signature, constexprs={(4,): 128})
    target = GPUTarget("cuda", int(arch), 32) if backend == "cuda" else GPUTarget(backend, arch, 64)
    compiled = triton.compile(source, target=target, options={"num_warps": 4})
    kind = "ptx" if backend == "cuda" else "amdgcn"
    with open(f"{path}.{kind}", "w") as file:
        file.write(compiled.asm[kind])


if __name__ == "__main__":
    main(*sys.argv[1:])
