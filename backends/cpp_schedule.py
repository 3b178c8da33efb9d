"""Says how the C++ kernels cut their work: for every kind of processor a schedule, each a point of a search space.

A source prints the schedules of all kinds; its compiler takes the one of the processor it builds for. A tuned schedule
stands in the place of the kind it was measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attncompiler.backends.cpp_context import PIECES, Specialization
from attncompiler.backends.cpp_cut import Kind, Machine, Schedule

CONDITIONS: dict[Machine, str] = {
    "matrix": "MATRIX_UNIT",
    "64": "VECTOR_BYTES == 64",
    "32": "VECTOR_BYTES == 32",
    "16": "VECTOR_BYTES == 16",
}
# Sums that fit in the registers of vectors, beside one operand and a row of the other.
_SUMS: dict[Machine, int] = {"matrix": 24, "64": 24, "32": 12, "16": 12}


def default(kind: Kind, machine: Machine, spec: Specialization) -> Schedule:
    """What is taken without tuning."""
    return _forward(machine, spec) if kind == "forward" else _backward(machine, spec)


def schedules(
    kind: Kind, spec: Specialization, tuned: Schedule | None
) -> list[tuple[str, Schedule]]:
    """The schedules that a source prints, with their conditions; without a matrix unit for types it does not take."""
    machines: list[Machine] = ["matrix", "64", "32", "16"]
    found = []
    for machine in machines if PIECES[spec.dtype] else machines[1:]:
        chosen = tuned if tuned and tuned.machine == machine else default(kind, machine, spec)
        found.append((CONDITIONS[machine], chosen))
    return found


def space(kind: Kind, machine: Machine, spec: Specialization) -> Iterator[Schedule]:
    """Every schedule worth a measurement, the default first."""
    usual = default(kind, machine, spec)
    yield usual
    matrix = machine == "matrix"
    tiles = (32, 64, 96, 128, 192) if matrix else (24, 48, 72, 96, 144, 192, 288)
    # Products of a matrix unit hold their sums in tiles: vectors are what is left.
    registers = [(usual.vectors, usual.keys)] if matrix else _registers(machine)
    for tile in tiles:
        for vectors, keys in registers:
            for rows in (usual.rows,) if matrix else _rows(kind, machine, vectors):
                for blocks in (4, 8, 16, 32) if matrix else (1, 2, 4, 8):
                    for slots in (1, 4, 16) if matrix and kind == "forward" else (1,):
                        for tasks in (2, 4, 8):
                            made = Schedule(
                                machine, tile, rows, vectors, keys, blocks, slots, tasks
                            )
                            if made != usual:
                                yield made


def _registers(machine: Machine) -> list[tuple[int, int]]:
    """Vectors by keys: as many sums as there are registers for, or a few less."""
    most = _SUMS[machine]
    shapes = [
        (1, most // 2),
        (2, most // 2),
        (4, most // 4),
        (2, most // 2 - 2),
        (4, most // 4 - 1),
    ]
    return [(v, k) for v, k in shapes if k >= 2 and k <= 16]


def _rows(kind: Kind, machine: Machine, vectors: int) -> list[int]:
    lines = {"64": 1, "32": 2, "16": 4}[machine]  # vectors of a cache line
    sizes = (2 * lines, 4 * lines, 8 * lines) if kind == "backward" else (vectors, 2 * vectors)
    return [n for n in sizes if n % vectors == 0]


def _forward(machine: Machine, spec: Specialization) -> Schedule:
    if machine != "matrix":
        wide = machine == "64"
        return Schedule(machine, 96, 4 if wide else 2, 4 if wide else 2, 6)
    # As many blocks and tiles as leave room in the second-level cache.
    pieces = PIECES[spec.dtype]
    row = (4 + 2 * pieces if pieces > 1 else 2) * spec.head_dim + 4 * spec.value_dim
    made = Schedule(machine, 64, 2, 2, 12)
    return replace(
        made,
        blocks=_fitting(2 * 16 * row, 1 << 20, 32),
        slots=_fitting(made.tile * 2 * pieces * (spec.head_dim + spec.value_dim), 1 << 19, 16),
    )


def _backward(machine: Machine, spec: Specialization) -> Schedule:
    # A short tile wastes less on the diagonal of a causal mask and keeps two products of it in the first-level caches;
    # pairs of bfloat16 are half as long to read. A matrix unit wants multiples of 32.
    pairs = spec.dtype == "bfloat16"
    tile = 96 if pairs else 64 if machine == "matrix" else 48
    dims = spec.head_dim + spec.value_dim
    # What the blocks of a task hold should stay in the second-level cache.
    blocks = 4 if dims <= 256 else 2 if dims <= 512 else 1
    rows = {"matrix": 4, "64": 4, "32": 8, "16": 16}[machine]
    return Schedule(machine, tile, rows, 4 if machine in ("matrix", "64") else 2, 6, blocks)


def _fitting(size: int, room: int, most: int) -> int:
    return most if size * most <= room else 4 if size * 4 >= room else room // size
