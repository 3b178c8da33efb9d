"""One line a configuration: what it takes and what becomes of it."""

from __future__ import annotations

from pathlib import Path

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.triton_configs import Config
from attncompiler.runtime.offline import Built, Failed, KernelRequest
from attncompiler.tuning.cost import Prediction
from attncompiler.tuning.resource_table import ResourceRow, resource_table

REQUEST = KernelRequest(Path("k.py"), "forward", {}, {}, num_warps=8, num_stages=2)
TARGET = target_of("sm_90")


def built(spills: int) -> Built:
    return Built(
        REQUEST, TARGET, Path("k.cubin"), Path("k.ptx"), 206, spills, spills, spills, 164864, 0, 8, (), {}, 1.0, False,
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
        "arch   kernel   block        warps  stages  regs  spills     shared  blocks/SM  bound               verdict",
        "sm_90  forward  128x128 tma      8       2   206     0 B  161.0 KiB    1 (12%)  1.23 ms compute     ok",
        "sm_90  forward  64x256           8       2   206   164 B  161.0 KiB    1 (12%)  81 us exponentials  dropped: "
        "spills (164 B stored, 164 B loaded a thread)",
        "sm_90  forward  64x256           8       2     -       -          -          -  -                   dropped: "
        "CompilationError: no",
    ]


def test_what_is_chosen_and_the_row_as_data() -> None:
    tall = Config(128, 128, 8, 2, descriptors=True)
    row = ResourceRow(tall, built(0), Prediction(1e-3, "compute"), chosen=True)
    assert resource_table([row]).endswith("chosen")
    found = row.record()
    assert (found["arch"], found["kernel"], found["chosen"]) == ("sm_90", "forward", True)
    assert (found["registers"], found["blocks_per_sm"], found["problems"]) == (206, 1, [])
    assert (found["seconds"], found["bound"]) == (1e-3, "compute")
    failed = ResourceRow(tall, Failed(REQUEST, TARGET, "CompilationError: no\nmore")).record()
    assert failed["problems"] == ["CompilationError: no"]
    assert "registers" not in failed


def test_no_rows() -> None:
    assert resource_table([]).startswith("arch  kernel")
