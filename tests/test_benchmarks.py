"""The suite of benchmarks: its cases are what they say, its measures see what is there, its files agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import attncompiler.oracle
from attncompiler import cli
from attncompiler.benchmarks import build_time, memory, sparse
from attncompiler.benchmarks.gpu_peers import flash_attention, gpu_makers
from attncompiler.benchmarks.main import Options, run_suite
from attncompiler.benchmarks.plan import Plan, plan_for
from attncompiler.benchmarks.plots import pictures
from attncompiler.benchmarks.report import (
    FORWARD,
    OURS,
    TRAINING,
    BuildLine,
    Line,
    MemoryLine,
    Peak,
    Report,
    SparseLine,
    from_json,
    to_json,
    write_all,
)
from attncompiler.benchmarks.roofline import better, least_seconds
from attncompiler.benchmarks.suite import CASES, Case, case, chosen
from attncompiler.benchmarks.summary import SDPA, means, rival_row, sentences
from attncompiler.benchmarks.tables import page, readme_block, replace_block
from attncompiler.comparison import Row, Size, compare, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal, sink_softmax
from attncompiler.frontend import trace
from attncompiler.peers import Refusal, peer
from attncompiler.sdpa_peers import added_term
from attncompiler.timing import Timing

pytestmark = pytest.mark.usefixtures("quick_builds")

ROOT = Path(__file__).parent.parent
FOLDER = "docs/benchmarks"
TINY = Size(48, 16, heads=2)


def plan(device: str = "cpu") -> Plan:
    small = replace(TINY, length=64)
    return replace(
        plan_for(device, quick=True, flex=False), forward=(small,), training=(small,), sweep=(small,),
        sparse=(small,), memory=(small,), build=(), memory_cases=("causal",),
    )  # fmt: skip


def sample() -> Report:
    """Two cases in two types, one of each other line, with what a peer cannot do."""
    lines = []
    for section in (FORWARD, TRAINING):
        for dtype in ("float32", "bfloat16"):
            for name, slower in (("dense", 2.0), ("cog", 8.0)):
                ours = Timing((0.01, 0.011, 0.012))
                rows = [Row(OURS, ours, 1.0, 1e-7)]
                if name == "dense":
                    rows += [
                        Row(
                            f"sdpa {how}",
                            Timing(tuple(factor * x for x in ours.seconds)),
                            factor,
                            2e-7,
                        )
                        for how, factor in (("flash", slower), ("math", 4 * slower))
                    ]
                    rows += [Row("flex", refusal="its compilation fails: a | b")]
                lines.append(
                    Line(section, name, replace(TINY, dtype=dtype), tuple(rows), 1.0, 0.005)
                )
    sweep = [
        replace(lines[0], section="sweep", case="causal", size=replace(TINY, length=n))
        for n in (64, 128)
    ]
    return Report(
        "cpu",
        {"processor": "one", "threads": 2, "instructions": "AVX2", "torch": "2"},
        peaks=(Peak("float32", 1e11, 1e10, "a measure"),),
        lines=(*lines, *sweep),
        sparse=(SparseLine("window", TINY, 0.1, 0.01, 0.1, 0.9, None, 1e-4),),
        memory=(MemoryLine("causal", TINY, True, {OURS: 2**20}, {"flex": "none"}),),
        build=(BuildLine(OURS, "causal", 2.0), BuildLine("flex", "causal", None, "broken")),
    )  # fmt: skip


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_cases_and_their_peers_compute_what_the_oracle_says(each: Case) -> None:
    peers = ("sdpa flash", "sdpa math", "sdpa mask", "dense")
    rows = compare(each.variant, inputs_for(each.variant, TINY), peers, rounds=3)
    timed = {row.name: row.error for row in rows if row.timing is not None}
    assert {OURS, "dense"} <= set(timed)
    assert all(error < 1e-5 for error in timed.values()), timed
    assert ("sdpa mask" in timed) == (each.name in ("window", "document", "alibi"))
    assert ("sdpa flash" in timed) == (each.name in ("dense", "causal"))


def test_a_peer_that_fails_is_a_row_with_the_reason() -> None:
    def broken(inputs: Any) -> Any:
        raise torch.OutOfMemoryError("no room\nat all")

    inputs = inputs_for(Variant(), TINY)
    rows = compare(Variant(), inputs, ("sdpa cudnn",), rounds=3, others={"broken": broken})
    refused = {row.name: row.refusal for row in rows if row.refusal}
    assert refused["broken"] == "OutOfMemoryError: no room"
    assert "sdpa cudnn" in refused


def test_added_terms_are_found_by_structure() -> None:
    assert added_term(trace(case("alibi").variant).program.score) is not None
    assert added_term(trace(case("soft cap").variant).program.score) is None


class OwnSink(Variant):
    logit = Tensor("h")

    def mask(self, at: Any) -> Any:
        return causal(at)

    def normalize(self, s: Any, row: Any) -> Any:
        return sink_softmax(s, row, self.logit[row.h])


def test_flex_expresses_a_sink_through_its_lse(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled for a CPU it has no lse; uncompiled it has.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    inputs = inputs_for(OwnSink(), replace(TINY, length=128))
    call = peer("flex", OwnSink(), inputs)
    assert not isinstance(call, Refusal), call
    exact = attncompiler.oracle.attention(
        OwnSink(), inputs.q, inputs.k, inputs.v, tensors=dict(inputs.tensors)
    )
    torch.testing.assert_close(call().double(), exact.out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["dense", "causal", "window", "document", "soft cap", "alibi", "cog"]
)
def test_flash_attention_gets_the_options_of_a_case(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def called(q: Any, k: Any, v: Any, **options: Any) -> Any:
        given.update(options, shape=q.shape)
        return q

    fake = ModuleType("flash_attn")
    fake.__dict__.update(flash_attn_func=called, flash_attn_varlen_func=called, __spec__=object())
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    inputs = inputs_for(case(name).variant, replace(TINY, dtype="bfloat16", batch=2))
    found = flash_attention(case(name), inputs)
    if name == "cog":
        assert isinstance(found, Refusal)
        return
    assert not isinstance(found, Refusal)
    assert torch.equal(found(), inputs.q)
    assert given["causal"] == (name != "dense")
    if name == "document":
        assert given["cu_seqlens_q"].tolist() == list(range(0, 97, 12))
        assert given["shape"] == (96, 2, 16)
    assert given.get("window_size", (511, 0)) == (511, 0)
    assert gpu_makers(case(name), "cpu", training=False) == {}


def test_the_memory_measure_sees_an_allocation() -> None:
    reason = memory.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)
    extra = memory.extra_peak(lambda: torch.ones(16 * 2**20), "cpu")
    assert abs(extra - 64 * 2**20) < 4 * 2**20


def test_memory_of_a_dense_call_holds_its_matrix() -> None:
    if memory.why_not("cpu") is not None:
        pytest.skip("it cannot be measured here")
    size = Size(1024, 16, heads=2)
    line = memory.measure(
        case("causal"), size, ("dense", "flex"), device="cpu", backend="auto", training=True
    )
    assert line.extra["dense"] > 2 * 1024 * 1024 * 4
    assert line.extra[OURS] < line.extra["dense"]
    assert "backward" in line.refusals["flex"]


def test_the_roofline_is_the_longer_of_work_and_transfers() -> None:
    work = least_seconds(TINY, 1.0, Peak("float32", 1e9, 1e30, ""))
    assert work == pytest.approx(4 * 2 * 48 * 48 * 16 / 1e9)
    moved = least_seconds(TINY, 1.0, Peak("float32", 1e30, 1e9, ""))
    assert moved == pytest.approx(4 * 2 * 48 * 16 * 4 / 1e9)
    trained = least_seconds(TINY, 0.5, Peak("float32", 1e9, 1e30, ""), TRAINING)
    assert trained == pytest.approx(3.5 * work / 2)


def test_the_better_measurement_of_a_limit_counts() -> None:
    first, second = Peak("float32", 1e9, 2e9, "a"), Peak("float32", 3e9, 1e9, "a")
    assert better(None, first) is first
    assert better(first, second) == Peak("float32", 3e9, 2e9, "a")


def test_a_sparse_line_measures_against_dense() -> None:
    size = Size(2048, 16, heads=1)
    line = sparse.measure(sparse.MASKS[1], size, device="cpu", backend="auto", flex=False, rounds=3)
    assert line.mask == "documents"
    assert 0.05 < line.visited < 0.15
    assert line.flex is None


def test_the_time_to_the_first_result_is_measured_in_a_process_of_its_own() -> None:
    (line,) = build_time.measure(OURS, ("dense",), "cpu")
    assert line.seconds is not None, line.refusal
    assert line.seconds > 0.1  # a C++ compiler ran


def test_json_round_trips_to_the_same_tables_and_pictures() -> None:
    text = to_json(sample(), means)
    assert "NaN" not in text
    read = from_json(text)
    assert to_json(read, means) == text
    assert page(read) == page(sample())
    assert readme_block(read, FOLDER) == readme_block(sample(), FOLDER)
    drawn = pictures(read)
    assert drawn == pictures(sample())
    assert all(b"<svg" in svg and b"<dc:date>" not in svg for svg in drawn.values())


def test_means_take_the_fastest_backend() -> None:
    report = sample()
    row = rival_row(report.lines[0], SDPA)
    assert row is not None
    assert row.name == "sdpa flash"
    assert {(m.dtype, m.cases): m.ratio for m in means(report) if m.rival == SDPA} == {
        ("float32", 1): 2.0, ("bfloat16", 1): 2.0, ("all", 2): 2.0,
    }  # fmt: skip
    assert "2.00x the speed of SDPA" in sentences(means(report))[0]


def test_tables_show_ratio_spread_error_and_reason() -> None:
    shown = page(sample())
    assert "| sdpa flash | 22.00 ±9 % | 2.00x (2.00 to 2.00) | 2.0e-07 | 0.23 |" in shown
    assert r"its compilation fails: a \| b" in shown
    assert "| flex | causal | broken |" in shown


def test_means_are_those_of_the_numbers_that_are_kept() -> None:
    def long(line: Line) -> Line:
        """Of 1.0005 and 4.0005 the mean has another fourth digit than that of 1.000 and 4.000."""
        ratio = 1.00049 if line.size.dtype == "float32" else 4.00049
        rows = (replace(r, ratio=ratio) if r.name == "sdpa flash" else r for r in line.rows)
        return replace(line, rows=tuple(rows))

    text = to_json(replace(sample(), lines=tuple(map(long, sample().lines))), means)
    assert to_json(from_json(text), means) == text
    assert '"ratio": 2.0,' in text
    assert "2.001" not in text


def test_committed_tables_are_made_of_the_committed_json() -> None:
    text = (ROOT / FOLDER / "cpu.json").read_text()
    report = from_json(text)
    assert to_json(report, means) == text
    readme = (ROOT / "README.md").read_text()
    assert replace_block(readme, "cpu", readme_block(report, FOLDER)) == readme
    assert (ROOT / FOLDER / "cpu.md").read_text() == page(report)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", readme):
        assert (ROOT / picture).is_file()


def test_a_run_writes_every_file_and_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "PAGE.md"
    readme.write_text("a\n<!-- benchmark cpu -->\nold\n<!-- /benchmark cpu -->\nz\n")
    said: list[str] = []
    options = Options(rounds=3, flex=False, out=tmp_path / "found", readme=readme)
    only = replace(options, only=("dense", "cog"), readme=None, out=tmp_path / "few")
    assert not run_suite(only, said.append, plan()).sparse
    report = run_suite(options, said.append, plan())
    names = {path.name for path in (tmp_path / "found").iterdir()}
    pictures_of = {"cpu-speedup.svg", "cpu-sweep.svg", "cpu-roofline.svg"}
    assert names == {"cpu.json", "cpu.md", *pictures_of}
    assert len(report.section(FORWARD)) == len(CASES)
    assert readme.read_text().startswith("a\n<!-- benchmark cpu -->\nMeasured by `make bench`")
    assert "(found/cpu-sweep.svg)" in readme.read_text()
    assert any("speed of SDPA" in line for line in said)


def test_tables_are_written_again_from_json(tmp_path: Path) -> None:
    recorded = tmp_path / "cpu.json"
    recorded.write_text(to_json(sample(), means))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--from", str(recorded), "--out", str(tmp_path / "again")])
    assert stopped.value.code == 0
    assert (tmp_path / "again" / "cpu.json").read_text() == recorded.read_text()
    assert (tmp_path / "again" / "cpu.md").read_text() == page(sample())


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(Options(rounds=3, out=tmp_path / "found"), interrupted, plan())
    assert not list(tmp_path.iterdir())


def test_files_are_written_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(FileExistsError):
        write_all({tmp_path / "first": "1", tmp_path / "plain" / "x": "2"})
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "causa"), "the cases are: dense, causal, window"),
        (("--length", "64"), "--length goes with FILE only"),
        (("x.py", "--quick"), "--quick goes without FILE only"),
        (("--quick", "--readme", "README.md"), "goes with a whole run"),
        (("--device", "tpu"), "tpu"),
        (("--from", "README.md", "--quick"), "--quick goes without --from only"),
    ],
)
def test_usage_errors(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_a_readme_without_marks_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--readme", str(readme)])
    assert stopped.value.code == 2
    assert "<!-- benchmark cpu -->" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_of_a_gpu_runs_in_tritons_interpreter(tmp_path: Path) -> None:
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from attncompiler.benchmarks.main import Options, run_suite\n"
        "from attncompiler.benchmarks.plan import plan_for\n"
        "from attncompiler.comparison import Size\n"
        "size = (Size(32, 16, heads=1),)\n"
        "plan = replace(plan_for('cuda', flex=False), device='cpu', forward=size, wide=(), training=size,\n"
        "    sweep=size, sparse=size, memory=size, build=())\n"
        "options = Options(rounds=3, flex=False, out=Path(sys.argv[1]))\n"
        "assert len(run_suite(options, print, plan).lines) == 23\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )  # fmt: skip


def test_chosen_cases_keep_the_order_of_the_suite() -> None:
    assert [each.name for each in chosen(("cog", "dense"))] == ["dense", "cog"]
    assert chosen(()) == CASES


def test_the_suites_own_kernels_train() -> None:
    operator = compile_variant(case("affine").variant)
    inputs = inputs_for(case("affine").variant, TINY)
    q = inputs.q.requires_grad_()
    operator(q, inputs.k, inputs.v, **inputs.tensors).sum().backward()
    assert q.grad is not None
