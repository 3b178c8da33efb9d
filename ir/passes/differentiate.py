"""Turns a StreamingPlan into its Gradient: the backward, derived from the formulas the user wrote.

With go = gradient of the output row o and dw_k = <go, v_k>, reverse mode over each pair gives the gradients of the
score and of every tensor read, once the gradients of the row statistics (their *adjoints*) are known::

    adj(r) = what the epilogue and the kept statistics pass on
           + sum_k dw_k * d weight / d r  +  sum over later statistics t of adj(t) * sum_k d body_t / d r

Each sum is split into row coefficients times sums over keys of a body. Where the body is that of the weight
the sum is <go, o>, and where it is that of a statistic it is this statistic, so no walk over the keys is needed
(softmax's delta). What remains is summed in one more walk, whatever the number of statistics, since all these sums
read final statistics only.

A maximum is often subtracted only for safety. Its adjoint is then 0 as an identity in all values, which is tested on
random numbers with every condition drawn freely; if it is not, the gradient goes to the keys that attain it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attncompiler.ir.derivatives import ONE, ZERO, adjoints, chosen, over, times
from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Load,
    Score,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    is_row_only,
    stats_in,
    walk,
)
from attncompiler.ir.gradient import Gradient, Level, Stage, TensorGradient
from attncompiler.ir.passes.cancel import cancel
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.epilogue_gradient import EpilogueGradient, loads_of
from attncompiler.ir.passes.key_sums import Key, KeySums, key_of
from attncompiler.ir.passes.row_values import RowValues, seed, total
from attncompiler.ir.passes.terms import Term, addends, product, quotient
from attncompiler.ir.program import Program, Reduction
from attncompiler.ir.signs import nonnegative_stats
from attncompiler.ir.streaming import StreamingPlan


def differentiate(plan: StreamingPlan) -> Gradient:
    """The gradient of a plan; see ``ir/gradient.py`` for what it contains."""
    return _Differentiation(plan.program).gradient()


class _Differentiation:
    """``later`` holds the adjoints found so far, last statistic first; ``constants`` what passes no gradient on."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.positive = nonnegative_stats(program.reductions)
        self.rows = RowValues(program)
        self.epilogue = EpilogueGradient(program, self.rows)
        self.sums = KeySums(program, self.rows, self.positive, self.epilogue.delta)
        self.constants: set[Expr] = set()
        self.later: list[tuple[Reduction, Expr]] = []
        self.last: list[Reduction] = []
        self.tensors: list[TensorGradient] = []
        self.reasons: list[str] = []

    def gradient(self) -> Gradient:
        """Adjoints of the row's statistics first, then one pair, then what is read of all this."""
        self._row_adjoints()
        self.tensors += self.epilogue.tensors(self.constants)
        dot_scale, dot_grad = self._pairs()
        term = self.sums.term(self.program.weight)
        return self._assembled(times(term.body, term.coefficient), dot_scale, dot_grad)

    # -- the row's statistics ------------------------------------------------------------------------------------

    def _row_adjoints(self) -> None:
        """Decide the adjoint of every row statistic, last to first."""
        for r in reversed(self.program.reductions):
            for shift in self._shifts(r.name):
                parts = self._parts(shift)
                if parts and self._cancel(parts):
                    self.constants.add(shift)
            if not self._carries(r.body):
                continue
            parts = self._parts(Stat(r.name))
            if not parts or (r.op != "sum" and self._cancel(parts)):
                if r.op != "sum":
                    self.reasons.append(
                        f"{r.name} passes on no gradient: the result does not change with it"
                    )
                continue
            adjoint = self.rows.define(f"d_{r.name}", total(parts))
            if r.op != "sum":
                ties = self.sums.walked("ties", chosen(self.sums.attains(r), ONE))
                adjoint = self.rows.define(f"share_{r.name}", over(adjoint, ties))
                self.reasons.append(
                    f"{r.name} passes its gradient to the keys that attain it, in equal parts"
                )
            self.later.append((r, adjoint))

    def _parts(self, leaf: Expr) -> list[Expr]:
        """The gradient of a value of the row, in parts."""
        parts = self.epilogue.through(leaf, self.constants)
        known = self._known_parts(leaf)
        for number, (slope, weighted, adjoint) in enumerate(self._slopes(leaf)):
            found = known[number]
            parts.append(
                times(adjoint, self.sums.summed(slope, weighted) if found is None else found)
            )
        return [p for p in parts if p is not ZERO]

    def _known_parts(self, leaf: Expr) -> list[Expr | None]:
        """For each slope of a leaf its sum over the keys, where known sums give it."""
        return [self.sums.known(slope, weighted) for slope, weighted, _ in self._slopes(leaf)]

    def _cancel(self, parts: list[Expr]) -> bool:
        """Whether the parts sum to 0 whatever the statistics are."""
        return cancel([self.rows.written_out(p) for p in parts], self.positive)

    def _shifts(self, last: str) -> list[Expr]:
        """Maxima and minima of the row that combine the statistic ``last`` with other values, as max(m, sink) does.

        They are often subtracted only for safety, like a maximum alone.
        """
        program = self.program
        order = [r.name for r in program.reductions]
        roots = [program.weight, *(r.body for r in program.reductions)]
        return [
            n
            for n in walk(*roots)
            if isinstance(n, Call)
            and n.op in ("max", "min")
            and is_row_only(n)
            and max((order.index(s) for s in stats_in(n)), default=-1) == order.index(last)
        ]

    def _carries(self, body: Expr) -> bool:
        """Whether a gradient can flow through a reduction's body."""
        return any(
            isinstance(n, Score | Stat) or (isinstance(n, Load) and n.kind == "float")
            for n in walk(body)
        )

    def _slopes(self, leaf: Expr) -> list[tuple[Expr, bool, Expr]]:
        """How the weight and the later statistics change with a leaf, for one key.

        Each (slope, whether it is to be multiplied by dw, the adjoint of what changes).
        """
        weight = self.program.weight
        slope = adjoints({weight: ONE}, self.constants).get(leaf)
        found: list[tuple[Expr, bool, Expr]] = [] if slope is None else [(slope, True, ONE)]
        for r, adjoint in self.later:
            slope = adjoints({r.body: ONE}, self.constants).get(leaf)
            if slope is not None:
                inner = slope if r.op == "sum" else chosen(self.sums.attains(r), slope)
                found.append((inner, False, adjoint))
        return found

    # -- one pair ------------------------------------------------------------------------------------------------

    def _pairs(self) -> tuple[float, Expr]:
        """The gradient of the dot product, a number taken out of it; tensor gradients on the way."""
        program = self.program
        seeds: dict[Expr, Expr] = {}
        seed(seeds, program.weight, WeightGrad())
        for r, adjoint in self.later:
            seed(seeds, r.body, adjoint if r.op == "sum" else chosen(self.sums.attains(r), adjoint))
        loads = dict(loads_of(adjoints(seeds, self.constants)))
        number, score_gradient = self._score_gradient()
        inner = adjoints({program.score: score_gradient}) if score_gradient is not ZERO else {}
        for load in dict.fromkeys([*loads, *(load for load, _ in loads_of(inner))]):
            through_score = inner.get(load)
            if through_score is not None:
                through_score = _scaled(number, through_score)
            self._tensor(load, loads.get(load), through_score)
        return number, inner.get(Dot(), ZERO)

    def _score_gradient(self) -> tuple[float, Expr]:
        """The gradient of the score, a number taken out of it.

        Terms of the same body are joined. ``body * c * (dw + d)`` rather than ``body * (dw * c + c * d)``: where dw
        and -d are equal, as with one key, the result is exactly 0, and body * c is often the weight.
        """
        delta = stats_in(self.sums.delta()) if self.sums.used_delta else frozenset()
        bodies: dict[Key, Expr] = {}
        weighted: dict[Key, list[Term]] = {}
        plain: dict[Key, list[tuple[Term, Expr]]] = {}
        for slope, by_weight, adjoint in self._slopes(Score()):
            term = self.sums.term(slope)
            key = key_of(term.body)
            bodies.setdefault(key, term.body)
            if by_weight:
                weighted.setdefault(key, []).append(term)
            else:
                plain.setdefault(key, []).append((term, adjoint))
        parts = [
            _joined(body, weighted.get(key, []), plain.get(key, []), self.rows, delta)
            for key, body in bodies.items()
        ]
        if len(parts) == 1:
            return parts[0]
        return 1.0, total([_scaled(number, part) for number, part in parts])

    def _tensor(self, load: Load, outer: Expr | None, inner: Expr | None) -> None:
        """``outer``: the gradient through weight and statistics, ``inner``: through the score."""
        axes = frozenset[str]().union(*(axes_of(i) for i in load.indices))
        if "k" in axes:
            level: Level = "pair" if "q" in axes or _reads_scores(load) else "key"
            self._scatter(load, total([g for g in (outer, inner) if g is not None]), level)
            return
        if outer is not None:
            known = self._known_parts(load)
            parts = [
                times(adjoint, value)
                for (_, _, adjoint), value in zip(self._slopes(load), known, strict=True)
                if value is not None
            ]
            if len(parts) == len(known):
                self._scatter(load, total(parts), "row")
                outer = None
        rest = [g for g in (outer, inner) if g is not None]
        if rest:
            term = self.sums.term(total(rest))
            name = self.rows.fresh(f"d_{load.tensor}")
            self.last.append(Reduction(name, "sum", term.body))
            self._scatter(load, times(term.coefficient, Stat(name)), "row")

    def _scatter(self, load: Load, value: Expr, level: Level) -> None:
        self.tensors.append(TensorGradient(load.tensor, load.indices, value, level))

    # -- the result ------------------------------------------------------------------------------------------------

    def _assembled(self, weight: Expr, dot_scale: float, dot_grad: Expr) -> Gradient:
        stages = []
        if self.sums.extrema:
            stages.append(Stage((), tuple(self.sums.extrema.values())))
        if self.sums.sums:
            stages.append(Stage((), tuple(self.sums.sums.values())))
        tensors = tuple(t for t in self.tensors if t.value is not ZERO)
        value_grad = self.epilogue.value_grad
        roots = [value_grad, weight, dot_grad, *(t.value for t in tensors)]
        roots += [r.body for s in stages for r in s.reductions] + [r.body for r in self.last]
        stages.append(Stage(self.rows.read_by(roots), tuple(self.last)))
        features = self.epilogue.read_by(roots)
        read = stats_in(*roots)
        return Gradient(
            program=self.program,
            saved=tuple(r.name for r in self.program.reductions if r.name in read),
            kept=self.epilogue.kept,
            reads_value=any(isinstance(n, Value) for n in walk(*roots)),
            features=features,
            value_grad=value_grad,
            stages=tuple(stages),
            weight=weight,
            dot_grad=dot_grad,
            tensors=tensors,
            dot_scale=dot_scale,
            reasons=(*self._walks(), *self.reasons),
        )

    def _walks(self) -> list[str]:
        """Why there are as many walks over the keys as there are."""
        reasons = []
        if self.sums.used_delta:
            reasons.append(
                "sum_k dw_k weight_k is <go, o>: no walk over the keys for what is proportional to it"
            )
        count = len(self.sums.sums)
        if count:
            sums = "a sum" if count == 1 else f"{count} sums"
            reasons.append(f"one more walk over the keys for {sums} that no known sum gives")
        return reasons


def _joined(
    body: Expr,
    weighted: Sequence[Term],
    plain: Sequence[tuple[Term, Expr]],
    rows: RowValues,
    delta: frozenset[str],
) -> tuple[float, Expr]:
    """A number and an expression whose product is body * (sum of c * dw + sum of d * adjoint)."""
    guarded = any(t.selected for t in (*weighted, *(t for t, _ in plain)))
    if len(weighted) == 1 and not guarded:
        number, above = _number_of(weighted[0])
        if not above and number:
            below = product(weighted[0].below)
            rest = [
                times(
                    times(
                        _scaled(n / number, quotient(product(factors), product(t.below))), adjoint
                    ),
                    below,
                )
                for t, adjoint in plain
                for n, factors in [_number_of(t)]
            ]
            inner = _dw_first(rows.simplified(total(rest)), delta)
            return number, times(times(body, quotient(ONE, below)), inner)
    parts = [times(t.coefficient, WeightGrad()) for t in weighted]
    parts += [times(t.coefficient, adjoint) for t, adjoint in plain]
    return 1.0, times(body, total(parts))


def _dw_first(rest: Expr, delta: frozenset[str]) -> Expr:
    """dw plus values of the row, those that hold <go, o> first: with one key they cancel dw to the last bit."""
    signed = [
        make("neg", term) if sign < 0 else term for sign, term in addends(rest) if term is not ZERO
    ]
    opposite = [t for t in signed if stats_in(t) & delta]
    others = [t for t in signed if not stats_in(t) & delta]
    return total([WeightGrad(), total(opposite), total(others)])


def _number_of(term: Term) -> tuple[float, tuple[Expr, ...]]:
    """The constant factor of a term's coefficient, and its other factors above the line."""
    numbers = [float(f.value) for f in term.above if isinstance(f, Const)]
    return math.prod(numbers), tuple(f for f in term.above if not isinstance(f, Const))


def _scaled(number: float, expr: Expr) -> Expr:
    return expr if number == 1.0 else times(expr, Const(number))


def _reads_scores(load: Load) -> bool:
    return any(isinstance(n, Dot | Score) for n in walk(*load.indices))
