"""Launches of TileLang's binaries: the driver hears, byte for byte, what TileLang's own host code would tell it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.artifact.specialize import specializations
from attncompiler.backends.gpu_targets import target_of
from attncompiler.errors import InternalError
from attncompiler.runtime.cuda_driver import Driver
from attncompiler.runtime.errors import CudaDriverError, LimitError
from attncompiler.runtime.gpu_kernels import gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.tilelang_binary import BinaryKernel
from attncompiler.runtime.tilelang_description import describe_launch
from attncompiler.runtime.tilelang_worker import _described
from attncompiler.variant_file import load_variant
from tests.test_tilelang.host_code import HostCode, library
from tests.tilelang_host_calls import arguments, loaded, noted

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZES = {"int32": 4, "int64": 8, "float32": 4, "address": 8, "map": 128}
B, H, G, M, N = 2, 6, 3, 70, 131


class Lowered(HostCode):
    """A kernel of an example in the first of its configurations."""

    def __init__(self, variant: str, kind: str, arch: str, dtype: str, dim: int) -> None:
        operator = compile_variant(load_variant(EXAMPLES / f"{variant}.py"))
        (wanted,) = specializations(operator.compilation, (dtype,), dim, dim)
        kernels = gpu_kernels(
            Kernels(operator.compilation), wanted.tensors, wanted.dims, backward=True,
            language="tilelang",
        ).kernels  # fmt: skip
        usual = "forward" if kind == "groups" else kind
        kernel = next(k for k in kernels if k.kind == usual)
        target = target_of(arch)
        config = replace(kernel.configs(target)[0], apart=kind == "groups")
        request = kernel.request(target, config)
        super().__init__(request.source, kind, request.constexprs, target)
        self.launch = describe_launch(self.made, self.lowered, self.order)

    def call(self) -> dict[str, Any]:
        """Arguments, with strides of their own and numbers that differ."""
        values: dict[str, Any] = {}
        for count, (param, name) in enumerate(zip(self.made.params, self.order, strict=True)):
            buffer = self.made.buffer_map.get(param)
            if buffer is None:
                values[name] = 0.375 if "float" in str(param.dtype) else 11 + count
                continue
            dtype = getattr(torch, str(buffer.dtype))
            if name not in self.shaped:
                values[name] = torch.zeros(40 + count, dtype=dtype)
                continue
            known = {"B": B, "H": H, "groups": G, "M": M, "N": N}
            shape = [known[x.name] if hasattr(x, "name") else int(x) for x in buffer.shape]
            padded = torch.zeros(*shape[:3], shape[3] + 8 * (1 + count), dtype=dtype)
            free = hasattr(buffer.strides[0], "name")
            values[name] = padded[..., : shape[3]] if free else torch.zeros(shape, dtype=dtype)
        return values


@cache
def lowered(variant: str, kind: str, arch: str, dtype: str, dim: int) -> Lowered:
    """A kernel, lowered once."""
    return Lowered(variant, kind, arch, dtype, dim)


def stand_in_of(folder: Path, host: str = "") -> Any:
    """The stand-in, loaded, with TileLang's host code."""
    return loaded(library(folder, host))


def sizes(found: Any, launch: Mapping[str, Any]) -> None:
    """Tell the stand-in how long the parameters are."""
    lengths = [SIZES[kind] for kind, _ in launch["parameters"]]
    found.parameter_sizes((ctypes.c_uint * len(lengths))(*lengths), len(lengths))


def check(folder: Path, variant: str, kind: str, arch: str, dtype: str, dim: int) -> None:
    kernel = lowered(variant, kind, arch, dtype, dim)
    found, values = stand_in_of(folder, kernel.host), kernel.call()
    sizes(found, kernel.launch)
    stream = 0x1234567
    assert found.call(*arguments(kernel.meanings, values), ctypes.c_void_p(stream)) == 0
    wanted = noted(found)
    found.start(0, 0)
    binary = BinaryKernel(Driver(found), b"\x7fELF", kernel.launch)
    binary.run(values, 1, stream)
    mine = [line for line in noted(found) if line.startswith(("encode", "launch"))]
    assert sorted(mine) == sorted(wanted)
    assert mine[-1].startswith("launch")
    maps = len(wanted) - 1
    assert maps == (0 if arch == "sm_80" else len(kernel.launch["maps"]))
    assert (maps > 2) == (arch == "sm_90")
    first = noted(found)
    assert first[0].startswith("push 6f")  # the context of device 1
    assert first[1].split()[1] == b"\x7fELF".hex()
    assert first[2].endswith("attention_kernel")
    assert first[3].endswith(f" 8 {kernel.launch['shared']}")
    # The binary stays loaded.
    found.start(0, 0)
    binary.run(values, 1, stream)
    assert [line.split()[0] for line in noted(found)] == [
        "push",
        *maps * ["encode"],
        "launch",
        "pop",
    ]


def test_a_launch_is_that_of_tilelangs_host_code(tmp_path: Path) -> None:
    check(tmp_path, "alibi", "forward", "sm_90", "bfloat16", 64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forward", "rows", "columns"])
@pytest.mark.parametrize(
    ("variant", "arch", "dtype", "dim"),
    [
        ("alibi", "sm_80", "bfloat16", 64),
        ("alibi", "sm_90", "float16", 128),
        ("packed_documents", "sm_90", "bfloat16", 64),
        ("packed_documents", "sm_80", "float16", 128),
        ("sigmoid", "sm_90", "bfloat16", 72),
        ("alibi", "sm_90", "float16", 256),
    ],
)
def test_launches_are_those_of_tilelangs_host_code(
    tmp_path: Path, variant: str, arch: str, dtype: str, dim: int, kind: str
) -> None:
    check(tmp_path, variant, kind, arch, dtype, dim)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["alibi", "packed_documents"])
def test_a_launch_with_warp_groups_apart(tmp_path: Path, variant: str) -> None:
    check(tmp_path, variant, "groups", "sm_90", "bfloat16", 64)


# A launch by hand: two maps' worth of everything that a description may say.
LAUNCH: dict[str, Any] = {
    "entry": "attention_kernel",
    "grid": [["//", ["+", ["size", "q", 0], 63], 64], ["max", 2, ["number", "n"]], 1],
    "block": [128, 1, 1],
    "shared": 4096,
    "maps": [
        {
            "type": 9, "tensor": "q", "sizes": [8, ["size", "q", 0]], "strides": [["*", ["stride", "q", 0], 2]],
            "box": [8, 64], "steps": [1, 1], "interleave": 0, "swizzle": 3, "promotion": 2, "fill": 0,
        }
    ],
    "parameters": [["map", 0], ["int32", ["-", ["number", "n"], 1]], ["float32", ["number", "scale"]]],
}  # fmt: skip


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return stand_in_of(tmp_path_factory.mktemp("stand_in"))


def by_hand() -> dict[str, Any]:
    return {"q": torch.zeros(130, 8, dtype=torch.bfloat16), "n": 5, "scale": 0.5}


def test_what_a_launch_says(stand_in: Any) -> None:
    sizes(stand_in, LAUNCH)
    stand_in.start(0, 0)
    BinaryKernel(Driver(stand_in), b"\x7fELF", LAUNCH).run(by_hand(), 0, 0)
    *_, encode, launch, pop = noted(stand_in)
    assert pop.strip() == "pop"
    words = [bytes.fromhex(x) for x in encode.split()[1:]]
    assert [int.from_bytes(words[i][j : j + 8], "little") for i, j in ((3, 0), (3, 8), (4, 0))] == [
        8,
        130,
        16,
    ]
    shape, _stream, _map, number, scale = (bytes.fromhex(x) for x in launch.split()[1:])
    numbers = [int.from_bytes(shape[i : i + 4], "little") for i in range(0, 28, 4)]
    assert numbers == [math.ceil(130 / 64), 5, 1, 128, 1, 1, 4096]
    assert int.from_bytes(number, "little") == 4
    assert ctypes.c_float.from_buffer_copy(scale).value == 0.5


@pytest.mark.parametrize(
    ("at", "name", "fix"),
    [
        (1, "cuDeviceGet", "before"),
        (4, "cuModuleLoadData", "--arch"),
        (6, "cuFuncSetAttribute", "less shared memory"),
        (9, "cuTensorMapEncodeTiled", "strides of [16] bytes"),
        (10, "cuLaunchKernel", "before"),
    ],
)
def test_errors_of_the_driver(stand_in: Any, at: int, name: str, fix: str) -> None:
    sizes(stand_in, LAUNCH)
    stand_in.start(at, 209)
    binary = BinaryKernel(Driver(stand_in), b"\x7fELF", LAUNCH)
    with pytest.raises(CudaDriverError) as caught:
        binary.run(by_hand(), 0, 0)
    text = str(caught.value)
    assert f"failed in {name}: CUDA_ERROR_OF_A_TEST (209), words of the driver" in text
    assert fix in text
    # The context that was there before is back, and the next call finds a device that works.
    heard = [line.split()[0] for line in noted(stand_in) if line]
    assert heard.count("push") == heard.count("pop")
    stand_in.start(0, 0)
    binary.run(by_hand(), 0, 0)
    assert any(line.startswith("launch") for line in noted(stand_in))


def test_an_error_that_the_driver_has_no_name_for(stand_in: Any) -> None:
    sizes(stand_in, LAUNCH)
    stand_in.start(4, 999)
    with pytest.raises(CudaDriverError, match=r"cuModuleLoadData:  ?\(999\)"):
        BinaryKernel(Driver(stand_in), b"\x7fELF", LAUNCH).run(by_hand(), 0, 0)


def test_numbers_that_a_binary_cannot_hold(stand_in: Any) -> None:
    sizes(stand_in, LAUNCH)
    stand_in.start(0, 0)
    with pytest.raises(LimitError, match="32 bits"):
        BinaryKernel(Driver(stand_in), b"\x7fELF", LAUNCH).run(by_hand() | {"n": 2**31 + 1}, 0, 0)
    assert not any(line.startswith("launch") for line in noted(stand_in))


def test_a_driver_without_tensor_maps() -> None:
    class Settable:
        pass

    old = Settable()
    for name in ("cuGetErrorName", "cuGetErrorString", "cuDeviceGet", "cuDevicePrimaryCtxRetain"):
        setattr(old, name, Settable())
    with pytest.raises(CudaDriverError, match="the driver has no such function"):
        Driver(old)


def test_what_no_launcher_knows_is_refused() -> None:
    kernel = lowered("alibi", "forward", "sm_90", "bfloat16", 64)
    with pytest.raises(ValueError, match="argument"):
        describe_launch(kernel.made, kernel.lowered, kernel.order[:-1])
    from tilelang import tvm

    (host,) = kernel.lowered.host_mod.functions.values()
    other = tvm.tirx.Evaluate(tvm.tirx.call_packed("another_kernel", 1))
    body = tvm.tirx.SeqStmt([host.body, other])
    modules = SimpleNamespace(
        device_mod=kernel.lowered.device_mod,
        host_mod=tvm.IRModule({"attention": host.with_body(body)}),
    )
    with pytest.raises(InternalError, match="the host calls another_kernel"):
        describe_launch(kernel.made, modules, kernel.order)
    described = _described(kernel.made, modules, list(kernel.order))
    assert described == {"refused": "the host calls another_kernel"}
    with pytest.raises(InternalError, match="the host calls another_kernel"):
        BinaryKernel(None, b"", described)  # type: ignore[arg-type]
