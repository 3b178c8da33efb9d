"""Packages of TileLang kernels: without TileLang, the driver hears what TileLang's host code would tell it."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.backends.gpu_targets import target_of
from attncompiler.errors import InternalError
from attncompiler.runtime import gpu_kernels
from attncompiler.runtime.carried_binaries import best_for, runs_on
from attncompiler.runtime.offline_records import Built, Lowered
from attncompiler.runtime.packaged_tilelang import file_of
from attncompiler.runtime.tilelang_file import read_file
from attncompiler.runtime.tilelang_offline import find_nvcc
from attncompiler.variant_file import load_variant
from tests.test_artifact import ROOT, build, call_of, run
from tests.test_tilelang.host_code import HostCode, library

PROBE = ROOT / "tests" / "artifact_tilelang_probe.py"
CAUSAL = """
from attncompiler.dsl import Variant, causal


class Causal(Variant):
    def mask(self, at):
        return causal(at)
"""
# B, H, G, M, N; heads of keys of their own, and shared ones.
GROUPED, ALONE = (2, 6, 3, 70, 131), (1, 2, 2, 200, 64)
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")


@pytest.fixture(scope="module", autouse=True)
def one_configuration() -> Any:
    """Each kernel is compiled in the first of its configurations only."""
    with pytest.MonkeyPatch.context() as patch:
        kernel = gpu_kernels.TilelangKernel
        patch.setattr(kernel, "candidates", lambda self, target: self.configs(target)[:1])
        yield


def packaged(folder: Path, text: str, *options: object) -> Path:
    """A package that ``build`` makes of a variant, for heads of 64 features."""
    (folder / "variant.py").write_text(text)
    out = folder / "packed"
    words = ("--backend", "tilelang", "--head-dim", 64, *options)
    assert build(folder / "variant.py", "--out", out, *words) == 0
    return out


def manifest_of(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / "manifest.json").read_text())
    return found


def binaries_of(package: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The binaries of a package by their path: the file that they were made of, and what the manifest says."""
    return {
        b["binary"]: (package / kernel["file"], b)
        for kernel in manifest_of(package)["kernels"]
        for b in kernel.get("binaries", ())
        if b["binary"]
    }


def a_call(package: Path, sizes: tuple[int, ...], *, learns: tuple[str, ...] = (), stats: bool = False,
           dtype: torch.dtype = torch.bfloat16, **more: Any) -> dict[str, Any]:  # fmt: skip
    """A call with a package's tensors; ``learns`` are those whose gradient it asks for."""
    operator = compile_variant(load_variant(package.parent / "variant.py"))
    call = call_of(operator, sizes, (64, 64))  # type: ignore[arg-type]
    tensors = {n: x.to(dtype) if n in "qkv" else x for n, x in call["tensors"].items()}
    weights: dict[str, Any] = {"out": torch.tensor(0.5)} if learns else {}
    if stats and learns:
        weights["lse"] = torch.tensor(0.25)
    call = {"tensors": tensors, "params": call["params"], "weights": weights}
    return {**call, "learns": learns, "stats": stats, **more}


def probed(package: Path, calls: Mapping[str, Any], capability: tuple[int, int] = (9, 0), *,
           compared: tuple[str, ...] = (), triton: bool = False) -> dict[str, Any]:  # fmt: skip
    """What calls of a package launch; that of binaries in ``compared`` beside what TileLang's host code would.

    ``triton``: planning kernels run in Triton's interpreter; else Triton cannot be imported.
    """
    folder = package.parent
    hosts = {}
    for number, (path, (file, binary)) in enumerate(binaries_of(package).items()):
        if short(path) in compared:
            constants = {
                n: tuple(x) if isinstance(x, list) else x for n, x in binary["constants"].items()
            }
            code = HostCode(file, binary["kernel"], constants, target_of(binary["arch"]))
            hosts[path] = str(library(folder, code.host, f"host{number}")), code.meanings
    asked = {
        "package": package.name, "driver": str(library(folder)), "capability": capability,
        "blocked": ["tilelang"] if triton else ["tilelang", "triton"], "hosts": hosts, "calls": dict(calls),
    }  # fmt: skip
    torch.save(asked, folder / "in.pt")
    done = run(
        PROBE,
        "in.pt",
        "out.pt",
        folder=folder,
        TRITON_INTERPRET="1" if triton else "",
        ATTNCOMPILER_TILELANG_SERIAL="",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    assert found.pop("alien") == []
    return found


def short(path: str) -> str:
    """The name of a binary without its types and dimensions."""
    return Path(path).stem.replace("_bfloat16_d64_v64", "").replace("_float16_d64_v64", "")


def _libraries(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.split(".")[0])
    return found


def launched(found: Mapping[str, Any]) -> list[str]:
    """The binaries that a call launched, each as often as it did."""
    assert found["error"] is None, found["error"]
    return [short(x["binary"]) for x in found["heard"]]


def same(found: Mapping[str, Any]) -> None:
    """The driver heard what TileLang would have told it."""
    assert found["heard"]
    for x in found["heard"]:
        assert sorted(x["mine"]) == sorted(x["wanted"])
        assert x["mine"][-1].startswith("launch")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Compilers that answer at once: binaries that only differ, launches of one block; ``nvcc``: whether it is here."""
    folder, compilers = tmp_path / "pretended", SimpleNamespace(nvcc=True)

    def compile_all(requests: Any, **_: Any) -> list[Any]:
        results = []
        for request, target in requests:
            place = folder / hashlib.sha256(f"{request.key}{target.name}".encode()).hexdigest()
            place.mkdir(parents=True, exist_ok=True)
            text, binary = place / "kernel.cu", place / "kernel.cubin"
            text.write_text(f"// {request.kernel}")
            binary.write_bytes(b"\x7fELF" + place.name.encode())
            one = {
                "grid": [1, 1, 1],
                "block": [32, 1, 1],
                "shared": 0,
                "maps": [],
                "parameters": [],
            }
            (place / "launch.json").write_text(json.dumps({"entry": "attention_kernel", **one}))
            if not compilers.nvcc:
                why = "nvcc is not installed"
                results.append(Lowered(request, target, text, 1024, 4, why, 0.0, cached=True))
                continue
            known = {"tensor_memory": 0, "warnings": (), "instructions": {}, "cached": True}
            results.append(
                Built(request, target, binary, text, registers=64, spill_stores=0, spill_loads=0, stack=0,
                      shared=1024, num_warps=4, seconds=0.0, **known)
            )  # fmt: skip
        return results

    monkeypatch.setattr("attncompiler.tuning.gpu_build.compile_all", compile_all)
    monkeypatch.setattr("attncompiler.runtime.offline.compile_all", compile_all)
    return compilers


def test_the_binaries_are_those_that_calls_launch(
    tmp_path: Path, pretended: SimpleNamespace
) -> None:
    text = (ROOT / "examples" / "alibi.py").read_text()
    package = packaged(tmp_path, text, "--arch", "sm_90,sm_80", "--backward")
    learned = ("q", "k", "v", "slope")
    calls = {
        "inference": a_call(package, GROUPED),
        "with statistics": a_call(package, ALONE, stats=True),
        "training": a_call(package, ALONE, learns=learned),
        "grouped training": a_call(package, GROUPED, learns=learned),
        "training of inputs": a_call(package, GROUPED, learns=("q", "k", "v")),
        "inputs, alone": a_call(package, ALONE, learns=("q", "k", "v")),
        "queries that are fixed": a_call(package, ALONE, learns=("k", "v")),
        "statistics in the loss": a_call(package, ALONE, learns=learned, stats=True),
        "one query": a_call(package, (1, 4, 2, 1, 33)),
        "other lengths": a_call(package, (3, 2, 2, 129, 7), learns=learned),
    }
    # Inputs learn alone: the loss reads the statistic, and slope is a constant.
    calls["inputs and statistics"] = calls["statistics in the loss"] | {"constant": ("slope",)}
    for capability, arch in (((9, 0), "sm_90"), ((8, 0), "sm_80"), ((8, 6), "sm_80")):
        found = probed(package, calls, capability)
        assert launched(found["inference"]) == ["forward"]
        assert launched(found["with statistics"]) == ["forward_kept"]
        assert launched(found["training"]) == [
            "forward_training", "backward_rows_measuring", "backward_rows", "backward_columns",
        ]  # fmt: skip
        assert launched(found["grouped training"])[-1] == "backward_columns_grouped"
        assert launched(found["training of inputs"])[1:] == [
            "backward_of_inputs_rows", "backward_of_inputs_columns_grouped",
        ]  # fmt: skip
        assert launched(found["queries that are fixed"]) == launched(found["inputs, alone"])
        assert "backward_rows_kept_measuring" in launched(found["statistics in the loss"])
        used = {x["binary"] for each in found.values() for x in each["heard"]}
        assert used == {path for path in binaries_of(package) if f"gpu/{arch}/" in path}


@pytest.mark.parametrize("name", ["sigmoid", "gated_attention", "learned_sink", "affine_scaled"])
def test_calls_of_examples_find_their_binaries(
    name: str, tmp_path: Path, pretended: SimpleNamespace
) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    package = packaged(tmp_path, text, "--arch", "sm_90", "--backward", "--dtype", "float16")
    half = {"dtype": torch.float16}
    tensors = a_call(package, ALONE)["tensors"]
    learned = tuple(n for n, x in tensors.items() if x.is_floating_point())
    calls = {
        "inference": a_call(package, GROUPED, **half),
        "training": a_call(package, ALONE, learns=learned, **half),
        "grouped": a_call(package, GROUPED, learns=learned, **half),
        "inputs": a_call(package, GROUPED, learns=("q", "k", "v"), **half),
        "alone": a_call(package, ALONE, learns=("q", "k", "v"), **half),
    }
    for found in probed(package, calls).values():
        assert launched(found)


def test_a_mask_whose_tiles_are_listed(tmp_path: Path, pretended: SimpleNamespace) -> None:
    text = (ROOT / "examples" / "packed_documents.py").read_text()
    package = packaged(tmp_path, text, "--arch", "sm_90", "--backward")
    calls = {"training": a_call(package, GROUPED, learns=("q", "k", "v"))}
    found = probed(package, calls, triton=True)["training"]
    assert launched(found) == ["forward_training", "backward_rows", "backward_columns_grouped"]
    (forward, *_) = manifest_of(package)["kernels"]
    for binary in forward["binaries"]:
        assert binary["constants"]["LISTED"]
        assert {"tile_lists", "block_order"} <= set(binary["constants"]["GIVEN"])
    kind, text = probed(package, calls)["training"]["error"]
    assert (kind, "pip install triton" in text) == ("MissingTritonError", True)


def test_the_files_of_a_package(tmp_path: Path, pretended: SimpleNamespace) -> None:
    package = packaged(tmp_path, CAUSAL, "--arch", "sm_90,sm_80", "--backward")
    manifest = manifest_of(package)
    assert manifest["backends"] == {"tilelang": "cuda"}
    assert "--backend tilelang --arch sm_90,sm_80" in manifest["command"]
    kernels = {k["kind"]: k for k in manifest["kernels"]}
    assert kernels.keys() == {"forward", "backward"}
    assert file_of(kernels["forward"]) == read_file((package / "kernels/forward.py").read_text())
    assert file_of(kernels["backward"]) == read_file((package / "kernels/backward.py").read_text())
    table = json.loads((package / "gpu" / "resources.json").read_text())["binaries"]
    listed = [b for k in manifest["kernels"] for b in k["binaries"]]
    assert [b["binary"] for b in table] == [b["binary"] for b in listed]
    assert len({b["binary"] for b in listed}) == len(listed) == 2 * (4 + 2 + 2)
    for binary in listed:
        # Each has its source and the description of its launch, and none is there without a checksum.
        for what in ("binary", "text", "launch"):
            assert (package / binary[what]).exists()
            assert binary[what] in manifest["files"]
    readme = (package / "README.md").read_text()
    assert "launched through the CUDA driver" in readme
    assert "needs torch and NVIDIA's driver or TileLang" in readme
    known = {*sys.stdlib_module_names, "torch", "triton", "tilelang", "numpy"}
    for path in package.rglob("*.py"):
        assert _libraries(path) <= known, path


def test_a_package_without_nvcc(tmp_path: Path, pretended: SimpleNamespace) -> None:
    pretended.nvcc = False
    package = packaged(tmp_path, CAUSAL, "--arch", "sm_90")
    (forward,) = manifest_of(package)["kernels"]
    for binary in forward["binaries"]:
        assert (binary["binary"], binary["why"]) == (None, "nvcc is not installed")
        assert (package / binary["text"]).exists()
        assert (package / binary["launch"]).exists()
    found = probed(package, {"plain": a_call(package, ALONE)})["plain"]
    assert found["error"][0] == "MissingBinaryError"
    assert "forward kernel for sm_90 (it has none; nvcc is not installed)" in found["error"][1]


def test_a_self_test_without_a_gpu(tmp_path: Path, pretended: SimpleNamespace) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to test on")
    packaged(tmp_path, CAUSAL, "--arch", "sm_90")
    done = run("-m", "packed.selftest", folder=tmp_path, TRITON_INTERPRET="")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "not tested: the TileLang kernels need a GPU, and torch finds none\n"


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90", (9, 0), True),
        ("sm_100", (10, 0), True),
        ("sm_100", (10, 3), False),
        ("sm_100", (12, 0), False),
        ("gfx90a", (9, 0), False),
    ],
)
def test_where_binaries_run(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(architecture, capability) == runs
    assert best_for(["gfx942", architecture], capability) == (architecture if runs else "")


def test_the_newest_binary_is_taken() -> None:
    assert best_for(["sm_80", "sm_86", "sm_89"], (8, 7)) == "sm_86"


def test_a_file_that_is_not_generated() -> None:
    with pytest.raises(InternalError, match="it has no kernel"):
        read_file("x = 1")
    with pytest.raises(InternalError, match="FORWARD_SHAPED"):
        read_file("def forward(dtype): pass")


@needs_nvcc
def test_a_forward_without_tilelang(tmp_path: Path) -> None:
    package = packaged(tmp_path, CAUSAL, "--arch", "sm_90")
    calls = {
        "plain": a_call(package, GROUPED),
        "stats": a_call(package, ALONE, stats=True),
        "negative": a_call(package, ALONE, options={"scale": -1.0}),
        "float16": a_call(package, ALONE, dtype=torch.float16),
    }
    odd = a_call(package, ALONE)
    odd["tensors"]["q"] = torch.zeros(1, 2, 200, 69, dtype=torch.bfloat16)[..., :64]
    found = probed(package, calls | {"odd": odd}, compared=("forward", "forward_kept"))
    assert launched(found["plain"]) == ["forward"]
    assert launched(found["stats"]) == ["forward_kept"]
    same(found["plain"])
    same(found["stats"])
    mistakes = {name: found[name]["error"] for name in ("negative", "odd", "float16")}
    for name, kind, words in (
        (
            "negative",
            "MissingBinaryError",
            ("a scale that is not positive", "POSITIVE False", "negate q"),
        ),
        (
            "odd",
            "MissingBinaryError",
            ("multiples of 16 bytes", "contiguous", "pip install tilelang"),
        ),
        ("float16", "NotBuiltError", ("--dtype float16",)),
    ):
        assert mistakes[name][0] == kind
        assert all(word in mistakes[name][1] for word in words), mistakes[name][1]
    (error,) = probed(package, {"old": calls["plain"]}, (8, 6)).values()
    assert error["heard"] == []
    kind, text = error["error"]
    assert kind == "MissingBinaryError"
    assert "forward kernel for sm_86 (it has those for sm_90)" in text
    assert "--arch sm_86" in text


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_gradients_without_tilelang(arch: str, tmp_path: Path) -> None:
    package = packaged(tmp_path, CAUSAL, "--arch", arch, "--backward")
    learned = ("q", "k", "v")
    capability = {"sm_90": (9, 0), "sm_80": (8, 0)}[arch]
    used = ("forward_training", "backward_rows", "backward_columns_grouped")
    calls = {"training": a_call(package, GROUPED, learns=learned)}
    found = probed(package, calls, capability, compared=used)["training"]
    assert tuple(launched(found)) == used
    same(found)
