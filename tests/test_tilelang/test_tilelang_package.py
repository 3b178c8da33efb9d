"""Packages of TileLang kernels: without TileLang and attncompiler the driver hears what TileLang's host code would say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.backends.gpu_targets import target_of
from attncompiler.runtime import gpu_kernels
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
           compared: bool = False) -> dict[str, Any]:  # fmt: skip
    """What calls of a package launch; ``compared``: beside what TileLang's host code would."""
    folder = package.parent
    hosts = {}
    for number, (path, (file, binary)) in enumerate(binaries_of(package).items()):
        if compared:
            constants = {n: tuple(x) if isinstance(x, list) else x for n, x in binary["constants"].items()}
            code = HostCode(file, binary["kernel"], constants, target_of(binary["arch"]))
            hosts[path] = str(library(folder, code.host, f"host{number}")), code.meanings
    asked = {
        "package": package.name, "driver": str(library(folder)), "capability": capability,
        "hosts": hosts, "calls": dict(calls),
    }  # fmt: skip
    torch.save(asked, folder / "in.pt")
    done = run(PROBE, "in.pt", "out.pt", folder=folder, TRITON_INTERPRET="", ATTNCOMPILER_TILELANG_SERIAL="")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    assert found.pop("alien") == []
    return found


def launched(found: Mapping[str, Any]) -> list[str]:
    """The binaries that a call launched, each as often as it did."""
    assert found["error"] is None, found["error"]
    return [Path(x["binary"]).stem.replace("_bfloat16_d64_v64", "") for x in found["heard"]]


def same(found: Mapping[str, Any]) -> None:
    """The driver heard what TileLang would have told it."""
    assert found["heard"]
    for x in found["heard"]:
        assert sorted(x["mine"]) == sorted(x["wanted"])
        assert x["mine"][-1].startswith("launch")


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
    found = probed(package, calls | {"odd": odd}, compared=True)
    assert launched(found["plain"]) == ["forward"]
    assert launched(found["stats"]) == ["forward_kept"]
    same(found["plain"])
    same(found["stats"])
    mistakes = {name: found[name]["error"] for name in ("negative", "odd", "float16")}
    for name, kind, words in (
        ("negative", "MissingBinaryError", ("a scale that is not positive", "POSITIVE False", "negate q")),
        ("odd", "MissingBinaryError", ("multiples of 16 bytes", "contiguous", "pip install tilelang")),
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
