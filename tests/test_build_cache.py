"""Building and caching kernels: what goes wrong between a source and a library."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.runtime import cache
from attncompiler.runtime.errors import CacheError, CompilerFailedError, MissingCompilerError
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.toolchain import find_toolchain


class Window(Variant):
    window: int = 8
    slope: float = 0.5
    bias = Tensor("h", "k")

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s * self.slope + self.bias[at.h, at.k]

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at) & (at.q - at.k < self.window)


class Plain(Variant):
    pass


def call(op: Operator, length: int = 20, **arguments: Any) -> torch.Tensor:
    q = torch.randn(1, 2, length, 4)
    if isinstance(op.variant, Window):
        arguments["bias"] = torch.zeros(2, length)
    result = op(q, q, q, **arguments)
    assert isinstance(result, torch.Tensor)
    return result


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def script(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


# Cold and warm.


def test_a_second_operator_finds_the_build(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = attncompiler.compile(Plain).build(head_dim=4)
    assert not cold.cached
    assert cold.path_source.is_file()
    assert "class Plain" in cold.path_source.read_text()
    monkeypatch.setattr(subprocess, "run", None)
    warm = attncompiler.compile(Plain).build(head_dim=4)
    assert warm.cached
    assert warm.path_library == cold.path_library
    assert warm.seconds["compile"] < 0.1
    call(attncompiler.compile(Plain))
    assert len(leftovers(empty_cache)) == 1


def test_new_lengths_and_values_build_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    op = attncompiler.compile(Window)
    call(op)
    monkeypatch.setattr(subprocess, "run", None)
    for length in (1, 33, 100):
        call(op, length, window=length // 2, slope=0.1 * length, q_start=length, scale=2.0)
    call(attncompiler.compile(Window(window=3, slope=9.0)))


def test_other_flags_are_another_build(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attncompiler.compile(Plain).build(head_dim=4)
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", "-O1 -DUNUSED='a b'")
    second = attncompiler.compile(Plain).build(head_dim=4)
    assert not second.cached
    assert second.path_library != first.path_library
    assert find_toolchain().flags[-2:] == ("-O1", "-DUNUSED=a b")


# Builds that fail, are killed, or race.


def test_a_compiler_that_fails_leaves_nothing(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(
        "CXX",
        script(tmp_path, "broken", "echo half > kernel.so; echo 'no such flag' >&2; exit 3\n"),
    )
    with pytest.raises(CompilerFailedError, match="no such flag") as caught:
        call(attncompiler.compile(Plain))
    assert leftovers(empty_cache) == []
    kept = Path(str(caught.value).rsplit("kept at ", 1)[1])
    assert "class Plain" in kept.read_text()


def test_a_linker_that_fails_leaves_nothing(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_toolchain().command[0]
    text = f'case "$*" in *-shared*) kill -9 $$;; esac\nexec {real} "$@"\n'
    monkeypatch.setenv("CXX", script(tmp_path, "killed", text))
    with pytest.raises(CompilerFailedError, match="status -9"):
        call(attncompiler.compile(Plain))
    assert leftovers(empty_cache) == []
    monkeypatch.delenv("CXX")
    call(attncompiler.compile(Plain))


def build_in_process(folder: str, started: Any = None) -> None:
    os.environ["ATTNCOMPILER_CACHE"] = folder
    if started is not None:
        started.wait(60)
    call(attncompiler.compile(Plain))


def test_a_process_killed_while_it_builds_leaves_no_entry(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", script(tmp_path, "slow", "exec sleep 60\n"))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=build_in_process, args=(str(empty_cache),))
    process.start()
    end = time.monotonic() + 60
    while not leftovers(empty_cache) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.join()
    monkeypatch.delenv("CXX")
    assert all(name.startswith(".") for name in leftovers(empty_cache))
    assert list(cache.entries()) == []
    call(attncompiler.compile(Plain))
    assert len(list(cache.entries())) == 1


def test_what_a_killed_build_left_is_removed_later(empty_cache: Path) -> None:
    empty_cache.mkdir()
    for name, age in ((".plain_float32_d4-old", 2 * 86400), (".plain_float32_d4-new", 60)):
        (empty_cache / name).mkdir()
        os.utime(empty_cache / name, (time.time() - age,) * 2)
    call(attncompiler.compile(Plain))
    assert [n for n in leftovers(empty_cache) if n.startswith(".")] == [".plain_float32_d4-new"]


def test_two_processes_building_at_once_both_succeed(empty_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(2)
    processes = [
        context.Process(target=build_in_process, args=(str(empty_cache), started)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(leftovers(empty_cache)) == 1


def test_threads_building_at_once_all_succeed(empty_cache: Path) -> None:
    op = attncompiler.compile(Plain)
    done: list[torch.Tensor] = []
    workers = [threading.Thread(target=lambda: done.append(call(op))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == 4
    assert len(leftovers(empty_cache)) == 1


# Caches that are damaged or cannot be written.


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "gone", "sums"])
def test_a_damaged_entry_is_built_again(empty_cache: Path, damage: str) -> None:
    built = attncompiler.compile(Plain).build(head_dim=4)
    path = built.path_library
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:5000])
        case "garbage":
            path.write_bytes(bytes(reversed(path.read_bytes())))
        case "gone":
            path.unlink()
        case "sums":
            (path.parent / cache.SUMS).unlink()
    again = attncompiler.compile(Plain).build(head_dim=4)
    assert not again.cached
    assert call(attncompiler.compile(Plain)).isfinite().all()
    assert leftovers(empty_cache) == [path.parent.name]


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNCOMPILER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match="ATTNCOMPILER_CACHE to a folder") as caught:
        call(attncompiler.compile(Plain))
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_cache_still_serves_what_it_holds(empty_cache: Path) -> None:
    call(attncompiler.compile(Plain))
    empty_cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        call(attncompiler.compile(Plain))
        with pytest.raises(CacheError, match="ermission"):
            attncompiler.compile(Plain).build(head_dim=5)
    finally:
        empty_cache.chmod(stat.S_IRWXU)


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTNCOMPILER_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path
    monkeypatch.delenv("ATTNCOMPILER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "attncompiler"


# Compilers.


def test_no_compiler_says_how_to_get_one(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingCompilerError, match=r"apt-get install g\+\+") as caught:
        call(attncompiler.compile(Plain))
    assert "CXX" in str(caught.value)
    assert leftovers(empty_cache) == []


@pytest.mark.usefixtures("empty_cache")
def test_a_wrong_cxx_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(MissingCompilerError, match="no-such-compiler"):
        call(attncompiler.compile(Plain))
    path = tmp_path / "not-a-program"
    path.write_text("neither a script nor a binary")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(MissingCompilerError, match="not-a-program"):
        call(attncompiler.compile(Plain))


def test_cxx_chooses_the_compiler(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, log = find_toolchain().command[0], tmp_path / "log"
    wrapper = script(tmp_path, "my compiler", f'echo "$@" >> "{log}"\nexec {real} "$@"\n')
    monkeypatch.setenv("CXX", f"'{wrapper}' -DCHOSEN=1")
    call(attncompiler.compile(Plain))
    lines = log.read_text().splitlines()
    assert len(lines) == 2, "one call compiles, one links"
    assert all("-DCHOSEN=1" in line for line in lines)


def test_an_interrupt_while_building_passes_through(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "run", interrupted)
    # A process that was started in the background may ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            call(attncompiler.compile(Plain))
    finally:
        signal.signal(signal.SIGINT, before)
    assert leftovers(empty_cache) == []
