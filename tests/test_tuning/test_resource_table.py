"""One line a configuration: what it takes and what becomes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.triton_configs import Config
from attncompiler.runtime.offline import Built, Failed, KernelRequest, Lowered
from attncompiler.tuning.cost import Prediction
from attncompiler.tuning.resource_table import ResourceRow, resource_table

REQUEST = KernelRequest(Path("k.py"), "forward", {}, {}, num_warps=8, num_stages=2)
TARGET = target_of("sm_90")


def built(spills: int) -> Built:
    return Built(
        REQUEST, TARGET, Path("k.cubin"), Path("k.ptx"), 206, spills, spills, spills, 164864, 0, 8, (),
        {"wgmma": 16, "exp2": 66}, 1.0, False,
    )  # fmt: skip


def test_the_table() -> None:
    tall, wide = Config(128, 128, 8, 2, descriptors=True), Config(64, 256, 8, 2)
    text = resource_table(
        [
            ResourceRow(tall, built(0), Prediction(1.2345e-3, "compute")),
            ResourceRow(wide, built(164), Prediction(81e-6, "exponentials")),
            ResourceRow(wide, Failed(REQUEST, TARGET, "CompilationError: no\nmore")),
        ]
    )
    assert text.splitlines() == [
        "arch   kernel   backend  block        warps  stages  regs  spills     shared  blocks/SM  bound               "
        "instructions       verdict",
        "sm_90  forward  triton   128x128 tma      8       2   206     0 B  161.0 KiB    1 (12%)  1.23 ms compute     "
        "16 wgmma, 66 exp2  ok",
        "sm_90  forward  triton   64x256           8       2   206   164 B  161.0 KiB    1 (12%)  81 us exponentials  "
        "16 wgmma, 66 exp2  dropped: spills (164 B stored, 164 B loaded a thread)",
        "sm_90  forward  triton   64x256           8       2     -       -          -          -  -                   "
        "-                  dropped: CompilationError: no",
    ]


def test_what_is_only_lowered() -> None:
    request = KernelRequest(
        Path("k.py"), "rows", {}, {"dtype": "float16"}, num_warps=8, language="tilelang"
    )
    amd = target_of("gfx942")
    fits = Lowered(
        request, amd, Path("k.hip"), 32768, 4, "no compiler for HIP is asked", 5.0, False
    )
    large = dataclasses.replace(fits, shared=65 * 1024)
    config = Config(64, 32, 4, 1)
    rows = [ResourceRow(config, fits, chosen=True), ResourceRow(config, large)]
    assert rows[0].dtype == "float16"
    assert [row.problems for row in rows] == [(), ("shared memory (66560 B of 65536 B)",)]
    assert rows[0].record()["backend"] == "tilelang"
    assert "registers" not in rows[0].record()
    assert resource_table(rows).splitlines()[1:] == [
        "gfx942  rows    tilelang  64x32      4       2     -       -  32.0 KiB          -  -      -             "
        "chosen, not compiled: no compiler for HIP is asked",
        "gfx942  rows    tilelang  64x32      4       2     -       -  65.0 KiB          -  -      -             "
        "dropped: shared memory (66560 B of 65536 B), not compiled: no compiler for HIP is asked",
    ]


def test_what_is_chosen_and_the_row_as_data() -> None:
    tall = Config(128, 128, 8, 2, descriptors=True)
    row = ResourceRow(tall, built(0), Prediction(1e-3, "compute"), chosen=True)
    assert resource_table([row]).endswith("chosen")
    found = row.record()
    assert (found["arch"], found["kernel"], found["chosen"]) == ("sm_90", "forward", True)
    assert (found["registers"], found["blocks_per_sm"], found["problems"]) == (206, 1, [])
    assert found["instructions"] == {"wgmma": 16, "exp2": 66}
    assert (found["seconds"], found["bound"]) == (1e-3, "compute")
    failed = ResourceRow(tall, Failed(REQUEST, TARGET, "CompilationError: no\nmore")).record()
    assert failed["problems"] == ["CompilationError: no"]
    assert "registers" not in failed


def test_no_rows() -> None:
    assert resource_table([]).startswith("arch  kernel")


def test_options_of_tilelang_have_a_name() -> None:
    request = dataclasses.replace(REQUEST, kernel="groups", language="tilelang")
    apart = dataclasses.replace(built(0), request=request)
    config = Config(128, 128, 8, 2, descriptors=True, apart=True)
    row = ResourceRow(config, apart)
    assert "sm_90  forward  tilelang  128x128 tma apart " in resource_table([row])
    assert [row.record()[n] for n in ("kernel", "apart", "held")] == ["forward", True, False]
    held = dataclasses.replace(row, config=dataclasses.replace(config, apart=False, held=True))
    assert " 128x128 tma held " in resource_table([held])
