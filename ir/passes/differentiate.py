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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attncompiler.ir.algebra import expanded
from attncompiler.ir.derivatives import ONE, ZERO, adjoints, chosen, over, times
from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Load,
    OutGrad,
    Score,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    is_row_only,
    stats_in,
    substitute,
    walk,
)
from attncompiler.ir.gradient import Gradient, Level, Stage, TensorGradient
from attncompiler.ir.passes.cancel import cancel
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.features import parts_along_d
from attncompiler.ir.passes.split import split
from attncompiler.ir.passes.terms import Term, product, quotient
from attncompiler.ir.program import Program, Reduction
from attncompiler.ir.signs import nonnegative_stats
from attncompiler.ir.streaming import StreamingPlan


def differentiate(plan: StreamingPlan) -> Gradient:
    """The gradient of a plan; see ``ir/gradient.py`` for what it contains."""
    return _Differentiation(plan.program).gradient()


@dataclass(frozen=True, slots=True)
class _Known:
    """A known sum over the keys of a term; without a value it is <go, o>."""

    term: Term
    value: Expr | None


class _Differentiation:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.positive = nonnegative_stats(program.reductions)
        self.taken = {r.name for r in (*program.reductions, *program.output_reductions)}
        self.taken |= {name for name, _ in program.kept}
        self.features: list[Reduction] = []
        self.extrema: dict[str, Reduction] = {}
        self.sums: dict[_Key, Reduction] = {}
        self.rows: list[tuple[str, Expr]] = []
        self.last: list[Reduction] = []
        self.tensors: list[TensorGradient] = []
        self.reasons: list[str] = []
        self.said: set[str] = set()
        self.known: dict[_Key, _Known] = {}
        self.known_weighted: dict[_Key, _Known] = {}
        self.delta_body: Expr = ZERO
        self.output_seeds: dict[Expr, Expr] = {}
        self.kept_seeds: dict[Expr, Expr] = {}
        self.constants: set[Expr] = set()
        self.dot_scale = 1.0
        self.later: list[tuple[Reduction, Expr]] = []

    def gradient(self) -> Gradient:
        program = self.program
        kept = tuple((name, self._fresh(f"d_{name}")) for name, _ in program.kept)
        for name, formula in program.kept:
            _seed(self.kept_seeds, formula, Stat(dict(kept)[name]))
        self._seed_output()
        value_grad = adjoints(self.output_seeds).get(Value(), ZERO)
        self._learn_sums(value_grad)
        self._row_adjoints()
        self._epilogue_tensors()
        dot_grad = self._pairs()
        term = _single_term(program.weight, self.positive)
        weight = program.weight if term is None else times(term.body, term.coefficient)
        return self._assembled(kept, value_grad, weight, dot_grad)

    # -- names ---------------------------------------------------------------------------------------------

    def _fresh(self, wish: str) -> str:
        name, number = wish, 1
        while name in self.taken:
            name, number = f"{wish}_{number}", number + 1
        self.taken.add(name)
        return name

    def _row(self, wish: str, value: Expr) -> Expr:
        """A row statistic with the value, in the rows of the last stage."""
        if isinstance(value, Stat):
            return value
        name = self._fresh(wish)
        self.rows.append((name, self._simplified(value)))
        return Stat(name)

    def _simplified(self, value: Expr) -> Expr:
        """A value of the row with what cancels removed, if that makes it shorter.

        Less to compute, and exact where terms many times larger than the result would have to cancel.
        """
        candidates = [expanded(self._written_out(value)), expanded(value), value]
        return min(candidates, key=lambda e: sum(1 for _ in walk(e)))

    def _written_out(self, value: Expr) -> Expr:
        """A value of the row in terms of what was known before the rows of the last stage."""
        for name, formula in reversed(self.rows):
            value = substitute(value, {Stat(name): formula})
        return value

    # -- the epilogue: everything that is a loop over the value features -------------------------------------

    def _seed_output(self) -> None:
        """The gradients of the output formula and of the bodies of its reductions over d."""
        program, seeds = self.program, self.output_seeds
        _seed(seeds, program.output, OutGrad())
        self.features += program.output_reductions
        for r in reversed(program.output_reductions):
            gradient = adjoints(seeds).get(Stat(r.name))
            if gradient is None:
                continue
            total = self._feature_sum(f"d_{r.name}", gradient)
            if r.op != "sum":
                hit = make("eq", r.body, Stat(r.name))
                ties = self._feature_sum(f"ties_{r.name}", chosen(hit, ONE))
                total = chosen(hit, over(total, ties))
            _seed(seeds, r.body, total)

    def _from_epilogue(self, leaf: Expr) -> list[Expr]:
        """What the output slot and the kept statistics pass on to a value of the row, in parts."""
        parts = []
        gradient = adjoints(self.output_seeds, self.constants).get(leaf)
        if gradient is not None:
            name = leaf.name if isinstance(leaf, Stat) else "row"
            parts.append(self._feature_sum(f"d_{name}", gradient))
        gradient = adjoints(self.kept_seeds, self.constants).get(leaf)
        return parts if gradient is None else [*parts, gradient]

    def _epilogue_tensors(self) -> None:
        """Tensors that the output slot and the kept statistics read."""
        for load, gradient in _loads(adjoints(self.output_seeds, self.constants)):
            if any("d" in axes_of(i) for i in load.indices):
                self._scatter(load, gradient, "element")
            else:
                total = self._feature_sum(f"d_{load.tensor}", gradient)
                self._scatter(load, total, "epilogue")
        for load, gradient in _loads(adjoints(self.kept_seeds, self.constants)):
            self._scatter(load, gradient, "row")

    def _feature_sum(self, wish: str, body: Expr) -> Expr:
        """The sum over d, what does not vary with d taken out of it."""
        return _total(
            [times(self._plain_sum(wish, part), factor) for part, factor in parts_along_d(body)]
        )

    def _plain_sum(self, wish: str, body: Expr) -> Expr:
        for r in self.features:
            if r.op == "sum" and r.body is body:
                return Stat(r.name)
        name = self._fresh(wish)
        self.features.append(Reduction(name, "sum", body))
        return Stat(name)

    def _scatter(self, load: Load, value: Expr, level: Level) -> None:
        self.tensors.append(TensorGradient(load.tensor, load.indices, value, level))

    # -- row adjoints: sums over the keys ----------------------------------------------------------------------

    def _learn_sums(self, value_grad: Expr) -> None:
        """Note which sums over the keys are known: those of the forward, and <go, o>."""
        for r in self.program.reductions:
            term = _single_term(r.body, self.positive)
            if r.op == "sum" and term is not None:
                self.known[_key(term.body)] = _Known(term, Stat(r.name))
        term = _single_term(self.program.weight, self.positive)
        if term is not None:
            self.known_weighted[_key(term.body)] = _Known(term, None)
        self.delta_body = times(value_grad, Value())

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
            adjoint = self._row(f"d_{r.name}", _total(parts))
            if r.op != "sum":
                ties = self._key_sum("ties", chosen(self._hit(r), ONE))
                adjoint = self._row(f"share_{r.name}", over(adjoint, ties))
                self.reasons.append(
                    f"{r.name} passes its gradient to the keys that attain it, in equal parts"
                )
            self.later.append((r, adjoint))

    def _parts(self, leaf: Expr) -> list[Expr]:
        """The gradient of a value of the row, in parts."""
        found = self._known_parts(leaf)
        parts = self._from_epilogue(leaf) + (
            found if found is not None else self._summed_parts(leaf)
        )
        return [p for p in parts if p is not ZERO]

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
                inner = slope if r.op == "sum" else chosen(self._hit(r), slope)
                found.append((inner, False, adjoint))
        return found

    def _known_parts(self, leaf: Expr) -> list[Expr] | None:
        """The row's gradient of a leaf through the keys, made of sums that are known; None when they do not suffice."""
        parts = []
        for slope, weighted, adjoint in self._slopes(leaf):
            total = self._known_total(slope, weighted)
            if total is None:
                return None
            parts.append(times(adjoint, total))
        return parts

    def _summed_parts(self, leaf: Expr) -> list[Expr]:
        """The same, with a walk over the keys for what is not known."""
        parts = []
        for slope, weighted, adjoint in self._slopes(leaf):
            total = self._known_total(slope, weighted)
            total = self._summed(slope, weighted) if total is None else total
            parts.append(times(adjoint, total))
        return parts

    def _known_total(self, slope: Expr, weighted: bool) -> Expr | None:
        """sum_k slope_k (times dw_k where ``weighted``) made of known sums, or None."""
        for distribute in (False, True):
            terms = split(slope, distribute=distribute, positive=self.positive)
            found = [self._known_sum(t, weighted) for t in terms]
            values = [value for value in found if value is not None]
            if len(values) == len(terms):
                return _total(values) if values else ZERO
        return None

    def _known_sum(self, term: Term, weighted: bool) -> Expr | None:
        known = (self.known_weighted if weighted else self.known).get(_key(term.body))
        if known is None:
            return None
        # sum of c * b, given sum of d * b: multiply by c / d with what both share cancelled.
        above, below = term.beyond(known.term)
        divisors, factors = known.term.beyond(term)
        if divisors:
            return None  # the weight's own coefficient might be 0
        if weighted and "delta" not in self.said:
            self.said.add("delta")
            self.reasons.append(
                "sum_k dw_k weight_k is <go, o>: no walk over the keys for what is proportional to it"
            )
        value = known.value or self._feature_sum("delta", self.delta_body)
        return quotient(product((*above, *factors, value)), product(below))

    def _summed(self, slope: Expr, weighted: bool) -> Expr:
        """sum_k slope_k (times dw_k) by a walk over the keys, row factors taken out."""
        term = _single_term(slope, self.positive) or Term((), (), slope)
        body = times(term.body, WeightGrad()) if weighted else term.body
        return times(term.coefficient, self._key_sum("sum", body))

    def _key_sum(self, wish: str, body: Expr) -> Expr:
        key = _key(body)
        if key not in self.sums:
            self.sums[key] = Reduction(self._fresh(f"{wish}_{len(self.sums)}"), "sum", body)
        return Stat(self.sums[key].name)

    def _hit(self, r: Reduction) -> Expr:
        """Whether a key attains a maximum or minimum, which is found again so that the values are the same."""
        if r.name not in self.extrema:
            self.extrema[r.name] = Reduction(self._fresh(f"{r.name}_again"), r.op, r.body)
        return make("eq", r.body, Stat(self.extrema[r.name].name))

    def _cancel(self, parts: list[Expr]) -> bool:
        """Whether the parts sum to 0 whatever the statistics are."""
        parts = [self._written_out(p) for p in parts]
        return cancel(parts, self.positive)

    # -- one pair ------------------------------------------------------------------------------------------------

    def _pairs(self) -> Expr:
        """The gradient of the dot product; tensor gradients on the way."""
        program = self.program
        seeds: dict[Expr, Expr] = {}
        _seed(seeds, program.weight, WeightGrad())
        for r, adjoint in self.later:
            _seed(seeds, r.body, adjoint if r.op == "sum" else chosen(self._hit(r), adjoint))
        loads = dict(_loads(adjoints(seeds, self.constants)))
        self.dot_scale, score_gradient = self._score_gradient()
        inner = adjoints({program.score: score_gradient}) if score_gradient is not ZERO else {}
        for load in dict.fromkeys([*loads, *(load for load, _ in _loads(inner))]):
            through_score = inner.get(load)
            if through_score is not None:
                through_score = _scaled(self.dot_scale, through_score)
            self._tensor(load, loads.get(load), through_score)
        return inner.get(Dot(), ZERO)

    def _score_gradient(self) -> tuple[float, Expr]:
        """The gradient of the score, a number taken out of it.

        Terms of the same body are joined. ``body * c * (dw + d)`` rather than ``body * (dw * c + c * d)``: where dw
        and -d are equal, as with one key, the result is exactly 0, and body * c is often the weight.
        """
        bodies: dict[_Key, Expr] = {}
        weighted: dict[_Key, list[Term]] = {}
        plain: dict[_Key, list[tuple[Term, Expr]]] = {}
        for slope, by_weight, adjoint in self._slopes(Score()):
            term = _single_term(slope, self.positive) or Term((), (), slope)
            key = _key(term.body)
            bodies.setdefault(key, term.body)
            if by_weight:
                weighted.setdefault(key, []).append(term)
            else:
                plain.setdefault(key, []).append((term, adjoint))
        if len(bodies) == 1:
            ((key, body),) = bodies.items()
            factor, joined = _joined(
                body, weighted.get(key, []), plain.get(key, []), self._simplified
            )
            return factor, joined
        parts = [
            _scaled(*_joined(body, weighted.get(key, []), plain.get(key, []), self._simplified))
            for key, body in bodies.items()
        ]
        return 1.0, _total(parts)

    def _tensor(self, load: Load, outer: Expr | None, inner: Expr | None) -> None:
        """``outer``: the gradient through weight and statistics, ``inner``: through the score."""
        axes = frozenset[str]().union(*(axes_of(i) for i in load.indices))
        if "k" in axes:
            level: Level = "pair" if "q" in axes or _reads_scores(load) else "key"
            self._scatter(load, _total([g for g in (outer, inner) if g is not None]), level)
            return
        if outer is not None:
            known = self._known_parts(load)
            if known is not None:
                self._scatter(load, _total(known), "row")
                outer = None
        rest = [g for g in (outer, inner) if g is not None]
        if rest:
            term = _single_term(_total(rest), self.positive) or Term((), (), _total(rest))
            name = self._fresh(f"d_{load.tensor}")
            self.last.append(Reduction(name, "sum", term.body))
            self._scatter(load, times(term.coefficient, Stat(name)), "row")

    # -- the result ------------------------------------------------------------------------------------------------

    def _assembled(
        self, kept: tuple[tuple[str, str], ...], value_grad: Expr, weight: Expr, dot_grad: Expr
    ) -> Gradient:
        stages = []
        if self.extrema:
            stages.append(Stage((), tuple(self.extrema.values())))
        if self.sums:
            stages.append(Stage((), tuple(self.sums.values())))
            self.reasons.append(
                f"one more walk over the keys for {len(self.sums)} sums that no known sum gives"
                if len(self.sums) > 1
                else "one more walk over the keys for a sum that no known sum gives"
            )
        tensors = tuple(t for t in self.tensors if t.value is not ZERO)
        roots = [value_grad, weight, dot_grad]
        roots += [r.body for s in stages for r in s.reductions] + [t.value for t in tensors]
        roots += [r.body for r in self.last]
        rows: list[tuple[str, Expr]] = []
        for name, formula in reversed(self.rows):
            if name in stats_in(*roots):
                rows.insert(0, (name, formula))
                roots.append(formula)
        stages.append(Stage(tuple(rows), tuple(self.last)))
        features: list[Reduction] = []
        for r in reversed(self.features):
            if r.name in stats_in(*roots):
                features.insert(0, r)
                roots.append(r.body)
        read = stats_in(*roots)
        return Gradient(
            program=self.program,
            saved=tuple(r.name for r in self.program.reductions if r.name in read),
            kept=kept,
            reads_value=any(isinstance(n, Value) for n in walk(*roots)),
            features=tuple(features),
            value_grad=value_grad,
            stages=tuple(stages),
            weight=weight,
            dot_grad=dot_grad,
            tensors=tensors,
            dot_scale=self.dot_scale,
            reasons=tuple(self.reasons),
        )


def _seed(seeds: dict[Expr, Expr], root: Expr, gradient: Expr) -> None:
    seeds[root] = make("add", seeds[root], gradient) if root in seeds else gradient


def _total(parts: Sequence[Expr]) -> Expr:
    """The sum of parts; a part that is 0 is left out."""
    total: Expr = ZERO
    for part in parts:
        if part is not ZERO:
            total = part if total is ZERO else make("add", total, part)
    return total


def _single_term(expr: Expr, positive: frozenset[str]) -> Term | None:
    """The formula as one coefficient times one body, if it has that form without distributing sums."""
    terms = split(expr, distribute=False, positive=positive)
    return terms[0] if len(terms) == 1 else None


def _joined(
    body: Expr,
    weighted: Sequence[Term],
    plain: Sequence[tuple[Term, Expr]],
    simplified: Callable[[Expr], Expr],
) -> tuple[float, Expr]:
    """A number and an expression whose product is body * (sum of c * dw + sum of d * adjoint)."""
    guarded = any(t.selected for t in (*weighted, *(t for t, _ in plain)))
    if len(weighted) == 1 and not guarded:
        number, above = _number_of(weighted[0])
        if not above and number:
            below = product(weighted[0].below)
            rest = [
                times(
                    times(_scaled(n / number, quotient(product(rows), product(t.below))), adjoint),
                    below,
                )
                for t, adjoint in plain
                for n, rows in [_number_of(t)]
            ]
            inner = _total([WeightGrad(), simplified(_total(rest))])
            return number, times(times(body, quotient(ONE, below)), inner)
    parts = [times(t.coefficient, WeightGrad()) for t in weighted]
    parts += [times(t.coefficient, adjoint) for t, adjoint in plain]
    return 1.0, times(body, _total(parts))


def _number_of(term: Term) -> tuple[float, tuple[Expr, ...]]:
    """The constant factor of a term's coefficient, and its other factors above the line."""
    numbers = [float(f.value) for f in term.above if isinstance(f, Const)]
    return math.prod(numbers), tuple(f for f in term.above if not isinstance(f, Const))


def _scaled(number: float, expr: Expr) -> Expr:
    return expr if number == 1.0 else times(expr, Const(number))


_Key = tuple[tuple[int, ...], tuple[int, ...]]


def _key(body: Expr) -> _Key:
    """The factors above and below the line of a product, in no order: equal for products that differ in order only."""
    above: list[int] = []
    below: list[int] = []
    stack = [(body, above, below)]
    while stack:
        node, up, down = stack.pop()
        match node:
            case Call("mul", (x, y)):
                stack += [(x, up, down), (y, up, down)]
            case Call("div", (x, y)):
                stack += [(x, up, down), (y, down, up)]
            case _:
                up.append(id(node))  # nodes are unique while they live
    return tuple(sorted(above)), tuple(sorted(below))


def _loads(found: Mapping[Expr, Expr]) -> Iterator[tuple[Load, Expr]]:
    for node, gradient in found.items():
        if isinstance(node, Load) and node.kind == "float" and gradient is not ZERO:
            yield node, gradient


def _reads_scores(load: Load) -> bool:
    return any(isinstance(n, Dot | Score) for n in walk(*load.indices))
