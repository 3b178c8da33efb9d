"""Packages of Triton kernels: without attncompiler, in Triton's interpreter, they do what the operator does."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.backends.gpu_targets import TARGETS, target_of
from attncompiler.backends.tile_config import Config
from attncompiler.runtime.offline import Built, compile_offline
from attncompiler.runtime.triton_requests import Call, request
from attncompiler.variant_file import load_variant
from tests.test_artifact import EVERYTHING, ROOT, build, call_of, run, same

pytest.importorskip("triton")

PROBE = Path(__file__).with_name("artifact_triton_probe.py")
CAUSAL = """
from attncompiler.dsl import Variant, causal


class Causal(Variant):
    def mask(self, at):
        return causal(at)
"""
SOURCES = {
    "causal": CAUSAL,
    "everything": EVERYTHING,
    "alibi": (ROOT / "examples" / "alibi.py").read_text(),
    "documents": (ROOT / "examples" / "packed_documents.py").read_text(),
    "sigmoid": (ROOT / "examples" / "sigmoid.py").read_text(),
}
# B, H, G, M, N: two tiles each way, and pieces.
SIZES = (1, 2, 1, 70, 70)
INTERPRETED = {"TRITON_INTERPRET": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package and a variant file for each source; causal's is for two element types."""
    path = tmp_path_factory.mktemp("triton")
    for name, text in SOURCES.items():
        (path / f"{name}_variant.py").write_text(text)
        more = ("--dtype", "float32", "--dtype", "bfloat16") if name == "causal" else ()
        options = ("--backend", "triton", "--backward", "--head-dim", 16, "--value-dim", 24)
        file, out = path / f"{name}_variant.py", path / name
        assert build(file, "--out", out, *options, *more) == 0
    return path


@pytest.fixture(scope="module")
def asked(folder: Path) -> dict[str, Any]:
    """One call with gradients for each package, and causal's mistakes."""
    asked: dict[str, Any] = {}
    for name in SOURCES:
        operator = compile_variant(load_variant(folder / f"{name}_variant.py"))
        call = call_of(operator, SIZES, (16, 24))
        weights = {"out": torch.tensor(0.7)}
        if name == "everything":
            weights["largest"] = torch.tensor(0.3)
        asked[name] = {"calls": [(call, weights)], "wrong": {}}
    mine = asked["causal"]
    small = mine["calls"][0][0]["tensors"]
    narrow = {"tensors": {n: x.bfloat16() for n, x in small.items()}, "params": {}}
    mine["calls"].append((narrow, {"out": torch.tensor(0.5)}))
    mine["wrong"] = {
        "float64": {n: x.double() for n, x in small.items()},
        "float16": {n: x.half() for n, x in small.items()},
        "head_dim": small | {"q": small["q"][..., :8], "k": small["k"][..., :8]},
    }
    mine["wrong"] = {n: {"tensors": x, "params": {}} for n, x in mine["wrong"].items()}
    return asked


def probe(folder: Path, mode: str, asked: dict[str, Any], **more: str) -> dict[str, Any]:
    torch.save(asked, folder / f"{mode}-in.pt")
    path = folder if mode != "operators" else ROOT
    words = (mode, f"{mode}-in.pt", f"{mode}-out.pt")
    done = run(PROBE, *words, folder=folder, **{"PYTHONPATH": str(path), **more})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / f"{mode}-out.pt", weights_only=False)
    return found


def both(folder: Path, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What packages and operators give, both interpreted, each in a process of its own."""
    with ThreadPoolExecutor(2) as threads:
        modes = ("packages", "operators")
        found, wanted = threads.map(lambda x: probe(folder, x, asked, **INTERPRETED), modes)
    return found, wanted


def test_packages_do_what_operators_do(folder: Path, asked: dict[str, Any]) -> None:
    found, wanted = both(folder, asked)
    assert found["alien"] == []
    for name in SOURCES:
        for mine, call in zip(found[name]["calls"], wanted[name]["calls"], strict=True):
            same(mine, call)
        assert found[name]["tiles"] == wanted[name]["tiles"]
    assert "grad slope" in wanted["alibi"]["calls"][0]
    assert "grad gate" in wanted["everything"]["calls"][0]
    for name, kind, text in (
        ("float64", "DtypeError", "convert to float32"),
        ("float16", "NotBuiltError", "--backend triton --backward --dtype float16"),
        ("head_dim", "NotBuiltError", "built for head_dim 16 and value_dim 24, not for 8 and 24"),
    ):
        mistake = found["causal"]["mistakes"][name]
        assert mistake[0] == kind
        assert text in mistake[1]


def test_what_a_package_lacks(folder: Path, asked: dict[str, Any]) -> None:
    found = probe(folder, "unready", {"alibi": asked["alibi"]}, TRITON_INTERPRET="")
    kind, text = found["cpu"]
    assert (kind, "runs on cuda" in text, 'q.to("cuda")' in text) == ("DeviceError", True, True)
    kind, text = found["without triton"]
    assert (kind, "pip install triton" in text) == ("MissingTritonError", True)


def test_a_package_tests_itself(folder: Path) -> None:
    done = run("-m", "documents.selftest", folder=folder, **INTERPRETED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("on cpu, in Triton's interpreter\n")
    assert done.stdout.count("float32") == 3
    assert done.stdout.endswith("all passed\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to test on")
def test_a_self_test_without_a_gpu(folder: Path) -> None:
    done = run("-m", "documents.selftest", folder=folder, TRITON_INTERPRET="")
    assert done.returncode == 1
    assert "torch finds none" in done.stdout
    assert "TRITON_INTERPRET=1 python -m documents.selftest" in done.stdout


@pytest.mark.gpu
def test_a_package_tests_itself_on_a_gpu(folder: Path) -> None:
    for name in SOURCES:
        done = run("-m", f"{name}.selftest", folder=folder, TRITON_INTERPRET="")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("on cuda\n")


def test_the_files_of_a_package(folder: Path) -> None:
    package = folder / "documents"
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["backends"] == {"triton": "cuda"}
    kernels = [(k["kind"], k["file"]) for k in manifest["kernels"]]
    assert kernels == [
        ("forward", "kernels/forward.py"),
        ("tiles", "kernels/tiles.py"),
        ("backward", "kernels/backward.py"),
    ]
    for kernel in manifest["kernels"]:
        for of_kind in kernel.get("tiles", {}).values():
            assert of_kind.keys() == TARGETS.keys()
            assert all(of_kind.values())
    # A file serves both element types; tensors that learn have a backward of their own.
    files = [
        k["file"] for k in json.loads((folder / "causal/manifest.json").read_text())["kernels"]
    ]
    assert files == 2 * ["kernels/forward.py", "kernels/backward.py"]
    assert (folder / "alibi" / "kernels" / "backward_of_inputs.py").exists()
    for name in SOURCES:
        for path in (folder / name).rglob("*.py"):
            assert _libraries(path) <= _allowed(path), path


def _allowed(path: Path) -> set[str]:
    if path.parent.name == "kernels":
        return {"triton"}
    more = {"numpy"} if path.name == "triton_interpreter.py" else set()
    return {*sys.stdlib_module_names, "torch", "triton"} | more


def _libraries(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.split(".")[0])
    return found


@pytest.mark.parametrize("kernel", ["forward", pytest.param("columns", marks=pytest.mark.slow)])
def test_a_packaged_kernel_compiles_for_a_gpu_that_is_not_here(folder: Path, kernel: Any) -> None:
    package = folder / "causal"
    (entry, *_) = [
        k
        for k in json.loads((package / "manifest.json").read_text())["kernels"]
        if kernel in k.get("tiles", {}) and k["dtype"] == "bfloat16"
    ]
    config = Config(*entry["tiles"][kernel]["sm_90"][0])
    call = Call("bfloat16", 16, 24, tensors={}, params={}, listed=False)
    (result,) = compile_offline(
        [request(package / entry["file"], kernel, call, config)], target_of("sm_90")
    )
    assert isinstance(result, Built), result
    assert result.spill_stores == 0


def test_a_package_for_eight_bit_floats(tmp_path: Path) -> None:
    (tmp_path / "causal.py").write_text(CAUSAL)
    options = ("--backend", "triton", "--dtype", "float8_e4m3fn", "--head-dim", 16)
    assert build(tmp_path / "causal.py", "--out", tmp_path / "packed", *options) == 0
    assert "bfloat16 for 8-bit floats" in (tmp_path / "packed" / "__init__.py").read_text()
    done = run("-m", "packed.selftest", folder=tmp_path, **INTERPRETED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "float8_e4m3fn    B=1" in done.stdout


def test_mistakes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "causal.py").write_text(CAUSAL)
    file, out = tmp_path / "causal.py", tmp_path / "packed"
    assert build(file, "--backend", "triton") == 2
    assert "--out DIR" in capsys.readouterr().err
    assert build(file, "--backend", "triton", "--dtype", "float64", "--out", out) == 2
    assert "computes in float32, not in float64" in capsys.readouterr().err
    assert build(file, "--arch", "sm_90", "--out", out) == 2
    assert "add --backend triton" in capsys.readouterr().err


# -- slow ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_package_for_cpus_and_gpus(tmp_path: Path) -> None:
    (tmp_path / "alibi_variant.py").write_text(SOURCES["alibi"])
    file, out = tmp_path / "alibi_variant.py", tmp_path / "alibi"
    options = ("--backward", "--head-dim", 16, "--value-dim", 24)
    assert build(file, "--backend", "cpp,triton", "--out", out, *options) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["backends"] == {"cpp": "cpu", "triton": "cuda"}
    assert "--backend cpp,triton" in manifest["command"]
    call = call_of(compile_variant(load_variant(file)), SIZES, (16, 24))
    calls = [(call, {"out": torch.tensor(0.7)})]
    asked = {"alibi": {"calls": calls, "wrong": {}, "compile": True}}
    found, wanted = both(tmp_path, asked)
    interpreted = found["alibi"]["calls"][0]
    same(interpreted, wanted["alibi"]["calls"][0])
    same(found["alibi"]["compiled"], interpreted)
    native = probe(tmp_path, "packages", asked, TRITON_INTERPRET="")["alibi"]["calls"][0]
    for name, x in native.items():
        torch.testing.assert_close(x, interpreted[name], rtol=1e-4, atol=1e-4)
    assert not torch.equal(native["out"], interpreted["out"])
    done = run("-m", "alibi.selftest", folder=tmp_path, TRITON_INTERPRET="")
    assert done.returncode == 0, done.stdout + done.stderr
    if not torch.cuda.is_available():
        assert "not tested: the Triton kernels need a GPU" in done.stdout


@pytest.mark.slow
def test_a_package_prefers_what_an_offline_build_chose(tmp_path: Path) -> None:
    (tmp_path / "documents.py").write_text(SOURCES["documents"])
    options = ("--backend", "triton", "--arch", "sm_90", "--head-dim", 64, "--dtype", "bfloat16")
    out = tmp_path / "packed"
    assert build(tmp_path / "documents.py", "--out", out, *options, "--backward") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    table = json.loads((out / "gpu" / "resources.json").read_text())
    chosen = {
        row["kernel"]: [row[n] for n in ("block_m", "block_n", "num_warps", "num_stages")]
        for row in table["configurations"]
        if row["chosen"]
    }
    lists = {
        kind: of_kind["sm_90"]
        for kernel in manifest["kernels"]
        for kind, of_kind in kernel.get("tiles", {}).items()
    }
    assert lists.keys() == chosen.keys() == {"forward", "rows", "columns"}
    for kind, configs in lists.items():
        assert configs[0][:4] == chosen[kind]
    # Readable sources lie in one place.
    assert {b["source"] for b in table["binaries"]} <= {k["file"] for k in manifest["kernels"]}
    assert not list((out / "gpu").rglob("*.py"))
    shutil.rmtree(out)
