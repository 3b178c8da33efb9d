"""The command line: what each command prints and leaves, its exit status, and that help is quick."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from attncompiler import cli

VARIANT = """
from attncompiler.dsl import Variant, causal

class Small(Variant):
    def mask(self, at):
        return causal(at)
"""


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(VARIANT)
    return path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom attncompiler.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('HEAVY', sorted({'torch', 'sympy', 'jinja2', 'numpy', 'islpy', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


def test_help_is_quick() -> None:
    # The limit is 0.4 s. What neighbours do to the clock, a process's own time does not show.
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "attncompiler.cli", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.4


@pytest.mark.parametrize("command", ["new", "build", "check", "explain", "bench", "list"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "Usage: attncompiler " + command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file"), [("Gemma2Local", "gemma2_local"), ("swin_2d", "swin_2d"), ("GPT2", "gpt2")]
)
def test_new_keeps_numbers_with_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("new", name) == 0
    assert [p.stem for p in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("name", ["my_attention", "MyAttention", "my-attention.py"])
def test_new_writes_a_file_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from attncompiler.frontend import trace
    from attncompiler.variant_file import load_variant

    monkeypatch.chdir(tmp_path)
    assert run("new", name) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["my_attention.py"]
    assert trace(load_variant(Path("my_attention.py"))).program.name == "MyAttention"


def test_new_keeps_an_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("precious")
    assert run("new", "mine") == 2
    assert (tmp_path / "mine.py").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "1", "class", "???"])
def test_new_refuses_what_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("new", name) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["build", "check", "explain", "bench"])
@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (None, 2, "no such file"),
        ("", 2, "defines no variant"),
        (VARIANT + "class Other(Small):\n    pass\n", 2, "--name Small"),
        ("raise RuntimeError('mine')\n", 1, "RuntimeError: mine"),
        (VARIANT.replace("causal(at)", "at.q if at.q > at.k else at.k"), 1, "at.q > at.k"),
        (VARIANT.replace("causal(at)", "at.q >= self.shift"), 1, "shift = Tensor("),
        (VARIANT.replace("causal(at)", "tanh(at.q) > 0"), 1, "attncompiler.dsl import tanh"),
    ],
)
def test_mistakes_print_a_message_and_no_traceback(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str | None,
    status: int,
    says: str,
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert run(command, path) == status
    shown = capsys.readouterr().err
    assert says in shown
    assert str(path) in shown
    assert "Traceback" not in shown


def test_build_writes_a_package(
    variant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kernels"
    assert run("build", variant, "--out", out, "--head-dim", 16, "--value-dim", 24) == 0
    shown = capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["variant"], manifest["head_dim"], manifest["value_dim"]) == ("Small", 16, 24)
    (kernel,) = manifest["kernels"]
    assert "Small" in (out / kernel["file"]).read_text()
    assert {p.name for p in out.iterdir()} == {
        *("__init__.py", "dense.py", "selftest.py", "manifest.json", "README.md", "py.typed"),
        *("kernels", "support"),
    }
    # Nothing half-written stays behind.
    assert not [p for p in tmp_path.iterdir() if p.name[0] == "."]
    for stage in ("print", "compile", "import", "derive"):
        assert re.search(rf"^{stage} +\d+\.\d+ s", shown, re.MULTILINE)
    assert "test it: python -m kernels.selftest" in shown


def test_build_without_a_folder_says_where_the_source_is(
    variant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", variant, "--head-dim", 16, "--backward") == 0
    sources = re.findall(r"^source  (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(sources) == 2
    assert all("class Small" in Path(source).read_text() for source in sources)
    assert "--head-dim 16 --value-dim 16 --backward" in Path(sources[1]).read_text()


def test_check_passes_a_right_variant(variant: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", variant, "--cases", 6, "--dtype", "float32") == 0
    shown = capsys.readouterr().out
    assert "passed: 6 cases, seed 0" in shown
    assert "worst error" in shown


def test_check_finds_shrinks_and_repeats_an_out_of_range_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outside.py"
    path.write_text(
        "from attncompiler.dsl import Tensor, Variant\n\n"
        "class Outside(Variant):\n"
        '    table = Tensor("k")\n\n'
        "    def score(self, s, at):\n"
        "        return s + self.table[at.k + 3]\n"
    )
    assert run("check", path, "--cases", 2, "--dtype", "float32") == 1
    shown = capsys.readouterr().out
    assert "M=1 N=1" in shown
    assert "'table' is out of range" in shown
    assert "self.table[at.k + 3]" in shown
    assert "outside.py:7" in shown
    case = re.search(r'--case "([^"]+)"', shown)
    assert case is not None
    assert run("check", path, "--case", case[1]) == 1


def test_check_refuses_a_case_it_cannot_read(variant: Path) -> None:
    assert run("check", variant, "--case", "W=3") == 2
    assert run("check", variant, "--case", "M=x") == 2


def test_explain_tells_the_passes(variant: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", variant) == 0
    shown = capsys.readouterr().out
    assert "pass" in shown
    assert "11. The tile map\n   512 queries and 512 keys in tiles of 64x64" in shown
    assert "No tiling can be more than 2.00x faster than dense; 64x64 tiles reach 1.78x." in shown


def test_explain_draws_the_tile_map(
    variant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mask.svg", "mask.png"):
        options = ("--lengths", "96,100", "--tile", "24,32", "--picture", tmp_path / name)
        assert run("explain", variant, *options) == 0
        shown = capsys.readouterr().out
        assert "96 queries and 100 keys in tiles of 24x32" in shown
        assert shown.endswith(f"wrote {tmp_path / name}\n")
        assert (tmp_path / name).stat().st_size > 1000


def test_explain_maps_a_million_tokens(
    variant: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "map.png"
    options = ("--lengths", "1000000", "--tile", "4096", "--picture", picture)
    assert run("explain", variant, *options) == 0
    assert "1000000 queries and 1000000 keys in tiles of 4096x4096" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (("--lengths", "0"), 2, "'0' is neither a positive number nor two"),
        (("--lengths", "1,2,3"), 2, "'1,2,3' is neither"),
        (("--lengths", "1000000", "--tile", "3,5"), 1, "choose larger tiles"),
        (("--tile", "64,"), 2, "'64,' is neither"),
        (("--picture", "mask.gif"), 2, "choose a name that ends in .png or .svg"),
        (("--picture", "no/such/folder/mask.svg"), 2, "No such file or directory"),
        (("--head", "-1"), 2, "--head"),
        (("--batch", "64"), 2, "--batch"),
    ],
)
def test_explain_refuses_what_it_cannot_draw(
    variant: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    status: int,
    says: str,
) -> None:
    assert run("explain", variant, *options) == status
    assert says in capsys.readouterr().err


def test_explain_goes_on_where_the_usual_lengths_do_not_suit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.py"
    path.write_text(
        "from attncompiler.dsl import Tensor, Variant\n\n"
        "class Table(Variant):\n"
        '    table = Tensor(100, dtype="bool")\n\n'
        "    def mask(self, at):\n"
        "        return self.table[at.k]\n"
    )
    assert run("explain", path) == 0
    shown = capsys.readouterr().out
    assert (
        "11. The tile map\n   None at the usual lengths.\n   index 100 of tensor 'table'" in shown
    )
    assert "sample_lengths = (queries, keys)" in shown
    assert run("explain", path, "--lengths", 101) == 1
    assert "index 100 of tensor 'table'" in capsys.readouterr().err
    assert run("explain", path, "--lengths", 100) == 0
    assert "100 queries and 100 keys" in capsys.readouterr().out


def test_bench_compares_with_pytorch(variant: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", variant, "--length", 64, "--heads", 2, "--rounds", 3, "--no-flex") == 0
    shown = capsys.readouterr().out
    for word in ("attncompiler", "sdpa", "dense", "median ms"):
        assert word in shown


def test_list_shows_the_prelude(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    for line in (
        "sliding_window(at, window) ",
        "power_of_two(at, block, window=1, sink=1) ",
        "tanh",
    ):
        assert line in shown


def test_build_compiles_for_gpus_that_are_not_here(
    variant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    out = tmp_path / "kernels"
    options = ("--backend", "cpp,triton", "--arch", "sm_90,gfx942", "--dtype", "bfloat16")
    assert run("build", variant, "--out", out, *options, "--head-dim", 64) == 0
    shown = capsys.readouterr().out
    for words in (
        r"arch +kernel +backend +block",
        r"sm_90 +forward .*chosen",
        r"gfx942 +forward .*chosen",
    ):
        assert re.search(words, shown)
    table = json.loads((out / "gpu" / "resources.json").read_text())
    assert {b["arch"] for b in table["binaries"]} == {"sm_90", "gfx942"}
    assert sum(c["chosen"] for c in table["configurations"]) == 2
    for binary in table["binaries"]:
        assert (out / binary["file"]).read_bytes().startswith(b"\x7fELF")
        assert "class Small" in (out / binary["source"]).read_text()
        assert binary["signature"]["q_pointer"] == "*bf16"
        assert binary["constants"]["HEAD_DIM"] == 64
    # A second build replaces the package with what stands in its manifest.
    assert run("build", variant, "--out", out, *options, "--head-dim", 64) == 0
    assert run("build", variant, "--backend", "triton", *options[2:]) == 0
    shown = capsys.readouterr().out
    assert "library" not in shown.splitlines()[-1]
    assert re.search(r"^binary +sm_90 forward bfloat16 +/.*kernel.cubin$", shown, re.MULTILINE)


@pytest.mark.slow
def test_build_lowers_tilelang_for_gpus_that_are_not_here(
    variant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("tilelang") is None:
        pytest.skip("TileLang is not installed here")
    assert run("build", variant, "--backend", "tilelang", "--arch", "gfx942", "--backward") == 0
    shown = capsys.readouterr().out
    assert "Small  bfloat16" in shown
    for kind in ("forward", "rows", "columns"):
        assert re.search(rf"^gfx942 +{kind} +tilelang .*chosen, not compiled", shown, re.MULTILINE)
        assert re.search(rf"^lowered gfx942 {kind} bfloat16  /.*kernel.hip$", shown, re.MULTILINE)
    assert "binary" not in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arch", "sm_90"), "add --backend triton, or --backend cpp,triton"),
        (("--backend", "cpp", "--arch", "sm_90"), "add --backend triton"),
        (("--backend", "triton"), "--arch NAME[,NAME] from sm_80, sm_86"),
        (("--backend", "triton", "--arch", "sm_91"), "no GPU architecture 'sm_91'"),
        (("--backend", "triton", "--arch", "sm_91"), "gfx942"),
        (("--backend", "metal"), "choose from auto, cpp, triton, tilelang"),
        (
            ("--backend", "triton", "--arch", "sm_90", "--dtype", "float64"),
            "float32, not in float64",
        ),
        (
            ("--backend", "triton", "--arch", "sm_80", "--dtype", "float8_e5m2"),
            "sm_80 multiplies no 8-bit floats, not float8_e5m2; choose --dtype bfloat16",
        ),
        (
            ("--backend", "triton", "--arch", "gfx942", "--dtype", "float8_e5m2"),
            "gfx942 multiplies float8_e4m3fnuz and float8_e5m2fnuz, not float8_e5m2",
        ),
        (
            ("--backend", "triton", "--arch", "sm_90", "--dtype", "float8_e5m2", "--backward"),
            "no gradients for inputs of float8_e5m2",
        ),
        (("--dtype", "float8_e5m2"), "float8_e5m2 is for --backend triton alone"),
        (("--backend", "triton"), "or a folder for a package, --out DIR"),
        (("--backend", "tilelang"), "--backend tilelang needs the GPUs to compile for, --arch"),
        (("--backend", "tilelang"), "or a folder for a package, --out DIR"),
        (("--backend", "tilelang", "--arch", "sm_91"), "no GPU architecture 'sm_91'"),
        (
            ("--backend", "triton,tilelang", "--arch", "sm_90", "--dtype", "float32"),
            "not float32 (float32 as tf32, where torch allows it at a call): choose --dtype bfloat16 or float16",
        ),
        (
            ("--backend", "tilelang", "--arch", "sm_90", "--dtype", "float64"),
            "multiplies bfloat16 and float16, not float64",
        ),
        (
            ("--backend", "triton,tilelang", "--arch", "sm_90", "--out", "x"),
            "a package has one sort of kernels for GPUs",
        ),
    ],
)
def test_build_refuses_what_gpus_do_not_have(
    variant: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    assert run("build", variant, *options) == 2
    assert says in " ".join(capsys.readouterr().err.split())
