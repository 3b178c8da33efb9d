"""Records of tuning: read back as written, never half written, and kept apart by whatever changes machine code."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from attncompiler.backends.cpp import Specialization
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.runtime.errors import CacheError
from attncompiler.runtime.situation import Bucket, near
from attncompiler.runtime.toolchain import Toolchain, find_toolchain
from attncompiler.tuning.records import Record, measuring, read, records, write
from attncompiler.tuning.winners import key_of

BUCKET = Bucket(problems=8, group=1, queries=1024, keys=2048, density=0.5, threads=2)


def record(number: int) -> Record:
    trials = tuple(({"tile": tile}, float(number)) for tile in range(200))
    return Record({"keys": 1}, {"tile": number}, 0.5, 1e-3, trials, f"call {number}")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "kernel", str(BUCKET), record(3))
    assert read(tmp_path / "kernel", str(BUCKET)) == record(3)
    assert list(records(tmp_path / "kernel")) == [(str(BUCKET), record(3))]
    assert read(tmp_path / "kernel", "other") is None
    assert not list(records(tmp_path / "nothing"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 0, "choice": {}}'])
def test_what_is_no_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert read(tmp_path, "x") is None


def test_a_search_that_is_not_complete_has_no_winner(tmp_path: Path) -> None:
    write(tmp_path, "x", replace(record(1), choice={}))
    found = read(tmp_path, "x")
    assert found is not None
    assert not found.complete
    assert not list(records(tmp_path))


def _write_many(folder: Path, number: int) -> None:
    for _ in range(40):
        write(folder, "x", record(number))


def test_many_writers_leave_whole_records(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(w.is_alive() for w in writers):
        found = read(tmp_path, "x")
        if found is not None:
            assert found == record(found.choice["tile"])
            seen.add(found.choice["tile"])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError):
        write(tmp_path / "file" / "kernel", "x", record(1))


def test_measuring_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNCOMPILER_CACHE", str(tmp_path / "file" / "cache"))
    with measuring():
        pass


def test_the_name_of_a_class_tells_all_its_fields() -> None:
    changed = [replace(BUCKET, **{f.name: 2 * getattr(BUCKET, f.name)}) for f in fields(Bucket)]
    assert len({str(b) for b in (BUCKET, *changed)}) == len(changed) + 1


def test_classes_are_a_factor_of_two_wide() -> None:
    assert [near(n) for n in (0, 1, 2, 3, 5, 6, 1000, 1500)] == [0, 1, 2, 4, 4, 8, 1024, 2048]


class _Biased(Variant):
    bias = Tensor("h", "k")
    cap: float = 2.0

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s + self.cap * self.bias[at.h, at.k]

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)


class _Other(_Biased):
    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s - self.cap * self.bias[at.h, at.k]


def test_the_key_covers_every_option_of_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernel: everything that its source is made from. Of the build: everything that its cache is keyed by."""
    tools = find_toolchain()
    spec = Specialization("float32", 64, 64, ("float32",))
    changes = {
        "dtype": "bfloat16",
        "head_dim": 128,
        "value_dim": 32,
        "tensors": ("bfloat16",),
    }
    assert set(changes) == {f.name for f in fields(Specialization)}
    kernels = compile_variant(_Biased)._kernels
    sources = [kernels.source(spec), compile_variant(_Other)._kernels.source(spec)]
    sources += [kernels.source(replace(spec, **{n: x})) for n, x in changes.items()]  # type: ignore[arg-type]
    for wanted in (frozenset[str](), frozenset({"bias"})):
        read_ = kernels.backward_specialization({"bias": "float32"}, ("float32", 64, 64), wanted)
        sources.append(kernels.backward_source(read_, wanted))
    keys = [key_of(source, tools) for source in sources]
    assert len(set(keys)) == len(keys)
    others = {
        "command": ("clang++",),
        "identity": "another compiler",
        "flags": (*tools.flags, "-O2"),
    }
    assert set(others) == {f.name for f in fields(Toolchain)}
    # The command is part of the identity.
    built = [replace(tools, **{n: x}) for n, x in others.items() if n != "command"]  # type: ignore[arg-type]
    keys += [key_of(sources[0], t) for t in built]
    monkeypatch.setattr("attncompiler.runtime.toolchain.processor", lambda: "another processor")
    keys.append(key_of(sources[0], tools))
    assert len(set(keys)) == len(keys)


def test_the_key_leaves_out_what_stands_above_the_code() -> None:
    source = compile_variant(_Biased)._kernels.source(
        Specialization("float32", 64, 64, ("float32",))
    )
    code = source[source.index("#include") :]
    tools = find_toolchain()
    assert source.startswith("// ")
    assert key_of(source, tools) == key_of("// Another comment.\n" + code, tools)
    assert key_of(source, tools) != key_of(source + "// below\n", tools)


def test_a_record_is_readable_text(tmp_path: Path) -> None:
    write(tmp_path, "x", record(1))
    assert json.loads((tmp_path / "x.json").read_text())["call"] == "call 1"
