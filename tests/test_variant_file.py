"""Variant files that are missing, broken or ambiguous give errors with the line, never tracebacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attncompiler.errors import AttnCompilerError, MissingParameterError
from attncompiler.variant_file import (
    FileMissingError,
    NoVariantError,
    SettingError,
    SeveralVariantsError,
    UnknownVariantError,
    VariantFileError,
    load_variant,
)

ONE = """
from attncompiler.dsl import Variant

class One(Variant):
    window: int = 4

class _Helper(Variant):
    pass
"""
TWO = ONE + "class Two(One):\n    pass\n"
BOUND = "from attncompiler.dsl import Variant\nclass Bound(Variant):\n    cap: float\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_one_variant_is_found_and_imported_names_are_not(tmp_path: Path) -> None:
    variant = load_variant(write(tmp_path, ONE))
    assert type(variant).__name__ == "One"
    assert variant.parameters() == {"window": 4}


def test_settings_become_parameters(tmp_path: Path) -> None:
    variant = load_variant(write(tmp_path, ONE), settings=["window=16"])
    assert variant.parameters() == {"window": 16}


@pytest.mark.parametrize("setting", ["window", "=3", "window=", "window=a", "window='a'"])
def test_a_setting_that_is_none(tmp_path: Path, setting: str) -> None:
    with pytest.raises(SettingError, match="parameter=value"):
        load_variant(write(tmp_path, ONE), settings=[setting])


def test_a_missing_parameter_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, BOUND)
    with pytest.raises(MissingParameterError, match="cap"):
        load_variant(path)
    assert load_variant(path, settings=["cap=2.5"]).parameters() == {"cap": 2.5}


@pytest.mark.parametrize(("settings", "help_"), [([], "--set cap=..."), (["capp=1"], "are cap")])
def test_a_mistake_in_settings_shows_the_class(
    tmp_path: Path, settings: list[str], help_: str
) -> None:
    path = write(tmp_path, BOUND)
    with pytest.raises(AttnCompilerError) as caught:
        load_variant(path, settings=settings)
    assert caught.value.location is not None
    assert (caught.value.location.filename, caught.value.location.line) == (str(path), 2)
    assert help_ in str(caught.value)


def test_a_relative_path_shows_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x = 1 / 0\n")
    with pytest.raises(VariantFileError, match="x = 1 / 0"):
        load_variant(Path("mine.py"))


def test_name_chooses(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    with pytest.raises(SeveralVariantsError, match=r"One, Two[\s\S]*--name One"):
        load_variant(path)
    assert type(load_variant(path, "Two")).__name__ == "Two"
    with pytest.raises(UnknownVariantError, match=r"'Tow'[\s\S]*Two"):
        load_variant(path, "Tow")


def test_an_instance_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, BOUND + "wide = Bound(cap=9.0)\n")
    assert load_variant(path, "wide").parameters() == {"cap": 9.0}


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="no such file"):
        load_variant(tmp_path / "absent.py")
    with pytest.raises(FileMissingError, match="folder"):
        load_variant(tmp_path)
    with pytest.raises(NoVariantError):
        load_variant(write(tmp_path, "from attncompiler.dsl import Variant\n"))


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError", 2),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError", 1),
        ("def f():\n    raise ValueError\n\nf()\n", "ValueError", 2),
        ("x = 1\nclass A(:\n", "SyntaxError", 2),
    ],
)
def test_a_file_that_raises_shows_its_line(tmp_path: Path, text: str, kind: str, line: int) -> None:
    path = write(tmp_path, text)
    before = set(sys.modules), list(sys.path)
    with pytest.raises(VariantFileError, match=kind) as caught:
        load_variant(path)
    assert caught.value.location is not None
    assert caught.value.location.line == line
    assert text.splitlines()[line - 1] in str(caught.value)
    assert "^" in str(caught.value)
    assert before == (set(sys.modules), list(sys.path)), "a failed import leaves something behind"


def test_a_mistake_in_a_class_keeps_its_own_error(tmp_path: Path) -> None:
    path = write(tmp_path, ONE.replace("window: int = 4", "def scroe(self, s, at): return s"))
    with pytest.raises(AttnCompilerError, match="scroe") as caught:
        load_variant(path)
    assert not isinstance(caught.value, VariantFileError)


def test_neighbours_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("WINDOW = 7\n")
    text = ONE.replace("window: int = 4", "window: int = neighbour_of_mine.WINDOW")
    assert load_variant(write(tmp_path, "import neighbour_of_mine\n" + text)).parameters() == {
        "window": 7
    }
