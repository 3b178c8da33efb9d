"""Assigns passes to sums that read each other: the fewest passes, then everything as late as possible.

Late is cheap: a statistic that only the coefficients read then shares its exponentials with the accumulators of
the last pass, and an early pass that computes only, say, a count needs no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attncompiler.ir.expr import Expr, stats_in
from attncompiler.ir.passes.rescale import Refused, Rescaler, Streams, Verdict
from attncompiler.ir.program import Reduction
from attncompiler.ir.signs import nonnegative


@dataclass(frozen=True, slots=True)
class Placed:
    """A body in a pass, with the statistics that move there while it is summed and its rescale factor."""

    pass_: int
    running: tuple[str, ...]
    factor: Expr | None


class Scheduler:
    """Places statistics and accumulator bodies; ``rescaler`` decides what may stream."""

    def __init__(self, rescaler: Rescaler, reductions: Sequence[Reduction]) -> None:
        self.rescaler, self.reductions = rescaler, tuple(reductions)
        self.earliest: dict[str, int] = {}
        for r in self.reductions:
            self.earliest[r.name] = self.earliest_of(r.body, r.op)

    def verdict(self, body: Expr, op: str, running: frozenset[str]) -> Verdict:
        """Whether a reduction streams; maxima and minima need a factor that keeps their order."""
        verdict = self.rescaler.verdict(body, running)
        match verdict:
            case Streams(factor) if op != "sum" and factor is not None and not nonnegative(factor):
                return Refused("has a rescale factor whose sign is not known")
        return verdict

    def earliest_of(self, body: Expr, op: str = "sum") -> int:
        """The first pass in which a body can be reduced."""
        first = max((self.earliest[r] for r in stats_in(body)), default=0)
        running = frozenset(r for r in stats_in(body) if self.earliest[r] == first)
        return first if isinstance(self.verdict(body, op, running), Streams) else first + 1

    def used(self, roots: Sequence[Expr]) -> frozenset[str]:
        """The statistics that formulas read, and those that these read in turn.

        Reductions over the value features, which the epilogue reads too, are none of them.
        """
        names = stats_in(*roots) & {r.name for r in self.reductions}
        for r in reversed(self.reductions):
            if r.name in names:
                names |= stats_in(r.body)
        return names

    def place(
        self, bodies: Sequence[Expr], used: frozenset[str]
    ) -> tuple[list[Placed], dict[str, Placed]]:
        """Accumulators in the last pass, statistics as late as their readers allow."""
        last = max([0, *(self.earliest_of(b) for b in bodies), *(self.earliest[r] for r in used)])
        latest = dict.fromkeys(used, last)
        for body in bodies:
            self._limit(body, "sum", last, latest)
        for r in reversed(self.reductions):
            if r.name in used:
                self._limit(r.body, r.op, latest[r.name], latest)
        accumulators = [self._placed(b, "sum", last, latest) for b in bodies]
        stats = {
            r.name: self._placed(r.body, r.op, latest[r.name], latest)
            for r in self.reductions
            if r.name in used
        }
        return accumulators, stats

    def _limit(self, body: Expr, op: str, pass_: int, latest: dict[str, int]) -> None:
        """Lower the latest pass of what a body in ``pass_`` reads."""
        together = self._together(body, op)
        for name in stats_in(body):
            latest[name] = min(latest[name], pass_ if name in together else pass_ - 1)

    def _together(self, body: Expr, op: str) -> frozenset[str]:
        """Statistics that may all move while a body is reduced: those of its earliest pass, and what fits in."""
        pass_ = self.earliest_of(body, op)
        chosen = frozenset(r for r in stats_in(body) if self.earliest[r] == pass_)
        for r in self.reductions:
            if r.name in stats_in(body) - chosen:
                wider = chosen | {r.name}
                chosen = wider if isinstance(self.verdict(body, op, wider), Streams) else chosen
        return chosen

    def _placed(self, body: Expr, op: str, pass_: int, latest: dict[str, int]) -> Placed:
        running = tuple(
            r.name for r in self.reductions if r.name in stats_in(body) and latest[r.name] == pass_
        )
        verdict = self.verdict(body, op, frozenset(running))
        if isinstance(verdict, Refused):
            raise AssertionError(f"scheduled a body that cannot stream: it {verdict.why}")
        return Placed(pass_, running, verdict.factor)
