"""Turns a device into a plan: the sizes to measure there, so that a whole run stays short."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncompiler.benchmarks.suite import NAMES
from attncompiler.comparison import Size

SDPA = ("sdpa flash", "sdpa efficient", "sdpa cudnn", "sdpa math", "sdpa mask")
ON_CPU = ("sdpa flash", "sdpa math", "sdpa mask")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured where.

    ``sdpa`` are SDPA's peers that the device offers, ``flex_cases`` the cases that FlexAttention compiles.
    ``dense_limit`` is the number of score elements up to which dense PyTorch runs, ``sweep_flex`` the lengths of the
    sweep that FlexAttention compiles for. ``budget`` is the seconds after which a row has rounds enough.
    """

    device: str
    backend: str
    sdpa: tuple[str, ...]
    forward: tuple[Size, ...]
    wide: tuple[Size, ...]
    training: tuple[Size, ...]
    sweep: tuple[Size, ...]
    sparse: tuple[Size, ...]
    memory: tuple[Size, ...]
    build: tuple[str, ...]
    flex_cases: tuple[str, ...] = NAMES
    sweep_flex: tuple[int, ...] = ()
    dense_limit: int = 2**27
    budget: float = 4.0
    # The cases that are also measured at ``wide`` sizes.
    wide_cases: tuple[str, ...] = ("dense", "causal")
    memory_cases: tuple[str, ...] = ("causal", "alibi", "sigmoid")


def plan_for(device: str, *, quick: bool = False, flex: bool = True) -> Plan:
    """The plan of a device; a quick one has fewer and smaller sizes, ``flex=False`` none of FlexAttention."""
    plan = _cpu() if device == "cpu" else _gpu()
    if quick:
        plan = _quick(plan)
    if not flex:
        plan = replace(plan, flex_cases=(), sweep_flex=())
    return plan


def _cpu() -> Plan:
    dtypes = ("float32", "bfloat16")
    lengths = (512, 1024, 2048, 4096, 8192, 16384)
    return Plan(
        device="cpu",
        backend="auto",
        sdpa=ON_CPU,
        forward=tuple(Size(2048, 64, dtype, heads=4) for dtype in dtypes),
        wide=tuple(Size(2048, 128, dtype, heads=4) for dtype in dtypes),
        training=tuple(Size(1024, 64, dtype, heads=4) for dtype in dtypes),
        sweep=tuple(Size(n, 64, dtype, heads=2) for dtype in dtypes for n in lengths),
        sparse=tuple(Size(16384, 64, dtype, heads=2) for dtype in dtypes),
        memory=(Size(2048, 64, heads=2), Size(4096, 64, heads=2)),
        build=("causal", "soft cap"),
        sweep_flex=(2048, 8192),
        dense_limit=2**25,
    )


def _gpu() -> Plan:
    lengths = (512, 1024, 2048, 4096, 8192, 16384, 32768)

    def sizes(head_dim: int, *lengths: int, tokens: int = 32768) -> tuple[Size, ...]:
        return tuple(Size(n, head_dim, "bfloat16", max(tokens // n, 1), heads=16) for n in lengths)

    return Plan(
        device="cuda",
        backend="triton",
        sdpa=SDPA,
        forward=sizes(64, 8192),
        wide=sizes(128, 8192, 16384),
        training=sizes(64, 8192),
        sweep=sizes(128, *lengths),
        sparse=(*sizes(64, 16384), *sizes(128, 16384)),
        memory=(*sizes(64, 4096, tokens=4096), *sizes(64, 8192, tokens=8192)),
        build=("causal", "soft cap"),
        sweep_flex=lengths,
        dense_limit=2**32,
        budget=20.0,
        wide_cases=("dense", "causal", "sigmoid"),
    )


def _quick(plan: Plan) -> Plan:
    """A quarter of the length or less, one sweep that ends early, one compilation or two."""

    def shorter(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(replace(size, length=size.length // 4) for size in sizes)

    return replace(
        plan,
        forward=shorter(plan.forward),
        wide=(),
        training=shorter(plan.training[:1]),
        sweep=shorter(plan.sweep[:5]),
        sparse=shorter(plan.sparse[:1]),
        memory=plan.memory[:1],
        build=plan.build[:1],
        memory_cases=("causal",),
        flex_cases=("causal", "soft cap"),
        sweep_flex=(),
        budget=1.0,
    )
