"""The command that compiles lists of configurations until one is clean; its compiler is stood in for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from attncompiler.backends.gpu_targets import Target, target_of
from attncompiler.benchmarks import registers
from attncompiler.runtime.offline_records import Built, Failed, KernelRequest

PLAIN = """from attncompiler.dsl import Variant


class Plain(Variant):
    pass
"""


def built(request: KernelRequest, target: Target, spilled: int) -> Built:
    path = Path("kernel")
    sizes: dict[str, Any] = {"registers": 64, "stack": 0, "shared": 1024, "tensor_memory": 0}
    return Built(
        request, target, path, path, spill_stores=spilled, spill_loads=0, num_warps=8, warnings=(),
        instructions={}, seconds=1.0, cached=False, **sizes,
    )  # fmt: skip


class Compiler:
    """Spills in the first ``dirty`` rounds, and answers nothing but failures where ``fails``."""

    def __init__(self, dirty: int, fails: bool = False) -> None:
        self.dirty, self.fails = dirty, fails
        self.rounds: list[list[KernelRequest]] = []

    def __call__(
        self, requests: Iterable[tuple[KernelRequest, Target]], **_: object
    ) -> Sequence[Built | Failed]:
        asked = list(requests)
        self.rounds.append([request for request, _ in asked])
        spilled = 8 if len(self.rounds) <= self.dirty else 0
        if self.fails:
            return [Failed(request, target, "no answer") for request, target in asked]
        return [built(request, target, spilled) for request, target in asked]


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    return str(path)


def counts(text: str) -> dict[str, list[int]]:
    """Of the table at the end: how many kernels of a kind, clean at first, at second, later, never."""
    lines = [line.split() for line in text[text.index("second") :].splitlines()[1:]]
    return {line[3]: [int(n) for n in line[4:]] for line in lines}


@pytest.mark.parametrize(
    ("dirty", "expected"), [(0, [1, 1, 0, 0, 0]), (1, [1, 0, 1, 0, 0]), (2, [1, 0, 0, 1, 0])]
)
def test_configurations_are_compiled_until_one_is_clean(
    dirty: int,
    expected: list[int],
    plain: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiler = Compiler(dirty)
    monkeypatch.setattr(registers, "compile_all", compiler)
    assert registers.main([plain, "--arch", "sm_90", "--dims", "64"]) == 0
    out = capsys.readouterr().out
    assert counts(out) == dict.fromkeys(registers.KINDS, expected)
    assert out.count("spills (8 B stored") == 3 * dirty
    assert [len(asked) for asked in compiler.rounds] == [3] * (dirty + 1)


def test_a_kernel_without_a_clean_configuration_is_told_by_the_exit_status(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registers, "compile_all", Compiler(0, fails=True))
    assert registers.main([plain, "--arch", "gfx942", "--dims", "64"]) == 1
    out = capsys.readouterr().out
    assert counts(out) == {kind: [1, 0, 0, 0, 1] for kind in registers.KINDS}


def test_the_last_of_each_list_alone(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = Compiler(1)
    monkeypatch.setattr(registers, "compile_all", compiler)
    assert registers.main([plain, "--arch", "sm_90", "--dims", "16:512", "--last"]) == 1
    (asked,) = compiler.rounds
    target = target_of("sm_90")
    found = {r.kernel: (r.constexprs["BLOCK_M"], r.constexprs["BLOCK_N"]) for r in asked}
    assert found == {"forward": (16, 16), "rows": (16, 16), "columns": (16, 16)}
    assert all(r.constexprs["VALUE_DIM"] == 512 and r.registers == 255 for r in asked)
    assert f"plain {target.name} rows" in capsys.readouterr().out


def test_the_kernels_for_shared_keys_alone(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = Compiler(0)
    monkeypatch.setattr(registers, "compile_all", compiler)
    assert registers.main([plain, "--arch", "sm_90", "--dims", "64"]) == 0
    assert registers.main([plain, "--arch", "sm_90", "--dims", "64", "--grouped"]) == 0
    usual, (grouped,) = compiler.rounds
    (alone,) = [r for r in usual if r.kernel == "columns"]
    assert alone.constexprs["ALONE"] is True
    assert grouped.kernel == "columns"
    assert grouped.constexprs == {**alone.constexprs, "ALONE": False}
    assert counts(capsys.readouterr().out.rpartition("kernel")[2])["columns"] == [1, 1, 0, 0, 0]
