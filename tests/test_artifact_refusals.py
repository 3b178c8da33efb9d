"""What a package cannot carry, and folders it is not written to, are errors that say what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from attncompiler import cli
from attncompiler.artifact.carried import CarryError
from attncompiler.artifact.definition import Definition
from attncompiler.artifact.portable import copied
from attncompiler.artifact.publish import FolderTakenError, PackageNameError, publish
from attncompiler.compiler import compile_levels
from attncompiler.dsl import Tensor, Variant, exp
from attncompiler.errors import InternalError
from attncompiler.frontend import trace

TABLE = torch.arange(4.0)
NAMES = {"a": 1.0}
SIZES = (1, (2.5, float("inf")), "x", None)


class Helper:
    """A class of the user's file."""


def outer(x: Any) -> Any:
    return inner(x) + SIZES[0]


def inner(x: Any) -> Any:
    return torch.nn.functional.silu(x) * SIZES[1][0]


def uses_a_dict(x: Any) -> Any:
    return x * NAMES["a"]


class Base(Variant):
    gain: float = 2.0
    steps = 3

    def _twice(self, x: Any) -> Any:
        return 2 * x * self.gain

    @staticmethod
    def _plain(x: Any) -> Any:
        return x + 1


def definition(variant: Variant) -> Definition:
    return Definition(compile_levels(trace(variant)))


def test_what_prepare_calls_is_carried_word_for_word() -> None:
    class Good(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return self._twice(outer(q)) / self.steps, self._plain(k), v

    files = definition(Good()).files()
    text = files["carried.py"]
    for line in (
        "import torch as torch",
        "SIZES = (1, (2.5, float(\"inf\")), 'x', None)",
        "def outer(x: Any) -> Any:",
        "def inner(x: Any) -> Any:",
        "    steps = 3",
        "    def _twice(self, x: Any) -> Any:",
        "    @staticmethod",
    ):
        assert line in text.splitlines(), line
    assert "gain =" not in text  # a parameter: it comes with the call
    compile(text, "carried.py", "exec")


def mistakes() -> dict[str, tuple[type[Variant], str, str]]:
    """A variant, what its error says, and a piece of the line it shows."""
    free = 1.0

    class Closure(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return q * free, k, v

    class Whole(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return outer(self) * q, k, v

    class Formula(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return exp(q), k, v

    class Object(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return q, k, v + TABLE[0]

    class Class(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            Helper()
            return q, k, v

    class Inherited(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return super().prepare(q, k, v)  # type: ignore[misc]

    class Deep(Base):
        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return uses_a_dict(q), k, v

    class Declared(Base):
        bias = Tensor("h")

        def prepare(self, q: Any, k: Any, v: Any) -> Any:
            return q * self.bias, k, v

    return {
        "closure": (Closure, "it reads free of a function around it", "def prepare"),
        "self": (Whole, "it hands self on as a whole", "outer(self)"),
        "dsl": (Formula, "it uses exp, a function of attncompiler", "exp(q)"),
        "tensor": (Object, "it uses TABLE, a Tensor", "TABLE[0]"),
        "class": (Class, "it uses Helper, a type of", "Helper()"),
        "super": (Inherited, "it calls super()", "super()"),
        "helper": (Deep, "which calls uses_a_dict: it uses NAMES, a dict", 'NAMES["a"]'),
        "declaration": (Declared, "Declared.bias: it is a Tensor", "self.bias"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_what_cannot_be_carried_is_refused_with_its_line(name: str) -> None:
    variant, says, line = mistakes()[name]
    with pytest.raises(CarryError) as raised:
        definition(variant())
    assert says in raised.value.summary
    assert raised.value.location is not None
    assert raised.value.location.filename == __file__
    assert line in str(raised.value)


def test_captured_tensors_are_refused() -> None:
    class Captured(Variant):
        def score(self, s: Any, at: Any) -> Any:
            return s + TABLE[at.h]

    with pytest.raises(CarryError, match="reads a torch tensor that was made outside"):
        definition(Captured())


def test_a_name_of_the_dense_definition_is_refused() -> None:
    class Named(Variant):
        dtype = Tensor("h")

        def score(self, s: Any, at: Any) -> Any:
            return s + self.dtype[at.h]

    with pytest.raises(CarryError, match="an argument of that name"):
        definition(Named())


def test_modules_that_need_the_compiler_are_not_portable() -> None:
    with pytest.raises(InternalError, match="sympy"):
        copied(("ir.algebra",))


def test_a_copy_differs_in_its_imports_only() -> None:
    root = Path(__file__).parents[1] / "attncompiler"
    for path, text in copied(("runtime.packaged", "runtime.selftest")).items():
        if path.endswith("__init__.py"):
            continue
        lines, own = text.splitlines(), (root / path).read_text().splitlines()
        assert len(lines) == len(own)
        for mine, theirs in zip(lines, own, strict=True):
            assert mine == theirs or theirs.strip().startswith("from attncompiler"), (path, theirs)
            assert not mine.strip().startswith("from attncompiler")


FILES = {"__init__.py": "x = 1\n", "kernels/a.cpp": "//\n"}
MANIFEST = json.dumps({"attncompiler": "0", "files": dict.fromkeys(FILES, "")})


def package(folder: Path, **more: str) -> None:
    publish(folder, FILES | {"manifest.json": MANIFEST} | more)


@pytest.mark.parametrize("name", ["my-kernel", "1st", "class", "torch"])
def test_a_folder_that_cannot_be_imported(name: str, tmp_path: Path) -> None:
    with pytest.raises(PackageNameError):
        package(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text("precious")
    with pytest.raises(FolderTakenError, match="work"):
        package(tmp_path / "mine")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FolderTakenError, match="a file"):
        package(tmp_path / "file")
    package(tmp_path / "packed")
    (tmp_path / "packed" / "notes.txt").write_text("precious")
    with pytest.raises(FolderTakenError, match="notes"):
        package(tmp_path / "packed")
    assert (tmp_path / "packed" / "notes.txt").read_text() == "precious"


def test_an_empty_folder_and_a_package_are_filled(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    package(tmp_path / "packed")
    (tmp_path / "packed" / "__pycache__").mkdir()
    package(tmp_path / "packed", **{"__init__.py": "x = 2\n"})
    assert (tmp_path / "packed" / "__init__.py").read_text() == "x = 2\n"
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_a_stop_half_way_keeps_the_old_package(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path / "packed")
    rename, write = os.rename, Path.write_bytes

    def broken_rename(source: Any, target: Any) -> None:
        if Path(source).name == "new":
            raise OSError("disk full")
        rename(source, target)

    def broken_write(path: Path, data: bytes) -> int:
        if path.name == "a.cpp":
            raise OSError("disk full")
        return write(path, data)

    if failing == "rename":
        monkeypatch.setattr(os, "rename", broken_rename)
    else:
        monkeypatch.setattr(Path, "write_bytes", broken_write)
    with pytest.raises(OSError, match="disk full"):
        package(tmp_path / "packed", **{"__init__.py": "x = 2\n"})
    monkeypatch.undo()
    assert (tmp_path / "packed" / "__init__.py").read_text() == "x = 1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]


def test_the_command_refuses_a_folder_before_it_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.py").write_text(
        "from attncompiler.dsl import Variant\n\n\nclass Plain(Variant):\n    pass\n"
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main(["build", str(tmp_path / "plain.py"), "--out", str(tmp_path / "no-name")])
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "--out no_name" in shown.err
    assert "derive" not in shown.out
