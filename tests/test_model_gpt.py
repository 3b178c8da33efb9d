"""The example that trains a small GPT, in its short form: losses against SDPA's and against dense PyTorch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

EXAMPLE = Path(__file__).parents[1] / "examples" / "models" / "gpt.py"
STEPS = 8


@pytest.fixture(scope="module")
def gpt() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpt_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def small(gpt: ModuleType) -> Any:
    return gpt.Config(layers=2, context=80, batch=2, window=24, warm_up=4)


def scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot products, and the distance of each key from its query."""
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, distance


class DenseSwat(nn.Module):
    """What the paper says, with a matrix of queries x keys."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.window = config.window
        self.slope = torch.tensor([-0.5, 0.5, -0.25, 0.25])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s, distance = scores(q, k)
        weight = torch.sigmoid(s + self.slope[:, None, None] * distance)
        return torch.where((distance >= 0) & (distance < self.window), weight, 0.0) @ v


class DenseSink(nn.Module):
    """Softmax over the keys and one more logit, whose weight is dropped."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(config.heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s, distance = scores(q, k)
        s = s.masked_fill(distance < 0, -torch.inf)
        sink = self.sink[:, None, None].expand(*s.shape[:3], 1)
        return torch.cat((sink, s), -1).softmax(-1)[..., 1:] @ v


@pytest.fixture
def dense(gpt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, Callable[[Any], nn.Module]] = {
        "dense swat": DenseSwat,
        "dense sink": DenseSink,
    }
    for name, kind in kinds.items():
        monkeypatch.setitem(gpt.ATTENTIONS, name, kind)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("softmax", "sdpa"), ("swat", "dense swat"), ("sink", "dense sink")],
)
@pytest.mark.usefixtures("dense")
def test_a_model_learns_what_the_same_model_in_pytorch_learns(
    gpt: ModuleType, small: Any, ours: str, theirs: str
) -> None:
    mine, other = gpt.train(small, [ours, theirs], STEPS)
    assert mine.losses == pytest.approx(other.losses, abs=2e-5)
    assert mine.losses[-1] < mine.losses[0] - 1
    assert len(mine.seconds) == STEPS
    pairs = zip(mine.model.named_parameters(), other.model.named_parameters(), strict=True)
    for (name, x), (other_name, y) in pairs:
        assert name == other_name
        assert x.grad is not None, name
        assert y.grad is not None, name
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.usefixtures("dense")
def test_the_sink_learns(gpt: ModuleType, small: Any) -> None:
    (tokens,) = gpt.batches(small, 1)
    runs = [gpt.Run(small, name) for name in ("sink", "dense sink")]
    for run in runs:
        run.loss(tokens).backward()
    for mine, other in zip(*(run.model.blocks for run in runs), strict=True):
        gradient = mine.attention.sink.grad
        assert isinstance(mine.attention.sink, nn.Parameter)
        assert gradient.abs().min() > 1e-6
        torch.testing.assert_close(gradient, other.attention.sink.grad, rtol=1e-4, atol=1e-8)
    before = [block.attention.sink.clone() for block in runs[0].model.blocks]
    runs[0].step(tokens)
    for block, sink in zip(runs[0].model.blocks, before, strict=True):
        assert (block.attention.sink != sink).all()


def test_slopes_of_swat_are_kept_but_not_trained(gpt: ModuleType, small: Any) -> None:
    model = gpt.Run(small, "swat").model
    assert not any("slope" in name for name, _ in model.named_parameters())
    slope = model.state_dict()["blocks.0.attention.slope"]
    assert slope.tolist() == [-0.5, 0.5, -0.25, 0.25]


def test_runs_repeat_and_seeds_differ(gpt: ModuleType, small: Any) -> None:
    first, again = (gpt.train(small, ["softmax"], 3)[0].losses for _ in range(2))
    other = gpt.train(replace(small, seed=1), ["softmax"], 3)[0].losses
    assert first == again
    assert not set(first) & set(other)
    pieces = [next(iter(gpt.batches(replace(small, seed=seed), 1))) for seed in (0, 0, 1)]
    assert torch.equal(pieces[0], pieces[1])
    assert not torch.equal(pieces[0], pieces[2])
    assert pieces[0].shape == (small.batch, small.context + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 0.02), ("float64", 1e-9)])
def test_other_types_train(gpt: ModuleType, small: Any, dtype: str, apart: float) -> None:
    config = replace(small, dtype=dtype)
    sdpa, *ours = gpt.train(config, ["sdpa", "softmax", "swat", "sink"], STEPS)
    assert ours[0].losses == pytest.approx(sdpa.losses, abs=apart)
    for run in ours:
        assert run.losses[-1] < run.losses[0] - 1
        assert {p.dtype for p in run.model.parameters()} == {
            torch.float64 if dtype == "float64" else torch.float32
        }


def test_the_command_prints_a_table_and_draws_the_curves(gpt: ModuleType, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    done = CliRunner().invoke(
        gpt.main, ["--steps", "2", "--out", str(picture)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(picture) in done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line.strip()}
    assert {"sdpa", "softmax", "swat", "sink"} <= set(rows)
    assert rows["softmax"][0] == rows["sdpa"][0]  # the loss, to four digits
    assert rows["sdpa"][2:] == ["1.00x", "0.0e+00"]
