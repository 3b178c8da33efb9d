"""The tree keeps the shape that CONTRIBUTING.md describes: packages, links, imports, sizes, first lines."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("ir", "backends", "templates")
SOURCES = ("attncompiler", *LINKED, "examples", "tests")
TEXTS = (".py", ".j2", ".h", ".cpp", ".md", ".toml", ".txt", "")


def files(*suffixes: str) -> list[Path]:
    """Every source file once: the links are left out, their targets are walked themselves."""
    found = []
    for top in SOURCES:
        for folder, names, members in (
            (ROOT / top).walk() if hasattr(Path, "walk") else _walk(ROOT / top)
        ):
            names[:] = [n for n in names if n != "__pycache__" and not (folder / n).is_symlink()]
            found += [folder / m for m in members if Path(m).suffix in suffixes]
    return sorted(found)


def _walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    import os

    for folder, names, members in os.walk(top):
        yield Path(folder), names, members


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_package_list_is_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    roots = {"attncompiler": ROOT / "attncompiler"}
    roots |= {f"attncompiler.{top}": ROOT / top for top in LINKED}
    folders = set()
    for path in files(".py", ".j2", ".h"):
        for package, root in roots.items():
            if path.is_relative_to(root):
                folders.add(".".join([package, *path.parent.relative_to(root).parts]))
    assert sorted(settings["packages"]) == sorted(folders)
    assert settings["package-dir"] == {p: str(r.relative_to(ROOT)) for p, r in roots.items()}


@pytest.mark.parametrize("top", LINKED)
def test_links_point_at_the_folders(top: str) -> None:
    link = ROOT / "attncompiler" / top
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{top}"
    assert (ROOT / top / "__init__.py").is_file()


def test_nothing_imports_the_folders_by_their_bare_names() -> None:
    found = []
    for path in files(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=aliases):
                    modules = [alias.name for alias in aliases]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            found += [f"{name(path)}:{node.lineno}" for m in modules if m.split(".")[0] in LINKED]
    assert not found


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {
        name(p): len(p.read_text().splitlines())
        for p in files(".py", ".j2", ".h", ".cpp")
        if "golden" not in p.parts
    }
    assert not {n: length for n, length in lengths.items() if length > 400}


def test_every_module_says_first_what_it_does() -> None:
    silent = []
    for path in files(".py"):
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text))
        if text.strip() and not (docstring and docstring.splitlines()[0].strip()):
            silent.append(name(path))
    assert not silent


def test_examples_fit_on_a_screen() -> None:
    lengths = {name(p): len(p.read_text().splitlines()) for p in (ROOT / "examples").glob("*.py")}
    assert not {n: length for n, length in lengths.items() if length > 40}


def test_nothing_names_a_machine_or_a_package_host() -> None:
    # Written in pieces, so that this file does not find itself.
    folders = "|".join(("wo" + "rk", "fa" + "rm", "ro" + "ot", "ho" + "me"))
    hosts = "|".join(("py" + r"pi\.org", "python" + r"hosted\.org", r"npm" + r"js\.(org|com)"))
    banned = re.compile(rf"(?<![\w.)])/({folders})/|{hosts}")
    tops = [p for p in ROOT.iterdir() if p.is_file() and not p.name.startswith(".")]
    texts = [*files(*TEXTS), *(p for p in tops if p.suffix in TEXTS), ROOT / ".ci" / "run"]
    found = [
        f"{name(path)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]
    assert not found
