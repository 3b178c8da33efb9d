"""Random row formulas over the pieces normalizers are made of, most of which have a streaming form."""

from __future__ import annotations

import random

from formulas import F, Formula, H, K, Q, S, call, exp, maximum, param, relu, tensor, where

from attncompiler.ir.expr import Const
from attncompiler.ir.program import Program


class RandomFormula:
    """One formula a seed: a few reductions that read each other, then a weight."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.formula = Formula(f"random {seed}")
        self.stats: list[F] = []
        self.maxima: list[tuple[F, F]] = []

    def program(self) -> Program:
        for i in range(self.draw.randint(1, 4)):
            op = self.draw.choice(["max", "sum", "sum", "min", "max"])
            body = self.key_part(self.draw.randint(0, 2))
            stat = getattr(self.formula, op)(f"r{i}", body)
            if op == "max":
                self.maxima.append((stat, body))
            self.stats.append(stat)
        mask = self.draw.choice([None, K <= Q, K + 3 <= Q])
        return self.formula.program(self.key_part(3), mask=mask, kept={"last": self.stats[-1]})

    def row_part(self) -> F:
        constants = [param("al"), F(Const(0.5)), tensor("sink", H)]
        positive = [maximum(x, 0.25) for x in self.stats] + [call("abs", x) for x in self.stats]
        return self.draw.choice([*constants, *positive, *self.stats])

    def key_part(self, depth: int) -> F:
        draw = self.draw
        if depth == 0:
            return draw.choice(
                [S, S, S * 0.5, call("abs", S), call("tanh", S), tensor("gate", H, K)]
            )
        x, y, row = self.key_part(depth - 1), self.key_part(depth - 1), self.row_part()
        is_sink = param("sinks", "int") > K
        tag = tensor("tag", K, kind="int").equals(draw.randrange(4))
        choices = [
            x + y,
            x * y,
            x * row,
            x - row,
            x / (call("abs", row) + 0.5),
            exp(call("min", x, 3.0)),
            relu(x),
            call("max", x, y),
            where(is_sink, x, y),
            where(tag, x * row, x * self.row_part()),
            where(row < S, x, y),
        ]
        choices += [exp(body - m) * x for m, body in self.maxima] * 2
        return draw.choice(choices)
