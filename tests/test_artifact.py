"""Packages that ``attncompiler build --out`` writes: they run without attncompiler and do what the operator does."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attncompiler import cli
from attncompiler import compile as compile_variant
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.selftest import CASES, SelfTest
from attncompiler.variant_file import load_variant
from tests.artifact_probe import results

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).with_name("artifact_probe.py")
EVERYTHING = '''
"""Every part of a variant that a package carries."""

import math

import torch

from attncompiler.dsl import Tensor, Variant, causal, document, exp, maximum, sliding_window, tanh

FACTOR = 0.5


def halved(x):
    return x * FACTOR


class Everything(Variant):
    """Documents, a window, a sink, a bias that prepare makes, a gate."""

    cap: float = 20.0
    window: int = 300
    ids = Tensor("position", dtype="int")
    sink = Tensor("h")
    raw = Tensor("h")
    bias = Tensor("h")
    gate = Tensor("h", "d")

    def prepare(self, q, k, v, raw):
        return halved(q) / math.sqrt(self.step()), k, v, {"bias": torch.tanh(raw)}

    def step(self):
        return 0.25

    def score(self, s, at):
        return self.cap * tanh(s / self.cap) + self.bias[at.h] * (at.q - at.k) / 64

    def mask(self, at):
        return causal(at) & document(at, self.ids) & sliding_window(at, self.window)

    def normalize(self, s, row):
        m = maximum(row.max(s), self.sink[row.h])
        e = exp(s - m)
        row.keep("largest", m)
        return e / (row.sum(e) + exp(self.sink[row.h] - m))

    def output(self, o, at):
        return o * self.gate[at.h, at.d] + at.stats.largest * 0.001

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        ids = (torch.rand(length, generator=generator) < 0.02).cumsum(0)
        return super().sample(sizes | {"position": length}, generator) | {"ids": ids}
'''


@pytest.fixture(scope="module", autouse=True)
def _quick_builds() -> Any:
    """What these tests look at does not depend on how well kernels are optimised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNCOMPILER_CXXFLAGS", "-O1")
        yield


def build(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["build", *(str(a) for a in arguments)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def run(*arguments: object, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(folder), **more}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


def probe(folder: Path, package: str, asked: dict[str, Any], **more: str) -> dict[str, Any]:
    """What ``artifact_probe.py`` finds in a process without attncompiler."""
    defaults = {"weights": {}, "wrong": {}, "compile": False}
    torch.save(defaults | asked, folder / "in.pt")
    done = run(PROBE, package, "in.pt", "out.pt", folder=folder, **more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    return found


def call_of(
    operator: Operator,
    sizes: tuple[int, int, int, int, int],
    dims: tuple[int, int],
    **params: float,
) -> dict[str, Any]:
    """A call: ``sizes`` are B, H, G, M, N."""
    batch, heads, groups, queries, keys = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    names = dict(
        zip(("B", "H", "G", "M", "N", "D", "Dv", "q_start"), (*sizes, *dims, 0), strict=True)
    )

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tokens = {
        "q": draw(batch, heads, queries, dims[0]),
        "k": draw(batch, groups, keys, dims[0]),
        "v": draw(batch, groups, keys, dims[1]),
    }
    tensors = operator.variant.sample(names, generator)
    if "bias" in tensors and hasattr(operator.variant, "prepare"):
        del tensors["bias"]
    return {"tensors": tokens | tensors, "params": params}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert torch.equal(found[name], x), name


# -- one package with everything -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    (folder / "everything.py").write_text(EVERYTHING)
    options = ("--head-dim", 16, "--value-dim", 24, "--backward")
    assert build(folder / "everything.py", "--out", folder / "packed", *options) == 0
    (folder / "everything.py").unlink()
    return folder


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    path = tmp_path_factory.mktemp("variant") / "everything.py"
    path.write_text(EVERYTHING)
    return compile_variant(load_variant(path))


def test_a_package_does_what_the_operator_does(everything: Path, operator: Operator) -> None:
    large = call_of(operator, (1, 4, 2, 300, 310), (16, 24))
    calls = [large, call_of(operator, (2, 3, 1, 33, 65), (16, 24), cap=5.0, window=20)]
    weights = {"out": torch.tensor(0.7), "largest": torch.tensor(0.3)}
    small = calls[1]["tensors"]
    wrong = {
        "dtype": small | {n: small[n].bfloat16() for n in "qkv"},
        "head_dim": small | {"q": small["q"][..., :8], "k": small["k"][..., :8]},
        "tensor type": small | {"sink": small["sink"].double()},
        "extent": small | {"sink": small["sink"][:2]},
        "missing": {n: x for n, x in small.items() if n != "sink"},
        "missing for prepare": {n: x for n, x in small.items() if n != "raw"},
        "unknown": small | {"slope": small["sink"]},
        "window": small,
        "limit": small,
    }
    values: dict[str, dict[str, Any]] = {"window": {"window": 2.5}, "limit": {"window": -1}}
    found = probe(
        everything,
        "packed",
        {
            "calls": calls,
            "weights": weights,
            "wrong": {
                n: {"tensors": dict(x), "params": values.get(n, {})} for n, x in wrong.items()
            },
            "compile": True,
        },
    )
    assert found["alien"] == []
    for mine, call in zip(found["calls"], calls, strict=True):
        same(mine, results(operator, call, weights))
    same(found["compiled"], found["calls"][0])
    assert torch.equal(found["module"], found["calls"][0]["out"])
    assert found["state"] == ["gate", "ids", "raw", "sink"]
    assert "``[H, Dv]``" in found["signature"]
    mistakes = found["mistakes"]
    for name, kind, text in (
        ("dtype", "NotBuiltError", "--dtype bfloat16"),
        ("head_dim", "NotBuiltError", "built for head_dim 16 and value_dim 24, not for 8 and 24"),
        ("tensor type", "NotBuiltError", "pass sink.to(torch.float32)"),
        ("extent", "ShapeError", "has extent 2"),
        ("missing", "MissingTensorError", "needs the tensor 'sink' of axes (h)"),
        ("missing for prepare", "TypeError", "required keyword-only argument: 'raw'"),
        ("unknown", "TypeError", "unexpected keyword argument 'slope'"),
        ("window", "ParameterTypeError", "'window'"),
        ("limit", "TooSmallError", "at least 0"),
    ):
        assert mistakes[name][0] == kind, mistakes[name]
        assert text in mistakes[name][1]
    # Mistakes show the line that called.
    assert "artifact_probe.py" in mistakes["extent"][1]


def test_a_package_tests_itself(everything: Path) -> None:
    done = run("-m", "packed.selftest", folder=everything)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("float32") == 5
    assert done.stdout.endswith("all passed\n")


def test_a_wrong_kernel_fails_the_test_of_its_package(
    everything: Path,
    operator: Operator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(everything))
    monkeypatch.setattr("attncompiler.runtime.selftest.CASES", CASES[3:4])
    package = importlib.import_module("packed")
    carrier = importlib.import_module("packed.carried").Carried
    dense = importlib.import_module("packed.dense").attention
    manifest = json.loads((everything / "packed" / "manifest.json").read_text())

    def wrong(*tokens: Tensor, **named: Any) -> Any:
        out, stats = package.attention(*tokens, **named)
        return out * 1.001, stats

    assert SelfTest(manifest, package.attention, dense, carrier).run() == 0
    assert SelfTest(manifest, wrong, dense, carrier).run() == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_files_of_a_package(everything: Path) -> None:
    folder = everything / "packed"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["variant"], manifest["backends"], manifest["dtypes"]) == (
        "Everything",
        {"cpp": "cpu"},
        ["float32"],
    )
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    written = {p for p in written if "__pycache__" not in p}
    assert written == {*manifest["files"], "manifest.json"}
    assert [k["kind"] for k in manifest["kernels"]] == ["forward", "tiles", "backward", "backward"]
    for kernel in manifest["kernels"]:
        assert "class Everything" in (folder / kernel["file"]).read_text()
    assert "def halved(x):" in (folder / "carried.py").read_text()
    assert "class Everything" in (folder / "dense.py").read_text()
    assert "attention(q, k, v" in (folder / "README.md").read_text()
    for path in written:
        if path.endswith(".py"):
            _imports_only_torch(folder / path)


def _imports_only_torch(path: Path) -> None:
    known = {*sys.stdlib_module_names, "torch"}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                assert all(alias.name.split(".")[0] in known for alias in aliases), path
            case ast.ImportFrom(module=str(module), level=0):
                assert module.split(".")[0] in known, (path, module)


def test_building_again_replaces_the_package(everything: Path, tmp_path: Path) -> None:
    # Kernels are in the cache; only files are written.
    (tmp_path / "everything.py").write_text(EVERYTHING)
    options = ("--head-dim", 16, "--value-dim", 24)
    source = tmp_path / "everything.py"
    assert build(source, "--out", tmp_path / "packed", *options, "--backward") == 0
    (tmp_path / "packed" / "__pycache__").mkdir()
    assert build(source, "--out", tmp_path / "packed", *options) == 0
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    assert [k["kind"] for k in manifest["kernels"]] == ["forward", "tiles"]
    assert not (tmp_path / "packed" / "kernels" / "backward_float32.cpp").exists()
    assert {p.name for p in tmp_path.iterdir()} >= {"packed", "everything.py"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# -- others --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["alibi", "learned_sink", "sigmoid", "packed_documents", "sliding_tile", "gated_attention"],
)
def test_packages_of_examples(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / f"{name}.py"
    dtypes = ("--dtype", "float32", "--dtype", "float64" if name == "alibi" else "bfloat16")
    assert build(path, "--out", tmp_path / name, "--head-dim", 16, "--backward", *dtypes) == 0
    done = run("-m", f"{name}.selftest", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    operator = compile_variant(load_variant(path))
    layout = operator.variant.layout
    length = 300 if layout is None else layout.size
    call = call_of(operator, (1, 2, 1, length, length), (16, 16))
    found = probe(tmp_path, name, {"calls": [call], "weights": {"out": torch.tensor(0.5)}})
    same(found["calls"][0], results(operator, call, {"out": torch.tensor(0.5)}))


def test_gradients_of_a_package_without_a_backward(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from attncompiler.dsl import Variant\n\n\nclass Plain(Variant):\n    pass\n"
    )
    assert build(tmp_path / "plain.py", "--out", tmp_path / "plain_kernel", "--head-dim", 16) == 0
    x = torch.randn(1, 1, 5, 16)
    call: dict[str, Any] = {"tensors": {"q": x, "k": x, "v": x}, "params": {}}
    learning = {n: x.clone().requires_grad_() for n in "qkv"}
    wrong = {"learns": {"tensors": learning, "params": {}}}
    # An empty cache: the package builds its kernel itself.
    cache = tmp_path / "cache"
    asked = {"calls": [call], "wrong": wrong}
    found = probe(tmp_path, "plain_kernel", asked, ATTNCOMPILER_CACHE=str(cache))
    assert [len(list(entry.glob("*.so"))) for entry in cache.iterdir()] == [1]
    same(found["calls"][0], results(compile_variant(load_variant(tmp_path / "plain.py")), call, {}))
    kind, text = found["mistakes"]["learns"]
    assert kind == "NotBuiltError"
    assert "--backward" in text
