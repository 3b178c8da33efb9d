"""Turns a Kernel into the context of the forward template: prints each expression for the loop it is computed in."""

from __future__ import annotations

from attncompiler.backends.cpp_context import (
    CPP_TYPES,
    IDENTITIES,
    PIECES,
    PRODUCTS,
    Context,
    FinishText,
    PassText,
    Specialization,
    StatText,
    SweepText,
    WeightText,
)
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_expr import Definition
from attncompiler.backends.cpp_loops import LANE_TYPES, LoopPrinter
from attncompiler.backends.cpp_schedule import schedules
from attncompiler.backends.names import identifier
from attncompiler.ir.expr import Call, Dot, Expr, OldStat, Score, Stat, walk
from attncompiler.ir.kernel import Kernel, KernelPass, StatUpdate, WeightTile


class CppPrinter(LoopPrinter):
    """Builds the template's context for one kernel and specialization."""

    def __init__(self, kernel: Kernel, spec: Specialization, tuned: Schedule | None = None) -> None:
        super().__init__(spec, kernel.tensors)
        self.kernel, self.tuned = kernel, tuned

    def pass_text(self, number: int, kernel_pass: KernelPass, earlier: list[str]) -> PassText:
        """One pass; ``earlier`` names the statistics that are final in it."""
        sweeps = [self.sweep_text(kernel_pass, i) for i in range(len(kernel_pass.sweeps))]
        return PassText(
            number=number,
            rows=self.row_arrays(kernel_pass.rows),
            keys=self.scalars(kernel_pass.keys),
            final_stats=earlier,
            masked=kernel_pass.mask is not None,
            needs_scores=any(s.uses_dot for s in sweeps),
            sweeps=sweeps,
            stats=[
                (identifier(u.name), IDENTITIES[u.op])
                for sweep in kernel_pass.sweeps
                for u in sweep.stats
            ],
            accumulators=[identifier(w.accumulator) for w in kernel_pass.weights],
        )

    def sweep_text(self, kernel_pass: KernelPass, number: int) -> SweepText:
        """One sweep of a pass."""
        sweep = kernel_pass.sweeps[number]
        first, last = number == 0, number == len(kernel_pass.sweeps) - 1
        printer = self.lane_printer(kernel_pass.nonpositive)
        lanes = []
        for let in sweep.lanes:
            text = printer(let.expr)
            lanes.append(Definition(LANE_TYPES[text.lane], let.local.name, text.code))
        mask = kernel_pass.mask if first else None
        parts: list[StatUpdate | WeightTile] = [*sweep.stats, *sweep.weights]
        bodies = [x.body for x in parts]
        factors = [x.factor for x in parts if x.factor is not None]
        scored = any(isinstance(n, Score) for n in walk(*bodies))
        rest = kernel_pass.sweeps[number + 1 :]
        later = [x.body for s in rest for x in s.stats] + [x.body for s in rest for x in s.weights]
        # The untouched dot product is still in the tile; any other score is stored there for later sweeps.
        plain = kernel_pass.score is Dot()
        stores = first and not plain and any(isinstance(n, Score) for n in walk(*later))
        computes = (first or plain) and (scored or stores)
        masks = [] if mask is None else [mask]
        score_lets = printer.define([kernel_pass.score] if computes else [], "t", later=masks)
        # What only the mask reads is computed, and has names, where the mask is asked.
        names = dict(printer.names)
        mask_lets = printer.define(masks, "m")
        mask_text = None if mask is None else printer(mask).code
        printer.names = names
        score = printer(kernel_pass.score).code if computes else None
        if scored and not computes:
            score = "load_real(cell)"
        elements = printer.define(bodies, "t")
        body_texts = {body: printer(body).code for body in bodies}
        # Factors are used after the walk over the keys, where the names of elements no longer exist.
        after = self.lane_printer(self.falling(factors), weights=False)
        factor_lets = after.define(factors, "f")
        heads = [*masks, *([kernel_pass.score] if computes else [])]
        used = [*heads, *bodies, *factors, *(x.expr for x in sweep.lanes)]
        return SweepText(
            first=first,
            last=last,
            values=self.values(printer, used),
            lanes=lanes,
            uses_dot=computes and any(n is Dot() for n in walk(kernel_pass.score)),
            score_lets=score_lets,
            mask_lets=mask_lets,
            mask=mask_text,
            score=score,
            stores_score=stores,
            elements=elements,
            factors=factor_lets,
            stats=[
                StatText(
                    identifier(u.name),
                    u.op,
                    IDENTITIES[u.op],
                    f"fold_{u.op}",
                    body_texts[u.body],
                    None if u.factor is None else after(u.factor).code,
                )
                for u in sweep.stats
            ],
            weights=[
                WeightText(
                    identifier(w.accumulator),
                    slot,
                    body_texts[w.body],
                    None if w.factor is None else after(w.factor).code,
                )
                for slot, w in enumerate(sweep.weights)
            ],
        )

    def falling(self, factors: list[Expr]) -> frozenset[Expr]:
        """The exponentials by which a statistic that only grows is rescaled: their argument is never positive."""
        operators = {s.name: s.op for s in self.kernel.plan.stats}
        found = set()
        for node in walk(*factors):
            match node:
                case Call("exp" | "exp2", (Call("sub", (OldStat(old), Stat(new))),)):
                    falls = old == new and operators[new] == "max"
                case Call("exp" | "exp2", (Call("sub", (Stat(new), OldStat(old))),)):
                    falls = old == new and operators[new] == "min"
                case _:
                    falls = False
            if falls:
                found.add(node)
        return frozenset(found)

    def finish_text(self) -> FinishText:
        """The end of a row."""
        finish = self.kernel.finish
        return FinishText(
            rows=self.scalars(finish.rows),
            coefficients=[(identifier(n), self.scalar(e)) for n, e in finish.coefficients],
            kept=[(identifier(n), self.scalar(e)) for n, e in finish.kept],
            reductions=[
                (identifier(r.name), r.op, IDENTITIES[r.op], self.scalar(r.body), f"fold_{r.op}")
                for r in finish.reductions
            ],
            output=self.scalar(finish.output),
        )

    def context(self, title: str, definition: str, regenerate: str) -> Context:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        kernel = self.kernel
        self.learn_bounds(kernel.uniform)
        for kernel_pass in kernel.passes:
            self.learn_bounds((*kernel_pass.rows, *kernel_pass.keys))
        all_rows = [x for p in kernel.passes for x in p.rows]
        all_keys = [x for p in kernel.passes for x in p.keys]
        passes, earlier = [], list[str]()
        for number, kernel_pass in enumerate(kernel.passes):
            passes.append(self.pass_text(number, kernel_pass, list(earlier)))
            earlier += [name for name, _ in passes[-1].stats]
        return Context(
            title=title,
            definition=definition.rstrip().splitlines(),
            regenerate=regenerate,
            spec=self.spec,
            storage=CPP_TYPES[self.spec.dtype],
            types=self.element_types(),
            real=self.real,
            params=self.params(kernel.params),
            tensors=self.tensors(kernel.tensors),
            uniform=self.scalars(kernel.uniform),
            row_arrays=[Definition(self.array_type(x), x.local.name, "") for x in all_rows],
            key_arrays=[Definition(self.scalar_type(x), x.local.name, "") for x in all_keys],
            stats=[identifier(s.name) for s in kernel.plan.stats],
            accumulators=[identifier(a.name) for a in kernel.plan.accumulators],
            passes=passes,
            finish=self.finish_text(),
            kept=[identifier(n) for n, _ in kernel.finish.kept],
            possible=self.scalar(kernel.possible),
            certain=self.scalar(kernel.certain),
            planned=kernel.planned,
            ranges=self.ranges(kernel.ranges),
            packs_heads=kernel.packs_heads,
            masked=any(p.masked for p in passes),
            schedules=schedules("forward", self.spec, self.tuned),
            tiles=max(1, *(len(p.accumulators) for p in passes)),
            in_place=self.spec.dtype in ("float32", "float64"),
            pairs=self.spec.dtype == "bfloat16",
            scale_late=self.spec.dtype == "bfloat16",
            pieces=PIECES[self.spec.dtype],
            products=PRODUCTS[PIECES[self.spec.dtype]],
        )
