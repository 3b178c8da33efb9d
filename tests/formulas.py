"""Row formulas as programs, written with operators, and a dense evaluation of them to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from attncompiler.ir.dense import run_program
from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    Param,
    Score,
    Stat,
    kind_of,
)
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.program import ParamDecl, Program, Reduction, TensorDecl
from attncompiler.ir.streaming import StreamingPlan
from attncompiler.ir.streaming_run import run_plan


@dataclass(frozen=True, eq=False)
class F:
    """An expression with Python operators; numbers become float constants (ints beside int expressions)."""

    expr: Expr

    def __add__(self, other: F | float) -> F:
        return call("add", self, other)

    def __radd__(self, other: float) -> F:
        return call("add", lift(other, self), self)

    def __sub__(self, other: F | float) -> F:
        return call("sub", self, other)

    def __rsub__(self, other: float) -> F:
        return call("sub", lift(other, self), self)

    def __mul__(self, other: F | float) -> F:
        return call("mul", self, other)

    def __rmul__(self, other: float) -> F:
        return call("mul", lift(other, self), self)

    def __truediv__(self, other: F | float) -> F:
        return call("div", self, other)

    def __rtruediv__(self, other: float) -> F:
        return call("div", lift(other, self), self)

    def __neg__(self) -> F:
        return call("neg", self)

    def __lt__(self, other: F | float) -> F:
        return call("lt", self, other)

    def __le__(self, other: F | float) -> F:
        return call("le", self, other)

    def __gt__(self, other: F | float) -> F:
        return call("gt", self, other)

    def __ge__(self, other: F | float) -> F:
        return call("ge", self, other)

    def __and__(self, other: F) -> F:
        return call("and", self, other)

    def __or__(self, other: F) -> F:
        return call("or", self, other)

    def __invert__(self) -> F:
        return call("not", self)

    def __mod__(self, other: int) -> F:
        return call("mod", self, other)

    def equals(self, other: F | float) -> F:
        return call("eq", self, other)


def lift(x: F | float, like: F) -> F:
    if isinstance(x, F):
        return x
    return F(Const(int(x) if kind_of(like.expr) == "int" else float(x)))


def call(op: str, *args: F | float) -> F:
    like = next(a for a in reversed(args) if isinstance(a, F))
    return F(Call(op, tuple(lift(a, like).expr for a in args)))


def exp(x: F) -> F:
    return call("exp", x)


def exp2(x: F) -> F:
    return call("exp2", x)


def log(x: F) -> F:
    return call("log", x)


def sqrt(x: F) -> F:
    return call("sqrt", x)


def relu(x: F) -> F:
    return call("max", x, 0.0)


def maximum(x: F, y: F | float) -> F:
    return call("max", x, y)


def where(c: F, x: F | float, y: F | float) -> F:
    return call("where", c, x, y)


S, DOT = F(Score()), F(Dot())
Q, K, H = F(Index("q")), F(Index("k")), F(Index("h"))


def param(name: str, kind: str = "float") -> F:
    return F(Param(name, kind))  # type: ignore[arg-type]


def tensor(name: str, *indices: F, kind: str = "float") -> F:
    return F(Load(name, tuple(i.expr for i in indices), kind))  # type: ignore[arg-type]


PARAMS: dict[str, float | int] = {"tau": 0.7, "al": 0.8, "be": 0.05, "theta": 0.1, "sinks": 3}
TENSOR_AXES = {"sink": "h", "gate": "hk", "temp": "hq", "tag": "k", "slope": "h", "bias": "k"}


@dataclass
class Formula:
    """``row.max(...)`` and friends collect reductions; ``program(weight)`` builds the program."""

    name: str = "formula"
    reductions: list[Reduction] = field(default_factory=list)

    def _reduce(self, name: str, op: str, body: F | float) -> F:
        expr = body.expr if isinstance(body, F) else Const(float(body))
        self.reductions.append(Reduction(name, op, expr))  # type: ignore[arg-type]
        return F(Stat(name))

    def max(self, name: str, body: F) -> F:
        return self._reduce(name, "max", body)

    def min(self, name: str, body: F) -> F:
        return self._reduce(name, "min", body)

    def sum(self, name: str, body: F | float) -> F:
        return self._reduce(name, "sum", body)

    def program(
        self,
        weight: F | float,
        *,
        mask: F | None = None,
        score: F = DOT,
        kept: dict[str, F] | None = None,
        output: F | None = None,
    ) -> Program:
        more = {} if output is None else {"output": output.expr}
        return canonicalize(
            Program(
                name=self.name,
                params=tuple(
                    ParamDecl(n, "int" if isinstance(v, int) else "float")
                    for n, v in PARAMS.items()
                ),
                tensors=tuple(
                    TensorDecl(n, tuple(axes), "int" if n == "tag" else "float")
                    for n, axes in TENSOR_AXES.items()
                ),
                score=score.expr,
                mask=Const(True) if mask is None else mask.expr,
                reductions=tuple(self.reductions),
                weight=weight.expr if isinstance(weight, F) else Const(weight),
                kept=tuple((n, f.expr) for n, f in (kept or {}).items()),
                **more,
            )
        )


@dataclass
class Inputs:
    """Random inputs of a few heads; ``spread`` scales the scores."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    tensors: dict[str, torch.Tensor]
    q_start: int = 0


def inputs(seed: int, m: int = 5, n: int = 37, spread: float = 3.0, q_start: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    h, groups, d, dv = 4, 2, 3, 2
    tensors = {
        "sink": normal(h),
        "gate": torch.rand(h, n, generator=g, dtype=torch.float64),
        "temp": 0.5 + torch.rand(h, m + q_start, generator=g, dtype=torch.float64),
        "tag": torch.randint(0, 4, (n,), generator=g),
        "slope": normal(h).abs() * 0.1,
        "bias": normal(n),
    }
    # Scores of multiples of 2**-12 are exact in every order of additions, so that a level that works tile by tile finds
    # the extremum where the whole grid has it, whatever a machine's matrix product does.
    query, key = (
        (x * 2**12).round() / 2**12
        for x in (normal(2, h, m, d) * spread / d**0.5, normal(2, groups, n, d))
    )
    return Inputs(query, key, normal(2, groups, n, dv), tensors, q_start)


def dense(program: Program, x: Inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and kept statistics of a program, over the full grid, in float64."""
    return run_program(
        program,
        x.query,
        x.key,
        x.value,
        q_start=x.q_start,
        scale=1.0,
        params=PARAMS,
        tensors=x.tensors,
    )


def streamed(
    plan: StreamingPlan, x: Inputs, tiles: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same of a plan, tile by tile."""
    return run_plan(
        plan,
        x.query,
        x.key,
        x.value,
        q_start=x.q_start,
        scale=1.0,
        params=PARAMS,
        tensors=x.tensors,
        partition=tiles,
    )
