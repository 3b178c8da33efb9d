"""Says how the C++ kernels cut their work: for every kind of processor a schedule, each a point of a search space.

A source prints the schedules of all kinds; its compiler takes the one of the processor it builds for. A tuned schedule
stands in the place of the kind it was measured on.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

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


def space(kind: Kind, machine: Machine, spec: Specialization) -> list[Schedule]:
    """Every schedule worth a measurement, the default first."""
    usual = default(kind, machine, spec)
    matrix = machine == "matrix"
    # Products of a matrix unit hold their sums in its own registers: the shape of those of vectors stays.
    registers = [(usual.vectors, usual.keys)] if matrix else _registers(machine)
    found = [usual]
    for (vectors, keys), tile, blocks, slots, tasks in product(
        registers,
        (32, 64, 96, 128, 192) if matrix else (48, 72, 96, 144, 192),
        (4, 8, 16, 32) if matrix or kind == "forward" else (2, 4, 8),
        (1, 4, 16) if matrix and kind == "forward" else (1,),
        (2, 4, 8),
    ):
        sizes = (usual.rows,) if matrix else _rows(kind, machine, vectors)
        found += [
            Schedule(machine, tile, rows, vectors, keys, blocks, slots, tasks) for rows in sizes
        ]
    return list(dict.fromkeys(found))


def _registers(machine: Machine) -> list[tuple[int, int]]:
    """Vectors by keys: as many sums as there are registers for."""
    most = _SUMS[machine]
    return [(vectors, most // vectors) for vectors in (2, 3, 4) if most // vectors >= 3]


def _rows(kind: Kind, machine: Machine, vectors: int) -> list[int]:
    """Vectors of rows in a block: a backward takes whole cache lines, or nearly so."""
    line = 64 // int(machine)
    sizes = (3 * line, 4 * line) if kind == "backward" else (vectors, 2 * vectors)
    return [n for n in sizes if n % vectors == 0]


def _forward(machine: Machine, spec: Specialization) -> Schedule:
    if machine == "64":
        return Schedule(machine, 96, 4, 4, 6)
    if machine != "matrix":
        # Keys and values of a head that outgrow the second-level cache are read once for all blocks of a task; what is
        # read where it lies comes slower than a copy. A thread's queries and sums of outputs take 1 MiB at most.
        most = 32 if spec.dtype in ("float32", "float64") else 16
        rows = 3 * int(machine) * (spec.head_dim + spec.value_dim)
        return Schedule(machine, 96, 3, 3, 4, _fitting(rows, 1 << 20, most))
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
