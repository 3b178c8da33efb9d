"""Operators in autograd: gradients arrive where they are wanted, and nothing is lost on the way."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import attncompiler
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, floor, sigmoid, sink_softmax
from attncompiler.runtime.backward_plan import run_backward
from attncompiler.runtime.errors import DoubleBackwardError, DtypeError
from attncompiler.runtime.operator import Operator

pytestmark = pytest.mark.usefixtures("quick_builds")


class Plain(Variant):
    """Softmax; its output is the value row itself."""

    def mask(self, at: Any) -> Any:
        return causal(at)


class Sigmoid(Variant):
    """No row statistic at all."""

    bias: float = -1.0

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s + self.bias)


class Full(Variant):
    """A sink, a pair bias, a gate on the output, integer rows, a parameter of each kind."""

    gain: float = 0.5
    window: int = 6
    flip: bool = False
    sink = Input("h")
    bias = Input("h", "q", "k")
    gate = Input("b", "q", "d")
    ids = Input("b", "k", dtype="int")

    def score(self, s: Any, at: Any) -> Any:
        return self.gain * s + self.bias[at.h, at.q, at.k]

    def mask(self, at: Any) -> Any:
        return ((at.q - at.k < self.window) | self.flip) & (self.ids[at.b, at.k] > 0)

    def normalize(self, s: Any, row: Any) -> Any:
        return sink_softmax(s, row, self.sink[row.h])

    def output(self, o: Any, at: Any) -> Any:
        return o * sigmoid(self.gate[at.b, at.q, at.d])


class Prepared(Variant):
    """Ordinary torch before the kernel, whose tensor takes part in autograd as well."""

    gain: float = 1.5
    turn = Input("k", "c")
    slope = Input("h")

    def prepare(self, q: Any, k: Any, v: Any, turn: Any) -> Any:
        return q * self.gain, k * turn, v, {"slope": q.mean((0, 2, 3))}

    def score(self, s: Any, at: Any) -> Any:
        return s + self.slope[at.h] * at.k * 0.1


B, H, G, M, N, D, DV = 2, 4, 2, 7, 9, 8, 6
CALLS: dict[type[Variant], dict[str, Any]] = {
    Plain: {"q_start": 2},
    Sigmoid: {"bias": -0.5, "scale": 0.3},
    Full: {
        "sink": torch.linspace(-1, 1, H),
        "bias": torch.linspace(-1, 1, H * M * N).sin().reshape(H, M, N),
        "gate": torch.linspace(-2, 2, B * M * DV).reshape(B, M, DV),
        "ids": torch.arange(B * N).reshape(B, N) % 3,
        "q_start": 1,
    },
    Prepared: {"turn": torch.linspace(0.5, 1.5, N * D).reshape(N, D)},
}
OPERATORS = {variant: attncompiler.compile(variant) for variant in CALLS}


def leaves(variant: type[Variant], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of a call whose floating tensors are leaves that want a gradient."""
    shapes = {"q": (B, H, M, D), "k": (B, G, N, D), "v": (B, G, N, DV)}
    generator = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    given |= CALLS[variant]
    return {
        n: x.to(dtype).clone().requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for n, x in given.items()
    }


def loss_of(op: Any, given: dict[str, Any]) -> Tensor:
    """Depends on every output element and every statistic, each with a weight of its own."""
    out, stats = op(**given, return_stats=True)
    wave = torch.arange(out.numel()).reshape(out.shape).cos()
    loss = (out.double() * wave).sum()
    for row in stats.values():
        loss = loss + (torch.where(row.isfinite(), row, 0.0).double() * wave[..., 0]).sum()
    return loss


def gradients(given: dict[str, Any]) -> dict[str, Tensor]:
    return {n: x.grad for n, x in given.items() if isinstance(x, Tensor) and x.grad is not None}


@pytest.mark.parametrize("variant", CALLS)
def test_gradients_are_those_of_the_oracle(variant: type[Variant]) -> None:
    found = []
    for backend in ("cpp", "dense"):
        given = leaves(variant)
        loss_of(attncompiler.compile(variant, backend=backend), given).backward()
        found.append(gradients(given))
    assert set(found[0]) == set(found[1]) >= {"q", "k", "v"}
    for name, mine in found[0].items():
        torch.testing.assert_close(mine, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", CALLS)
def test_gradcheck(variant: type[Variant]) -> None:
    given = leaves(variant, torch.float64)
    floats = [n for n, x in given.items() if isinstance(x, Tensor) and x.requires_grad]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = given | dict(zip(floats, tensors, strict=True))
        out, stats = OPERATORS[variant](**rest, return_stats=True)
        return out, *(torch.where(s.isfinite(), s, 0.0) for s in stats.values())

    assert torch.autograd.gradcheck(call, [given[n] for n in floats], fast_mode=True)


@pytest.mark.parametrize(
    "wanted", [("q",), ("k",), ("v",), ("sink",), ("bias",), ("gate",), ("q", "v", "gate")]
)
def test_only_what_is_wanted_gets_a_gradient(wanted: tuple[str, ...]) -> None:
    every = leaves(Full)
    loss_of(OPERATORS[Full], every).backward()
    some = {
        n: x.detach().requires_grad_(n in wanted) if isinstance(x, Tensor) and n != "ids" else x
        for n, x in leaves(Full).items()
    }
    loss_of(OPERATORS[Full], some).backward()
    found = gradients(some)
    assert set(found) == set(wanted)
    for name, x in found.items():
        torch.testing.assert_close(x, every[name].grad, rtol=1e-5, atol=1e-6)


def test_no_kernel_works_for_gradients_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointers of q, k and v are null, and tensors have no code in the kernel, unless their gradient is wanted."""
    asked: list[tuple[Any, ...]] = []

    def record(*arguments: Any, **named: Any) -> Any:
        asked.append((named["wants"], sorted(t.name for t in arguments[0].grads)))
        return run_backward(*arguments, **named)

    monkeypatch.setattr("attncompiler.runtime.launch.run_backward", record)
    for wanted in (("q",), ("v", "gate"), ("bias", "sink")):
        some = {
            n: x.detach().requires_grad_(n in wanted) if isinstance(x, Tensor) and n != "ids" else x
            for n, x in leaves(Full).items()
        }
        loss_of(OPERATORS[Full], some).backward()
    assert asked == [
        ((True, False, False), []),
        ((False, False, True), ["gate"]),
        ((False, False, False), ["bias", "sink"]),
    ]


class Steps(Variant):
    """Every read of its tensors is behind a step: a comparison, a rounding, an integer."""

    limit = Input("k")
    level = Input("h")

    def mask(self, at: Any) -> Any:
        return self.limit[at.k] > 0

    def score(self, s: Any, at: Any) -> Any:
        return s + floor(self.level[at.h])


@pytest.mark.parametrize("rows", [3, 0])
@pytest.mark.parametrize("keys", [5, 0])
def test_steps_and_empty_tensors_have_zero_gradients(keys: int, rows: int) -> None:
    q = torch.randn(2, 2, rows, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 8, requires_grad=True) for _ in range(2))
    tensors = {"limit": torch.ones(keys), "level": torch.tensor([0.5, 1.5])}
    for x in tensors.values():
        x.requires_grad_()
    attncompiler.compile(Steps)(q, k, v, **tensors).square().sum().backward()
    for x in (q, k, v, *tensors.values()):
        assert x.grad is not None
        assert x.grad.shape == x.shape
    for x in (tensors["limit"].grad, tensors["level"].grad):
        assert torch.equal(x, torch.zeros_like(x))
    if not rows:
        assert not v.grad.any()


def test_a_kernel_built_ahead_serves_training(monkeypatch: pytest.MonkeyPatch) -> None:
    op = attncompiler.compile(Full)
    for backward in (False, True):
        built = op.build(head_dim=8, value_dim=6, backward=backward)
        assert ("backward" in built.path_library.parent.name) == backward
    assert op.source(head_dim=8, value_dim=6, backward=True) == built.path_source.read_text()
    assert "--value-dim 6 --backward" in built.path_source.read_text()
    monkeypatch.setattr(subprocess, "run", None)
    loss_of(attncompiler.compile(Full), leaves(Full)).backward()


def test_a_call_without_gradients_records_nothing() -> None:
    given = leaves(Full)
    with torch.no_grad():
        quiet = OPERATORS[Full](**given)
    with torch.inference_mode():
        inferred = OPERATORS[Full](**given)
    recorded = OPERATORS[Full](**given)
    assert quiet.grad_fn is None
    assert inferred.is_inference()
    assert recorded.grad_fn is not None
    assert torch.equal(quiet, recorded)
    assert torch.equal(inferred, recorded)


def test_statistics_alone_have_gradients() -> None:
    def lse(op: Any) -> tuple[Tensor, ...]:
        given = leaves(Plain)
        _, stats = op(**given, return_stats=True)
        return torch.autograd.grad(stats["lse"].square().sum(), [given["q"], given["k"]])

    dense = attncompiler.compile(Plain, backend="dense")
    torch.testing.assert_close(lse(OPERATORS[Plain]), lse(dense), rtol=1e-4, atol=1e-5)


def test_views_in_and_broadcast_gradients_out() -> None:
    """Keys shared by the batch, transposed heads, an expanded gradient: strides of every kind."""
    found = []
    for backend in ("cpp", "dense"):
        op = attncompiler.compile(Plain, backend=backend)
        torch.manual_seed(3)
        x = torch.randn(3, 9, 4, 3 * 8, requires_grad=True)
        shared = torch.randn(1, 4, 9, 8, requires_grad=True)
        q, _, v = x.transpose(1, 2).split(8, -1)
        op(q, shared.expand(3, -1, -1, -1), v).sum().backward()
        op(q, shared.expand(3, -1, -1, -1), v).mT.contiguous().square().sum().backward()
        found.append((x.grad, shared.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("variant", CALLS)
def test_checkpoints(variant: type[Variant], reentrant: bool) -> None:
    plain, saved = leaves(variant), leaves(variant)
    loss_of(OPERATORS[variant], plain).backward()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return loss_of(OPERATORS[variant], saved | {"q": q, "k": k, "v": v})

    checkpoint(run, saved["q"], saved["k"], saved["v"], use_reentrant=reentrant).backward()
    assert all(torch.equal(x, gradients(plain)[n]) for n, x in gradients(saved).items())
    assert len(gradients(saved)) == len(gradients(plain))


def test_saved_tensors_may_be_moved_away() -> None:
    plain, saved = leaves(Full), leaves(Full)
    loss_of(OPERATORS[Full], plain).backward()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        loss = loss_of(OPERATORS[Full], saved)
    loss.backward()
    assert all(torch.equal(x, gradients(plain)[n]) for n, x in gradients(saved).items())


@pytest.mark.parametrize("name", ["q", "v", "bias", "ids", "out"])
def test_a_change_between_forward_and_backward_is_torchs_own_error(name: str) -> None:
    given = leaves(Full) if name != "out" else leaves(Plain)
    given |= {n: x * 1 for n, x in given.items() if isinstance(x, Tensor)}
    out = OPERATORS[Plain if name == "out" else Full](**given)
    (out if name == "out" else given[name]).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_second_backward_needs_retain_graph() -> None:
    given = leaves(Plain)
    loss = loss_of(OPERATORS[Plain], given)
    loss.backward(retain_graph=True)
    first = given["q"].grad.clone()
    loss.backward()
    assert torch.equal(given["q"].grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_double_backward_is_refused_by_name() -> None:
    given = leaves(Full)
    loss = OPERATORS[Full](**given).sum()
    (first,) = torch.autograd.grad(loss, given["q"], create_graph=True)
    with pytest.raises(DoubleBackwardError, match=r'gradients of Full(?s:.*)backend="dense"'):
        first.sum().backward()


def test_an_integer_tensor_cannot_ask_for_a_gradient() -> None:
    given = leaves(Full) | {"ids": torch.ones(B, N, requires_grad=True)}
    with pytest.raises(DtypeError, match=r"ids: it is torch.float32, declared as int"):
        OPERATORS[Full](**given)


def test_the_op_itself_differentiates_without_its_training_outputs() -> None:
    """A graph exported for inference still has gradients: its backward runs the forward again."""
    op = OPERATORS[Full]
    found = []
    for train in (True, False):
        given = leaves(Full)
        tensors = [given[n] for n in ("q", "k", "v", "sink", "bias", "gate", "ids")]
        names = [t.name for t in op.compilation.kernel.tensors]
        arguments = [*tensors[:3], *(given[n] for n in names), 1, 0.3, *op._numbers, False, train]
        out, *_ = op._registered.forward(*arguments)
        out.square().sum().backward()
        found.append(gradients(given))
    assert set(found[0]) == {"q", "k", "v", "sink", "bias", "gate"}
    assert all(torch.equal(x, found[1][n]) for n, x in found[0].items())


# Autocast and threads.


def test_autocast_runs_in_its_type_and_returns_gradients_in_theirs() -> None:
    given = leaves(Prepared)
    mixed = given | {"k": given["k"].detach().bfloat16().requires_grad_()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OPERATORS[Prepared](**mixed)
        assert OPERATORS[Plain](*(given[n].double() for n in "qkv")).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert {n: x.dtype for n, x in gradients(mixed).items()} == {
        "q": torch.float32,
        "k": torch.bfloat16,
        "v": torch.float32,
        "turn": torch.float32,
    }
    half = attncompiler.compile(Plain)
    with torch.no_grad():
        q, k, v = (given[n] for n in "qkv")
        wanted = half(q.bfloat16(), k.bfloat16(), v.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(half(q, k.bfloat16(), v), wanted)


def test_threads_share_an_operator() -> None:
    """Every thread calls forward and backward on lengths of its own; kernels are built by whoever is first."""
    op: Operator = attncompiler.compile(Plain)
    results: dict[int, bool] = {}

    def work(index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        same = True
        for length in (index + 3, index + 40):
            q, k, v = torch.randn(3, 1, 2, length, 16, generator=generator).unbind()
            q.requires_grad_()
            out = op(q, k, v)
            out.square().sum().backward()
            again = q.detach().clone().requires_grad_()
            op(again, k, v).square().sum().backward()
            same &= torch.equal(q.grad, again.grad)  # type: ignore[arg-type]
            weights = torch.softmax(
                (q @ k.mT / 4).masked_fill(~causal_mask(length), -torch.inf), -1
            )
            same &= torch.allclose(out, weights @ v, atol=1e-5)
        results[index] = same

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == dict.fromkeys(range(6), True)


def causal_mask(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()
