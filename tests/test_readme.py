"""The README's Python blocks run as they stand, in order, and its variant passes the check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attncompiler.check
from attncompiler.cases import draw_cases
from attncompiler.variant_file import load_variant

README = Path(__file__).parent.parent / "README.md"
SPARSITY = README.parent / "docs" / "sparsity.md"


def blocks(page: Path = README) -> list[str]:
    """The fenced Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_blocks_run(tmp_path: Path) -> None:
    definition, *uses = blocks()
    assert len(uses) == 3  # compile, flex_attention, transformers
    (tmp_path / "my_attention.py").write_text(definition)
    for number, use in enumerate(uses):
        file = tmp_path / f"use{number}.py"
        file.write_text(use)
        done = subprocess.run(
            [sys.executable, file.name], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{use}\n{done.stderr}"


def test_the_variant_passes_the_check(tmp_path: Path) -> None:
    file = tmp_path / "my_attention.py"
    file.write_text(blocks()[0])
    checker = attncompiler.check.Checker(load_variant(file, None, ()), gradients=True)
    report = checker.report(draw_cases(1, 4, ("float32", "bfloat16")))
    assert report.passed, report.summary()


def test_the_blocks_on_sparse_masks_run(tmp_path: Path) -> None:
    packed, window = blocks(SPARSITY)
    for name, text in (("packed.py", packed), ("window.py", window)):
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        assert ("of the pairs are visited" in done.stdout) == (name == "packed.py")
