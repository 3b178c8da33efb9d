"""Compares results with exact ones: draws the inputs of a case, and turns errors into verdicts.

The yardstick is plain PyTorch in the same element type (of 8-bit inputs in bfloat16, which holds them): a result passes
with at most twice its error plus a floor of a few units in the last place of the largest number. ``attncompiler check``
and the self test of a package use it.

One element that the formulas magnify can make all of plain PyTorch's error, which then changes tenfold with the order
of its sums. So ``check`` takes the largest error of several orders before it calls a result wrong. And where a 16-bit
type leaves plain PyTorch with no number at all, because a divisor became zero or a power infinite, float32 stands in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attncompiler.cases import Case

# Results of 16-bit types are rounded once from a float32 sum; for the wider types the sum itself rounds too.
_FLOOR_UNITS = {torch.float16: 1.0, torch.bfloat16: 1.0, torch.float32: 8.0, torch.float64: 8.0}
# Orders of summation by which a result is judged at most; errors beyond the limit by this factor no order explains.
_ORDERS, _HOPELESS = 8, 100.0
# Plain PyTorch in float64 is the oracle itself and shows no error. Rounding errors are proportional to the unit
# of the type, so the yardstick of float64 is the error of plain float32 times the ratio of the units.
_FLOAT64_OVER_FLOAT32 = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Comparison:
    """One result of one case: ``error`` and ``plain_error`` are largest absolute errors against float64."""

    what: str
    error: float
    plain_error: float
    floor: float
    position: tuple[int, ...] = ()
    found: float = math.nan
    expected: float = math.nan

    @property
    def limit(self) -> float:
        """The largest error that passes."""
        return 2 * self.plain_error + self.floor

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """Error over limit; at most 1 passes."""
        return 0.0 if self.error == 0 else self.error / self.limit if self.limit else math.inf


def plain_type(dtype: str, order: int = 0) -> torch.dtype | None:
    """The type in which plain PyTorch, summing in an order, is the yardstick of a call; None for that of its inputs.

    In the usual order float64 would be compared with itself.
    """
    if dtype == "float64" and order == 0:
        return torch.float32
    return torch.bfloat16 if dtype.startswith("float8") else None


def draw_inputs(
    case: Case,
    sample: Callable[[dict[str, int], torch.Generator], dict[str, Tensor]],
    *,
    prepares: bool,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """q, k, v in the case's layout and the variant's own tensors, which ``sample`` draws, from the case's seed."""
    generator = torch.Generator().manual_seed(case.seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    # Queries twice as wide as usual: scores spread over several units, so that a wrong maximum shows.
    q = 2 * _draw(generator, case.B, case.H, case.M, case.D)
    k = _draw(generator, case.B, case.G, case.N, case.D)
    v = _draw(generator, case.B, case.G, case.N, case.Dv)
    tensors = sample(case.sizes | {"q_start": case.q_start}, generator)
    if dtype == torch.float64 and prepares:
        # prepare is ordinary PyTorch: on float32 tensors its result would be no better than float32.
        tensors |= {n: t.double() for n, t in tensors.items() if t.dtype == torch.float32}
    return (
        _lay_out(q.to(dtype), case, shared=False),
        _lay_out(k.to(dtype), case, shared=True),
        _lay_out(v.to(dtype), case, shared=True),
        tensors,
    )


def compare_gradients(
    found: Mapping[str, tuple[Tensor, Tensor, Tensor]], dtype: str
) -> tuple[Comparison, ...]:
    """One comparison a gradient; ``found`` gives it by name with that of plain PyTorch and the exact one.

    ``dtype`` is the element type of the call.
    """
    # Gradients are sums of terms of both signs, often much larger than what is left (for one key nothing is).
    # So the floor counts in units of the largest gradient of the call, four of the usual ones for q, k and v; a
    # tensor's gradient is a sum over many pairs: eight, and in the element type of the call at least one.
    largest = max(largest_of(exact) for _, _, exact in found.values())
    unit = torch.finfo(getattr(torch, dtype)).eps
    comparisons = []
    for name, (mine, plain, exact) in found.items():
        scale = 4 * largest
        if name not in ("q", "k", "v"):
            own = _FLOOR_UNITS[mine.dtype] * torch.finfo(mine.dtype).eps
            scale = largest * max(8.0, unit / own)
        comparisons.append(compare(f"grad.{name}", mine, plain, exact, largest=scale))
    return tuple(comparisons)


def named(out: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output and the statistics of a call, as reports call them."""
    return {"out": out} | {f"stats.{name}": x for name, x in stats.items()}


def completed(
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    wider: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """``plain`` with float32's numbers where a narrower type gave inf or nan and the exact number is finite.

    ``wider()`` gives the same results of plain PyTorch in float32; it is called only if some number is missing.
    """
    lacking = {name: ~x.isfinite() & exact[name].isfinite() for name, x in plain.items()}
    if not any(bool(places.any()) for places in lacking.values()):
        return dict(plain)
    whole = wider()
    return {name: torch.where(lacking[name], whole[name], x) for name, x in plain.items()}


def judged(compared: Callable[[int], tuple[Comparison, ...]]) -> tuple[Comparison, ...]:
    """The comparisons with plain PyTorch in as many orders of summation as are needed until all pass.

    ``compared(order)`` compares the same results with those of plain PyTorch in one order.
    """
    found = compared(0)
    for order in range(1, _ORDERS):
        if all(c.passed for c in found) or not all(c.ratio <= _HOPELESS for c in found):
            break
        plain_errors = [
            max(a.plain_error, b.plain_error) for a, b in zip(found, compared(order), strict=True)
        ]
        found = tuple(replace(c, plain_error=e) for c, e in zip(found, plain_errors, strict=True))
    return found


def compare(
    what: str, found: Tensor, plain: Tensor, exact: Tensor, *, largest: float = 0.0
) -> Comparison:
    """Largest errors; equal infinities and equal NaNs count as no error, any other pair with one as infinite.

    The floor is a few units of the largest exact number, or of ``largest`` if that is more.
    """
    if exact.numel() == 0:
        return Comparison(what, 0.0, 0.0, 0.0)
    if found.shape != exact.shape:
        raise AssertionError(f"{what} has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
    errors = _errors(found, exact)
    plain_error = _largest_finite(_errors(plain, exact))
    if found.dtype == torch.float64 and plain.dtype == torch.float32:
        plain_error *= _FLOAT64_OVER_FLOAT32
    largest = max(largest, largest_of(exact))
    units = _FLOOR_UNITS[found.dtype]
    place = int(errors.argmax())
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), errors.shape))
    return Comparison(
        what,
        error=errors.max().item(),
        plain_error=plain_error,
        floor=units * torch.finfo(found.dtype).eps * largest,
        position=position,
        found=found[position].item(),
        expected=exact[position].item(),
    )


def root_mean_square(result: Tensor, exact: Tensor) -> float:
    """Of those errors that are finite; NaN without any."""
    errors = _errors(result, exact)
    return errors[errors.isfinite()].square().mean().sqrt().item()


def largest_of(exact: Tensor) -> float:
    """The largest finite magnitude."""
    finite = exact[exact.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _errors(found: Tensor, exact: Tensor) -> Tensor:
    wide = found.to(torch.float64)
    same = (wide == exact) | (wide.isnan() & exact.isnan())
    difference = (wide - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(same, 0.0, difference)


def _largest_finite(errors: Tensor) -> float:
    # Where plain float32 overflows too there is no yardstick; the kernel is then held to the rest of the result.
    return errors[errors.isfinite()].max().item() if errors.isfinite().any() else 0.0


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _lay_out(x: Tensor, case: Case, *, shared: bool) -> Tensor:
    """The same numbers under other strides (broadcast: the first batch and head for all)."""
    match case.layout:
        case "plain":
            return x.contiguous()
        case "swapped":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        case "padded":
            room = x.new_full((*x.shape[:3], x.shape[3] + 5), math.nan)
            room[..., : x.shape[3]] = x
            return room[..., : x.shape[3]]
        case "broadcast":
            return x[:1, :1].expand(x.shape) if shared and x.numel() else x.contiguous()
