"""Turns a Kernel into the context of the Triton forward template: prints each expression for its loop."""

from __future__ import annotations

from collections.abc import Sequence

from attncompiler.backends.gpu_expr import ExprPrinter, Named, Text
from attncompiler.backends.names import identifier
from attncompiler.backends.triton_context import (
    IDENTITIES,
    FinishText,
    ForwardContext,
    PassText,
    ReductionText,
    StatText,
    SweepText,
    WeightText,
)
from attncompiler.backends.triton_loops import (
    FEATURE,
    KEY,
    ROW,
    LoopPrinter,
    ScanText,
    bounded,
    reads,
    settled,
)
from attncompiler.ir.expr import Dot, Expr, Param, Score, Stat, walk
from attncompiler.ir.kernel import Kernel, KernelPass, Sweep
from attncompiler.ir.passes.lower import flatten_loads
from attncompiler.ir.spans import Span
from attncompiler.ir.tile_runs import tile_runs
from attncompiler.ir.vanishing import IDENTITY_LIMITS, at_minus_infinity

# What is known in a block and is neither an argument of the variant nor a local.
BLOCK_NAMES = ("i_q", "i_h", "i_g", "i_b", "q_start", "B", "H", "G", "M")


class ForwardPrinter(LoopPrinter):
    """Builds the template's context for one kernel; ``dtypes`` are those of the tensors that it reads."""

    def __init__(self, kernel: Kernel, dtypes: Sequence[str]) -> None:
        super().__init__(kernel.tensors, dtypes)
        self.kernel = kernel
        self._plain = False

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        return super()._leaf(printer, Dot() if isinstance(expr, Score) and self._plain else expr)

    def context(self, title: str, definition: str, regenerate: str) -> ForwardContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        kernel, program = self.kernel, self.kernel.plan.program
        uniform = self.define(kernel.uniform)
        outer = [n.name for n in uniform]
        passes = [self.pass_text(number, p, outer) for number, p in enumerate(kernel.passes)]
        masked = any(p.mask is not None for p in passes)
        declared = {t.name: t for t in program.tensors}
        runs = tile_runs(program.mask, "keys") if masked else None
        return ForwardContext(
            title=title,
            definition=definition.rstrip().splitlines(),
            regenerate=regenerate,
            params=self.params(kernel.params),
            tensors=self.tensors(kernel.tensors),
            uniform=uniform,
            passes=passes,
            finish=self.finish_text(),
            stats=[f"s_{identifier(s.name)}" for s in kernel.plan.stats],
            masked=masked,
            scan=self._scan(outer),
            reversed=runs is not None and any(map(grows, runs.allowed)),
            runs=None
            if runs is None
            else self.runs(runs.mapped(lambda e: flatten_loads(e, declared))),
        )

    def pass_text(self, number: int, kernel_pass: KernelPass, outer: list[str]) -> PassText:
        """One pass; ``outer`` are the names that were defined before, to which it adds its own."""
        rows = self.define(kernel_pass.rows, near=True)
        keys = self.define(kernel_pass.keys, near=True)
        self._plain = kernel_pass.score is Dot()
        self.nonpositive = kernel_pass.nonpositive
        bodies: list[Expr] = [x.body for s in kernel_pass.sweeps for x in s.parts]
        scored = not self._plain and any(isinstance(n, Score) for n in walk(*bodies))
        masks = [] if kernel_pass.mask is None else [kernel_pass.mask]
        printer = self.printer()
        score_lets = printer.define([kernel_pass.score] if scored else [], "t", later=masks)
        names = dict(printer.names)
        mask_lets = printer.define(masks, "m")
        mask = printer.tile(printer(masks[0])) if masks else None
        printer.names = names
        score = self.spread(printer(kernel_pass.score), ROW | KEY) if scored else None
        sweeps = [self.sweep_text(i, s, kernel_pass) for i, s in enumerate(kernel_pass.sweeps)]
        heads = [kernel_pass.score] if scored else []
        used = set(walk(*heads, *([] if scored else bodies), *masks))
        dots = Dot() in used or (self._plain and Score() in set(walk(*bodies)))
        texts = [*(n.code for n in (*keys, *score_lets, *mask_lets)), mask or "", score or ""]
        texts += [n.code for s in sweeps for n in (*s.lanes, *s.elements, *s.factors)]
        texts += [s.body for sweep in sweeps for s in sweep.stats]
        texts += [w.body for sweep in sweeps for w in sweep.weights]
        rows, keys = settled(rows, keys, texts)
        state = [
            (f"s_{identifier(u.name)}", IDENTITIES[u.op])
            for s in kernel_pass.sweeps
            for u in s.stats
        ]
        state += [(identifier(w.accumulator), "") for w in kernel_pass.weights]
        before = [f"s_{identifier(s.name)}" for s in self.kernel.plan.stats if s.pass_ < number]
        return PassText(
            number=number,
            rows=rows,
            keys=keys,
            uses_keys=bool(keys or masks) or any("i_k" in t for t in texts),
            needs_scores=dots,
            score_lets=score_lets,
            score=score,
            mask_lets=mask_lets,
            mask=mask,
            masks_score=vanishes(kernel_pass),
            sweeps=sweeps,
            passed=reads(
                [
                    *BLOCK_NAMES,
                    *self.arguments(self.kernel.params, self.kernel.tensors),
                    *outer,
                    *(n.name for n in rows),
                    *before,
                ],
                texts,
            ),
            state=state,
        )

    def _scan(self, outer: list[str]) -> ScanText | None:
        """The mask by itself, which tells the rows that have a key."""
        first = self.kernel.passes[0]
        if first.mask is None:
            return None
        rows, keys = self.again(first.rows), self.again(first.keys)
        arguments = self.arguments(self.kernel.params, self.kernel.tensors)
        names = [*BLOCK_NAMES, *arguments, *outer, *(n.name for n in rows)]
        return self.scan(first.mask, rows, keys, names)

    def sweep_text(self, number: int, sweep: Sweep, kernel_pass: KernelPass) -> SweepText:
        """One sweep of a pass."""
        lanes = self.define(sweep.lanes)
        printer = self.printer()
        elements = printer.define([x.body for x in sweep.parts], f"e{number}_")
        after = self.printer()
        factors = [x.factor for x in sweep.parts if x.factor is not None]
        factor_lets = after.define(factors, f"f{number}_")

        def factor(expr: Expr | None) -> str | None:
            return None if expr is None else self.spread(after(expr), ROW)

        stats = [
            StatText(
                f"s_{identifier(u.name)}",
                u.op,
                IDENTITIES[u.op],
                self.spread(printer(u.body), ROW | KEY),
                factor(u.factor),
                raw=u.op != "sum"
                and (u.body is Dot() or (self._plain and isinstance(u.body, Score))),
            )
            for u in sweep.stats
        ]
        weights = [
            WeightText(
                identifier(w.accumulator),
                self.spread(printer(w.body), ROW | KEY),
                factor(w.factor),
                w.body in kernel_pass.nonpositive or bounded(w.body),
            )
            for w in sweep.weights
        ]
        return SweepText(lanes, elements, stats, factor_lets, weights)

    def finish_text(self) -> FinishText:
        """The end of a block of rows."""
        finish = self.kernel.finish
        kept = [self.row(e) for _, e in finish.kept]
        rows: list[Named] = self.define(finish.rows)
        wide = ROW | FEATURE
        return FinishText(
            rows=rows,
            coefficients=[(identifier(n), self.row(e)) for n, e in finish.coefficients],
            kept=kept,
            reductions=[
                ReductionText(
                    f"s_{identifier(r.name)}",
                    r.op,
                    IDENTITIES[r.op],
                    self.spread(self.printer()(r.body), wide),
                )
                for r in finish.reductions
            ],
            output=self.spread(self.printer()(finish.output), wide),
        )


def vanishes(kernel_pass: KernelPass) -> bool:
    """Whether nothing is left of a pair whose score is minus infinity."""
    terms = [(u.body, u.op) for s in kernel_pass.sweeps for u in s.stats]
    weights = [w.body for w in kernel_pass.weights]
    return all(at_minus_infinity(body) == IDENTITY_LIMITS[op] for body, op in terms) and all(
        at_minus_infinity(body) == "0" for body in weights
    )


def grows(span: Span) -> bool:
    """Whether later queries see more keys of a span."""
    begins, ends = ({n.name for n in walk(e) if isinstance(n, Param)} for e in (span.lo, span.end))
    return "q_hi" in ends and not begins & {"q_lo", "q_hi"}


__all__ = ["ForwardPrinter", "Stat"]
