"""``op.module()``: an operator with state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import attncompiler
from attncompiler import errors
from attncompiler.dsl import Tensor, Variant, causal, sink_softmax
from attncompiler.runtime.errors import DtypeError, ModuleCaptureError, ModuleNameError


class Learned(Variant):
    """Tensors of every kind a module holds, and one that changes with every call."""

    window: int = 64
    gain: float = 1.0
    sink = Tensor("h")
    table = Tensor("rows", 2)
    half = Tensor("h")
    order = Tensor("h", dtype="int")
    ids = Tensor("b", "k", dtype="int")

    def score(self, s: Any, at: Any) -> Any:
        return self.gain * s + self.table[self.order[at.h], 1] * self.half[at.h]

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.window) & (self.ids[at.b, at.k] > 0)

    def normalize(self, s: Any, row: Any) -> Any:
        return sink_softmax(s, row, self.sink[row.h])


OPERATOR = attncompiler.compile(Learned)
HELD: dict[str, Any] = {
    "sink": torch.tensor([0.5, -1.0]),
    "table": torch.arange(6.0).reshape(3, 2) / 4,
    "order": torch.tensor([2, 0]),
}


def inputs() -> dict[str, torch.Tensor]:
    q, k, v = torch.randn(3, 2, 2, 9, 8)
    return {"q": q, "k": k, "v": v, "ids": torch.randint(0, 2, (2, 9)), "half": torch.ones(2)}


def test_what_is_given_is_held_and_the_rest_stays_an_argument() -> None:
    module = OPERATOR.module(**HELD, window=3)
    assert {n: type(p) for n, p in module.named_parameters()} == {
        "sink": nn.Parameter,
        "table": nn.Parameter,
    }
    assert [n for n, _ in module.named_buffers()] == ["order"]
    assert list(module.state_dict()) == ["sink", "table", "order"]
    assert "Learned, window=3, sink=[2], table=[3, 2], order=[2]" in repr(module)
    given = inputs()
    assert torch.equal(module(**given), OPERATOR(**given, **HELD, window=3))
    assert torch.equal(module(**given, window=5), OPERATOR(**given, **HELD, window=5))
    other = {"sink": torch.zeros(2)}
    assert torch.equal(module(**given, **other), OPERATOR(**given, **(HELD | other), window=3))
    with pytest.raises(errors.MissingTensorError, match="'ids'"):
        module(**{n: x for n, x in given.items() if n != "ids"})


def test_initial_values_are_copied_and_parameters_and_buffers_kept() -> None:
    start, shared, fixed = torch.zeros(2), nn.Parameter(torch.zeros(3, 2)), nn.Buffer(torch.ones(2))
    module = OPERATOR.module(sink=start, table=shared, order=HELD["order"])
    assert isinstance(module.sink, nn.Parameter)
    with torch.no_grad():
        module.sink += 1
    assert torch.equal(start, torch.zeros(2))
    assert module.table is shared
    module = OPERATOR.module(sink=fixed)
    assert [n for n, _ in module.named_buffers()] == ["sink"]


def test_a_module_trains_and_its_state_moves() -> None:
    module, given = OPERATOR.module(**HELD), inputs()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    target, losses = torch.randn(2, 2, 9, 8), []
    for _ in range(5):
        loss = (module(**given) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    fresh = OPERATOR.module(**HELD)
    fresh.load_state_dict(module.state_dict())
    for other in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(**given), module(**given))
        with torch.no_grad():
            other.sink += 1
        assert not torch.equal(other(**given), module(**given))
    assert module.to(torch.bfloat16).sink.dtype == torch.bfloat16


def test_a_module_equals_that_of_the_oracle() -> None:
    given = inputs()
    fused = OPERATOR.module(**HELD)
    dense = attncompiler.compile(Learned, backend="dense").module(**HELD)
    for module in (fused, dense):
        module(**given).square().sum().backward()
    for mine, theirs in zip(fused.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_modules_compile() -> None:
    module, given = OPERATOR.module(**HELD), inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), module(**given))
    compiled(**given).sum().backward()
    assert module.sink.grad is not None


@pytest.mark.parametrize(
    ("initial", "kind", "says"),
    [
        ({"sinks": torch.zeros(2)}, errors.UnknownArgumentError, "'sinks'(?s:.*)sink"),
        ({"sink": [0.0, 1.0]}, DtypeError, "sink: expected a torch tensor, got list"),
        ({"sink": torch.zeros(2, dtype=torch.int64)}, DtypeError, "declared as float"),
        ({"order": torch.zeros(2)}, DtypeError, "order: it is torch.float32, declared as int"),
        ({"order": torch.zeros(2, requires_grad=True)}, DtypeError, "declared as int"),
        ({"sink": torch.zeros(2, 1)}, errors.ShapeError, "1 axes"),
        ({"table": torch.zeros(3, 4)}, errors.ShapeError, "axis 1 has extent 4, declared as 2"),
        ({"half": torch.zeros(2)}, ModuleNameError, "'half' of Learned(?s:.*)rename"),
        ({"window": 2.5}, errors.ParameterTypeError, "'window'"),
    ],
    ids=lambda x: str(x)[:30] if isinstance(x, dict) else "",
)
def test_mistakes(initial: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        OPERATOR.module(**initial)


def test_a_captured_parameter_is_no_module_s() -> None:
    weight = nn.Parameter(torch.ones(4))

    class Captured(Variant):
        def score(self, s: Any, at: Any) -> Any:
            return s * weight[at.h]

    for backend in ("cpp", "dense"):
        with pytest.raises(ModuleCaptureError, match=r"shape \[4\](?s:.*)op.module\(weight="):
            attncompiler.compile(Captured, backend=backend).module()
