"""What a search found, as its caller sees it."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.cpp_context import Specialization
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.runtime.situation import Bucket
from attncompiler.runtime.triton_launch import Tiling


@dataclass(frozen=True, slots=True)
class Tuned:
    """The winner for one kernel and class of calls; ``ratio`` is its time over the default's.

    ``kind`` is "forward" or "backward", of GPU kernels "forward", "rows" or "columns". Where backends were compared
    ``kind`` is "forward backend" or "backward backend" and the winner the name of one. ``seconds`` are those of a call,
    ``measured`` counts the candidates that were timed; ``known`` says that all of this is from an earlier search.
    """

    kind: str
    bucket: Bucket
    spec: Specialization
    winner: Schedule | Tiling | str
    ratio: float
    seconds: float
    measured: int
    known: bool
