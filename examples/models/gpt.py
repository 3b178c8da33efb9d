"""Trains a small GPT on Python's own documentation, once with each kind of attention: turns variants into loss curves.

    python examples/models/gpt.py                          # all four, 200 steps each, and a plot
    python examples/models/gpt.py --attention swat --steps 1000

All models start from the same numbers and see the same batches, so their curves differ by the attention alone;
``softmax`` computes what ``sdpa`` computes. They take their steps in turns, so that times compare on a busy machine.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import attncompiler
from attncompiler import dsl
from attncompiler.dsl import Variant, causal, sigmoid, sink_softmax, sliding_window


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its training; bytes are the tokens."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    context: int = 512
    batch: int = 4
    window: int = 128  # of SWAT
    learning_rate: float = 2e-3
    warm_up: int = 20
    seed: int = 0
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim


class Softmax(Variant):
    """Causal softmax attention: the same function as SDPA with ``is_causal``."""

    def mask(self, at):
        return causal(at)


class Swat(Variant):
    """Sigmoid weights, signed ALiBi slopes and a sliding window (SWAT, 2025); examples/swat.py has the rotation too."""

    window: int = 128
    slope = dsl.Tensor("h")

    def score(self, s, at):
        return s + self.slope[at.h] * (at.q - at.k)

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)

    def normalize(self, s, row):
        return sigmoid(s)


class Sink(Variant):
    """Causal softmax with a learnable logit a head that takes weight and gives no value, as in gpt-oss."""

    sink = dsl.Tensor("h")

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return sink_softmax(s, row, self.sink[row.h])


class SDPA(nn.Module):
    """What PyTorch offers."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def swat_slopes(heads: int) -> Tensor:
    """The slopes of SWAT [H]: -1/2, -1/4, ... for half of the heads, 1/2, 1/4, ... (far keys first) for the others."""
    return torch.tensor([(-1.0) ** (h + 1) * 0.5 ** (h // 2 + 1) for h in range(heads)])


# Each makes the attention of one layer: a module called with q, k, v [B, H, S, D].
ATTENTIONS: dict[str, Callable[[Config], nn.Module]] = {
    "sdpa": lambda config: SDPA(),
    "softmax": lambda config: attncompiler.compile(Softmax).module(),
    "swat": lambda config: attncompiler.compile(Swat(window=config.window)).module(
        slope=nn.Buffer(swat_slopes(config.heads))  # the paper does not train them
    ),
    "sink": lambda config: attncompiler.compile(Sink).module(sink=torch.zeros(config.heads)),
}


def rotated(x: Tensor) -> Tensor:
    """Rotary positions (RoPE): turns the pairs of features of x [B, S, H, D] by the position times a frequency."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None, None] * 1e4 ** (-torch.arange(half) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, config: Config, attention: nn.Module) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention = attention
        self.out = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = (heads.transpose(1, 2) for heads in (rotated(q), rotated(k), v))
        o = self.attention(q, k, v)
        x = x + self.out(o.transpose(1, 2).flatten(-2))
        return x + self.feed(self.norm_feed(x))


class GPT(nn.Module):
    """A token embedding, blocks, and a head that shares the token embedding; returns logits [B, S, 256]."""

    def __init__(self, config: Config, attention: str) -> None:
        super().__init__()
        self.token = nn.Embedding(256, config.width)
        self.blocks = nn.Sequential(
            *(Block(config, ATTENTIONS[attention](config)) for _ in range(config.layers))
        )
        self.norm = nn.LayerNorm(config.width)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith(("out.weight", "feed.2.weight"))  # what is added to the stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.layers) if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.token(tokens))
        return functional.linear(self.norm(x), self.token.weight)


@dataclass
class Run:
    """One model while it trains; ``losses`` in nats a byte and ``seconds``, an entry a step."""

    config: Config
    attention: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.model = GPT(self.config, self.attention)
        if self.config.dtype == "float64":
            self.model.double()
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        rate = self.config.learning_rate
        self.optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / self.config.warm_up)
        )

    def step(self, tokens: Tensor) -> None:
        """One step of AdamW on tokens [batch, context + 1]."""
        begin = time.perf_counter()
        loss = self.loss(tokens)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - begin)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy of each byte after the first, given those before it."""
        mixed = self.config.dtype == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            logits = self.model(tokens[:, :-1])
        if mixed:
            logits = logits.float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batches(config: Config, steps: int) -> Iterable[Tensor]:
    """Random pieces [batch, context + 1] of the language reference that comes with Python, as bytes."""
    text = "".join(pydoc_data.topics.topics.values()).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(config.seed)
    places = torch.arange(config.context + 1)
    for _ in range(steps):
        first = torch.randint(len(tokens) - config.context, (config.batch, 1), generator=generator)
        yield tokens[first + places]


def train(
    config: Config,
    attentions: Sequence[str],
    steps: int,
    report: Callable[[str], None] = lambda line: None,
) -> list[Run]:
    """Train a model for each attention; they take turns, and a different one begins each step."""
    runs = [Run(config, name) for name in attentions]
    for step, tokens in enumerate(batches(config, steps)):
        first = step % len(runs)
        for run in runs[first:] + runs[:first]:
            run.step(tokens)
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            report(
                f"step {step:4d}  " + "  ".join(f"{r.attention} {r.losses[-1]:.4f}" for r in runs)
            )
    return runs


def plot(runs: Iterable[Run], path: Path) -> None:
    """Write the loss curves as a picture; its suffix says which format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        look = {"linewidth": 5, "alpha": 0.4} if run.attention == "sdpa" else {"linewidth": 1.2}
        axes.plot(range(1, len(run.losses) + 1), run.losses, label=run.attention, **look)
    axes.set(
        xlabel="step", ylabel="loss, nats a byte", title="Byte-level GPT on Python's reference"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def table(runs: Sequence[Run]) -> str:
    """Final loss (mean of the last ten steps), median time of a step, and how these compare with SDPA's."""
    sdpa = next((run for run in runs if run.attention == "sdpa"), None)
    lines = ["attention  final loss  ms a step  speed  largest difference of loss"]
    for run in runs:
        last = run.losses[-10:]
        line = (
            f"{run.attention:<9}  {sum(last) / len(last):10.4f}  {1e3 * median(run.seconds):9.1f}"
        )
        if sdpa is not None:
            speed = median(sdpa.seconds) / median(run.seconds)
            apart = max(abs(a - b) for a, b in zip(run.losses, sdpa.losses, strict=True))
            line += f"  {speed:4.2f}x  {apart:.1e}"
        lines.append(line)
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--steps", type=click.IntRange(1), default=200, help="How many steps of AdamW.")
@click.option(
    "--attention",
    "attentions",
    type=click.Choice(list(ATTENTIONS)),
    multiple=True,
    default=list(ATTENTIONS),
    help="Which attention; may be given several times.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="gpt.png",
    help="Where the plot goes.",
)
@click.option("--seed", default=0, help="Of the first weights and of the batches.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float64"]), default="float32")
def main(steps: int, attentions: tuple[str, ...], out: Path, seed: int, dtype: str) -> None:
    """Train a small GPT with each attention, print a table and draw the loss curves.

    bfloat16 means autocast: weights and their updates stay float32.
    """
    config = Config(seed=seed, dtype=dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = train(config, list(dict.fromkeys(attentions)), steps, click.echo)
    click.echo(f"\n{table(runs)}")
    plot(runs, out)
    click.echo(f"\nloss curves: {out}")


if __name__ == "__main__":
    main()
