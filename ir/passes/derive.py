"""Turns a Program into a StreamingPlan: which statistics stream together, in how many passes, rescaled how.

Takes a canonical program; leaves its plan, without statistics that nothing reads. Example: softmax,
``m = max(s); l = sum(exp(s - m)); w = exp(s - m) / l``, becomes one pass with m in sweep 0, l and the accumulator
sum(exp(s - m) v) in sweep 1, both rescaled by exp(m_old - m), and the coefficient 1 / l.

No normalizer is known by name: see ``split.py`` (what leaves the sums), ``rescale.py`` (what streams) and
``schedule.py`` (which pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attncompiler.ir.expr import Const, Expr
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.factor_sums import factor_sums
from attncompiler.ir.passes.reasons import explain
from attncompiler.ir.passes.rescale import Rescaler
from attncompiler.ir.passes.schedule import Placed, Scheduler
from attncompiler.ir.passes.split import split
from attncompiler.ir.passes.terms import Term, body_product
from attncompiler.ir.program import Program
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan

_MOST_ACCUMULATORS = 4
_NOTHING = Term((), (), Const(0.0))


def derive(program: Program) -> StreamingPlan:
    """The streaming plan with the fewest passes, and among those the fewest accumulators."""
    rescaler = Rescaler()
    program = factor_sums(program, rescaler)
    scheduler = Scheduler(rescaler, program.reductions)
    readers = [e for _, e in program.kept]
    readers += [r.body for r in program.output_reductions] + [program.output]
    terms = _best_terms(program.weight, scheduler, readers)
    used = scheduler.used([*readers, *_formulas(terms)])
    bodies, stats = scheduler.place([t.body for t in terms], used)
    row_stats = _row_stats(program, stats)
    accumulators = _accumulators(terms, bodies, row_stats)
    kept = tuple(r for r in program.reductions if r.name in used)
    if len(kept) < len(program.reductions):
        program = replace(program, reductions=kept)
    plan = StreamingPlan(
        program=program,
        stats=row_stats,
        accumulators=accumulators,
        passes=1 + accumulators[0].pass_,
    )
    return replace(plan, reasons=explain(plan, scheduler))


def _formulas(terms: Sequence[Term]) -> list[Expr]:
    return [e for t in terms for e in (t.coefficient, t.body)]


@dataclass(frozen=True, slots=True)
class _Candidate:
    terms: tuple[Term, ...]
    passes: int

    @property
    def cost(self) -> tuple[int, int]:
        return self.passes, len(self.terms)


def _best_terms(weight: Expr, scheduler: Scheduler, readers: list[Expr]) -> tuple[Term, ...]:
    """The weight as terms: whole, divided into all its parts, or with parts that stream alike joined."""

    def candidate(terms: Sequence[Term]) -> _Candidate:
        used = scheduler.used([*readers, *_formulas(terms)])
        last = [scheduler.earliest_of(t.body) for t in terms] + [
            scheduler.earliest[r] for r in used
        ]
        return _Candidate(tuple(terms), 1 + max(last, default=0))

    positive = scheduler.rescaler.positive
    best = candidate(split(weight, distribute=False, positive=positive) or [_NOTHING])
    if best.cost == (1, 1):
        return best.terms
    parts = split(weight, distribute=True, positive=positive) or [_NOTHING]
    divided = candidate(_joined(parts, candidate(parts).passes - 1, scheduler))
    if len(divided.terms) <= _MOST_ACCUMULATORS and divided.cost < best.cost:
        best = divided
    return best.terms


def _joined(terms: list[Term], last: int, scheduler: Scheduler) -> list[Term]:
    """Terms whose sum can be accumulated as one body by the last pass, joined."""
    joined: list[Term] = []
    for term in terms:
        for i, other in enumerate(joined):
            both = _join(other, term)
            if both is not None and scheduler.earliest_of(both.body) <= last:
                joined[i] = both
                break
        else:
            joined.append(term)
    return joined


def _join(a: Term, b: Term) -> Term | None:
    """c x + d y as one term: what c and d share stays the coefficient, the rest enters the body."""
    if a.same_factors(b):
        return Term(a.above, a.below, make("add", a.body, b.body), a.selected and b.selected)
    if a.selected or b.selected:
        return None  # the rest may be 1/0 for a class of keys that the row does not have
    bodies = []
    for t, other in ((a, b), (b, a)):
        rest = Term(*t.beyond(other), t.body)
        bodies.append(body_product(t.body, rest.coefficient))
    above, below = a.shared(b)
    return Term(above, below, make("add", *bodies))


def _row_stats(program: Program, placed: dict[str, Placed]) -> tuple[RowStat, ...]:
    sweeps: dict[str, int] = {}
    stats = []
    for r in program.reductions:
        if r.name in placed:
            at = placed[r.name]
            sweeps[r.name] = max((sweeps[d] + 1 for d in at.running), default=0)
            stats.append(
                RowStat(r.name, r.op, r.body, at.pass_, sweeps[r.name], at.running, at.factor)
            )
    return tuple(sorted(stats, key=lambda s: (s.pass_, s.sweep)))


def _accumulators(
    terms: Sequence[Term], placed: Sequence[Placed], stats: Sequence[RowStat]
) -> tuple[Accumulator, ...]:
    """All in the last sweep of their pass, where every exponential of a sum can be shared."""
    result = []
    for number, (term, at) in enumerate(zip(terms, placed, strict=True)):
        sweep = max(
            (s.sweep + (s.name in at.running) for s in stats if s.pass_ == at.pass_), default=0
        )
        result.append(
            Accumulator(
                f"acc{number}", term.body, term.coefficient, at.pass_, sweep, at.running, at.factor
            )
        )
    last = max(a.sweep for a in result)
    return tuple(replace(a, sweep=last) for a in result)
