"""Decides whether a sum over a body can stream while statistics in the body still move, and by which factor.

A body F(key, r) streams iff F(key, new) = h(old, new) * F(key, old) for every key, that is iff
F(a, new) F(b, old) = F(a, old) F(b, new) for all keys a and b. The product form is tested on random values
first, which costs a fraction of a millisecond and settles most refusals. When it holds, h is the quotient
F(a, new) / F(a, old) at any one key a: a fixed key is put in, so that sympy simplifies a formula of row
statistics only, and the result is verified on the samples again.

Example: exp(s - m) at s = 0 gives exp(-m) / exp(-m_old), simplified to exp(m_old - m).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from attncompiler.ir.algebra import quotient
from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    OldStat,
    Score,
    Stat,
    is_row_only,
    kind_of,
    rewrite,
    stats_in,
    substitute,
    walk,
)
from attncompiler.ir.passes.canonicalize import simplify
from attncompiler.ir.passes.edges import switches, values_of, vanishes, with_old
from attncompiler.ir.passes.samples import COUNT, Samples, is_comparison, key_atoms
from attncompiler.ir.passes.terms import ONE
from attncompiler.ir.program import Reduction
from attncompiler.ir.signs import nonnegative
from attncompiler.ir.streaming import row_parts

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCE = 1e-9
_ENOUGH = 8


@dataclass(frozen=True, slots=True)
class Streams:
    """The body streams. ``factor`` is None when nothing has to be rescaled."""

    factor: Expr | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The body has to wait for final statistics; ``why`` completes "because ..."."""

    why: str


Verdict = Streams | Refused
_MOVES = "has no factor free of the key's score when {} changes"


class Rescaler:
    """Answers for bodies over a growing list of statistics; every answer is kept."""

    def __init__(self) -> None:
        self.known: dict[str, Reduction] = {}
        self.positive: frozenset[str] = frozenset()
        self._verdicts: dict[tuple[Expr, frozenset[str]], Verdict] = {}

    def learn(self, reduction: Reduction) -> None:
        """Add a statistic that later bodies may read."""
        self.known[reduction.name] = reduction
        if reduction.op != "max" and nonnegative(reduction.body, self.positive):
            self.positive |= {reduction.name}

    def verdict(self, body: Expr, running: frozenset[str]) -> Verdict:
        """Whether a sum over ``body`` streams while the statistics ``running`` move."""
        key = body, running & stats_in(body)
        if key not in self._verdicts:
            self._verdicts[key] = self._decide(*key)
        return self._verdicts[key]

    def _decide(self, body: Expr, running: frozenset[str]) -> Verdict:
        if not running:
            return Streams(None)
        samples = Samples([body], running, self.positive)
        if not _separable(samples.values(body)):
            return Refused(_MOVES.format(self._culprit(body, running)))
        sums = sorted(r for r in running if self.known[r].op == "sum")
        if sums:
            # A sum may be 0, infinite or of either sign on the way; a factor would have to survive all of it.
            return Refused(
                f"follows {', '.join(sums)}, and a sum may take any value before its last key"
            )
        if switches(body, running, samples):
            return Refused(
                f"takes another branch for some keys when {', '.join(sorted(running))} changes"
            )
        reference = _reference(body, running, self.positive)
        if reference is None:
            return Refused("vanishes at every key that was tried")
        factor = _factor(body, reference, running)
        if not _verified(factor, body, samples):
            return Refused(_MOVES.format(", ".join(sorted(running))))
        extrema = {r: self.known[r] for r in sorted(running)}
        if not vanishes(body, extrema, self.positive):
            return Refused(f"does not vanish while {min(extrema)} is still infinite")
        return Streams(None if factor is ONE else factor)

    def _culprit(self, body: Expr, running: frozenset[str]) -> str:
        """The statistics to blame: those that do not even move alone, or else all of them."""
        alone = [
            r
            for r in sorted(running)
            if not _separable(Samples([body], frozenset({r}), self.positive).values(body))
        ]
        return " or ".join(alone or sorted(running))


def _separable(values: Tensor) -> bool:
    """Whether F(a, new) F(b, old) = F(a, old) F(b, new) on all samples that are finite."""
    import torch

    (a_old, a_new), (b_old, b_new) = values
    left, right = a_new * b_old, a_old * b_new
    finite = torch.isfinite(values).all(dim=0).all(dim=0)
    scale = torch.maximum(left.abs(), right.abs())
    good = (left - right).abs() <= _TOLERANCE * scale
    telling = finite & (scale > 0)
    return bool(good[finite].all()) and int(telling.sum()) >= _ENOUGH


def _reference(body: Expr, running: frozenset[str], positive: frozenset[str]) -> Expr | None:
    """The body at one fixed key where it is finite and not 0, whatever the statistics are.

    Comparisons that differ from key to key are decided directly, not through the values compared.
    """
    import torch

    keys = key_atoms(body)
    samples = Samples([body], running, positive)
    rows = [n for n in walk(body) if is_row_only(n)]
    flags = [n for n in walk(body) if n not in rows and is_comparison(n)]
    flags += [k for k in keys if kind_of(k) == "bool" and k not in flags]
    choices: list[tuple[bool, ...]] = [(True,) * len(flags), (False,) * len(flags)]
    if 1 < len(flags) <= 4:
        choices = list(product((True, False), repeat=len(flags)))
    for score, other, chosen in product((0.0, 1.0, -1.0, 2.0), (1.0, 0.0, -1.0, 2.0), choices):
        at: dict[Expr, Expr] = dict(zip(flags, map(Const, chosen), strict=True))
        for key in keys:
            match key:
                case Score():
                    at[key] = Const(score)
                case _ if kind_of(key) == "float":
                    at[key] = Const(other)
                case _ if kind_of(key) == "int":
                    at[key] = Const(1)
        # Only what the fixed key decides is folded: the row's own subexpressions stay the same nodes.
        fixed = rewrite(substitute(body, at), simplify, {n: n for n in rows})
        value = samples.values(fixed)
        usable = torch.isfinite(value) & (value != 0)
        if int(usable.all(dim=0).all(dim=0).sum()) >= COUNT // 4:
            return fixed
    return None


def _factor(body: Expr, reference: Expr, running: frozenset[str]) -> Expr:
    old: dict[Expr, Expr] = {Stat(r): OldStat(r) for r in running}
    rows = {n for n in walk(body) if is_row_only(n) and not isinstance(n, Const)}
    inner = {c for n in walk(body) if not is_row_only(n) for c in _operands(n)}
    opaque = (rows & inner) | set(row_parts(body, running))
    before = {substitute(n, old) for n in opaque}
    return quotient(reference, substitute(reference, old), frozenset(opaque | before))


def _operands(node: Expr) -> tuple[Expr, ...]:
    return node.args if isinstance(node, Call) else ()


def _verified(factor: Expr, body: Expr, samples: Samples) -> bool:
    """Whether the factor takes the body from old to new on all samples."""
    import torch

    values = samples.values(body)
    (old, new), h = values.unbind(1), values_of(factor, with_old(samples))[:, 1]
    finite = torch.isfinite(values).all(dim=1)
    error = (h * old - new).abs()
    good = error <= _TOLERANCE * torch.maximum(new.abs(), (h * old).abs())
    return bool(good[finite].all()) and int((finite & (new != 0)).sum()) >= _ENOUGH
