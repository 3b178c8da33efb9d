"""How a C++ kernel cuts its work, as plain data: what printers, tuners and the records of winners share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "backward"]
# Tile registers, or vectors of so many bytes.
Machine = Literal["matrix", "64", "32", "16"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a kernel is cut on one kind of processor.

    ``tile`` keys are visited at a time by a block of ``rows`` vectors of rows, ``blocks`` of which share a tile that
    was prepared once; ``slots`` tiles are prepared together for a matrix unit (1 elsewhere). Products hold sums of
    ``vectors`` vectors by ``keys`` keys or features in registers. Where there are blocks enough, each thread gets
    ``tasks`` parts of the work.
    """

    machine: Machine
    tile: int
    rows: int
    vectors: int
    keys: int
    blocks: int = 4
    slots: int = 1
    tasks: int = 4

    def __str__(self) -> str:
        text = f"tile {self.tile}, rows {self.rows}, registers {self.vectors}x{self.keys}"
        slots = f", slots {self.slots}" if self.machine == "matrix" else ""
        return f"{text}, blocks {self.blocks}{slots}, tasks {self.tasks}"

    @property
    def room(self) -> int:
        """Vectors of rows that a tile of scores has room for."""
        return max(self.rows, 4) if self.machine == "matrix" else self.rows
