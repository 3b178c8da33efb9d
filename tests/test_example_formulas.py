"""Examples against what their papers say, written a second time in plain PyTorch, another way round than the file.

Where an example applies an identity (absorbed projections, a bias instead of a rescaled weight, a mask instead of
rolled windows), the form here is the one before the identity.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.variant_file import load_variant
from tests.example_table import EXAMPLES

Tensors = dict[str, Tensor]
M = 128  # queries and keys; eight rows of an image 16 wide


def dots(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def causal_dots(q: Tensor, k: Tensor) -> Tensor:
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return dots(q, k).masked_fill(future, -math.inf)


def distances() -> Tensor:
    """q - k of every pair."""
    return torch.arange(M)[:, None] - torch.arange(M)


def form_cog(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    s = dots(q, k)
    size = s.abs().masked_fill(distances() < 0, -math.inf)
    return (s.sign() * size.softmax(-1)) @ v


def form_reluformer(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    visible = torch.arange(1, M + 1)[:, None]
    return (dots(q, k).clamp(min=0).tril() / (visible / 2).sqrt()) @ v


def form_softmax_off_by_one(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    nothing = torch.zeros(*q.shape[:3], 1)
    return torch.cat((nothing, causal_dots(q, k)), -1).softmax(-1)[..., 1:] @ v


def form_kv_bias(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    extra_key, extra_value = t["key_bias"][:, None], t["value_bias"][:, None]
    s = torch.cat((dots(q, extra_key), causal_dots(q, k)), -1)
    values = torch.cat((extra_value.expand(len(q), -1, -1, -1), v), 2)
    return s.softmax(-1) @ values


def form_zero_tuning(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    p = causal_dots(q, k).softmax(-1)
    p[..., 0] *= t["gain"][:, None]
    return p / p.sum(-1, keepdim=True) @ v


def form_visual_redistribution(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    p = causal_dots(q, k).softmax(-1)
    for batch, kind in zip(p, t["kind"], strict=True):
        for row in batch.flatten(0, 1):
            image, sink, other = row[kind > 0].sum(), row[kind == 1].sum(), row[kind == 2].sum()
            if image >= 0.2 and sink / image <= 0.5:
                row[kind == 2] += row[kind == 2] / other * (1 - 0.6) * sink
                row[kind == 1] *= 0.6
    return p @ v


def form_sink_calibration(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    p = causal_dots(q, k).softmax(-1)
    sink = t["sink"][:, :, None]
    freed = (p * sink * (1 - 0.4)).sum(-1, keepdim=True)
    others = p * ~sink
    return (p * sink * 0.4 + others + freed * normalize(others, p=1, dim=-1)) @ v


def form_affine_scaled(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    alpha, average = t["alpha"][..., None], t["average"][:, None, None]
    beta = (average - alpha) / t["length"][:, None]
    return alpha * (causal_dots(q, k).softmax(-1) @ v) + beta * v.cumsum(2)


def form_top_theta(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    s = causal_dots(q, k)
    kept = (s > t["theta"][..., None]) | (torch.arange(M) < 16)[:, None]
    p = s.softmax(-1) * kept
    mean = v.cumsum(2) / torch.arange(1, M + 1)[:, None]
    return p @ v + (1 - p.sum(-1, keepdim=True)) * mean


def form_latent_attention(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    # W[h] turns a latent into the key of head h: the form used in training.
    keys = torch.einsum("hdc,bhkc->bhkd", t["weight"], k)
    key_rope = t["key_rope"].repeat_interleave(q.shape[1] // t["key_rope"].shape[1], 1)
    s = causal_dots(torch.cat((q, t["query_rope"]), -1), torch.cat((keys, key_rope), -1))
    return s.softmax(-1) @ k


def form_head_embeddings(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    eq, ek, ev = (t[f"{n}_embedding"][:, None] for n in ("query", "key", "value"))
    return dots(q * (eq + 1), k * (ek + 1)).softmax(-1) @ (v * (ev + 1))


def form_l2_distance(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    return (-torch.cdist(q, k).square() / math.sqrt(q.shape[-1])).softmax(-1) @ v


def form_hyperbolic(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    def lift(x: Tensor) -> Tensor:
        return torch.cat(((1 + x.square().sum(-1, keepdim=True)).sqrt(), x), -1)

    metric = torch.ones(q.shape[-1] + 1)
    metric[0] = -1
    weight = (-torch.acosh(-(lift(q) * metric) @ lift(k).transpose(-1, -2))).exp()
    klein = v / lift(v)[..., :1]
    lorentz = (1 - klein.square().sum(-1)).rsqrt()[:, :, None]
    return weight * lorentz @ klein / (weight * lorentz).sum(-1, keepdim=True)


def form_adaptive_filter(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    mu, sigma2, eta2, gamma2, nu, tau = (
        t[n][:, None, None] for n in ("mu", "sigma2", "eta2", "gamma2", "nu", "tau")
    )
    decay = (mu * distances().abs()).exp()
    noise = sigma2 * (1 - decay**2) / (-2 * mu) + eta2 * decay**2 + gamma2
    misfit = (q[:, :, :, None] - decay[..., None] * k[:, :, None]).square().sum(-1)
    s = -(tau**2) * (noise * (1 + misfit / (nu * q.shape[-1] * noise))).log()
    return (s.softmax(-1) * decay) @ v


def form_forgetting(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    # A recurrence: with each step, every past key fades by the new gate.
    gates, s = t["forget"].sigmoid(), dots(q, k)
    faded, rows = torch.zeros(*q.shape[:2], M), []
    for i in range(M):
        faded = faded * gates[..., i : i + 1]
        faded[..., i] = 1
        weight = faded[..., : i + 1] * s[:, :, i, : i + 1].exp()
        rows.append(normalize(weight, p=1, dim=-1)[..., None, :] @ v[:, :, : i + 1])
    return torch.cat(rows, 2)


def form_multivariate(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    group = q.shape[1] // t["u"].shape[0]
    u, y, z = (t[n].repeat_interleave(group, 0)[:, None] for n in "uyz")
    time, channel = torch.arange(M) // 4, torch.arange(M) % 4
    elapsed = time[:, None] - time
    r, e = t["r"][elapsed.clamp(min=0)], t["e"][(channel[:, None] - channel).abs()]
    near = (elapsed.abs() <= 10) | (time == time[-1])[:, None]
    s = (q + u) @ k.transpose(-1, -2) * near
    s = s + torch.einsum("bhqd,qkd->bhqk", q + y, r) + torch.einsum("bhqd,qkd->bhqk", q + z, e)
    s = (s / math.sqrt(q.shape[-1])).masked_fill(elapsed < 0, -math.inf)
    return s.softmax(-1) @ v


def form_swat(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    half = q.shape[-1] // 2
    turn = torch.polar(torch.ones(1), torch.arange(M)[:, None] / 1e4 ** (torch.arange(half) / half))

    def rotated(x: Tensor) -> Tensor:
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    s = dots(rotated(q), rotated(k)) + t["slope"][:, None, None] * distances()
    return (s.sigmoid() * ((distances() >= 0) & (distances() < 64))) @ v


def form_t5_bias(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    starts = [16 * 8 ** (i / 16) for i in range(1, 16)]  # where each bucket after the 17th begins

    def bucket(n: int) -> int:
        return min(n, 16) if n < 17 else 16 + sum(n >= start for start in starts)

    buckets = torch.tensor([[bucket(max(i - j, 0)) for j in range(M)] for i in range(M)])
    s = causal_dots(q, k) * math.sqrt(q.shape[-1]) + t["table"][:, buckets]
    return s.softmax(-1) @ v


def form_dynamic_mask(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    bias = t["bias"].repeat_interleave(q.shape[1] // t["bias"].shape[1], 1)
    out = []
    for i in range(M):
        best = bias[..., : i + 1].topk(min(32, i + 1))
        s = dots(q[:, :, i : i + 1], k).squeeze(2).gather(-1, best.indices) + best.values
        rows = v.gather(2, best.indices[..., None].expand(*best.indices.shape, v.shape[-1]))
        out.append(s.softmax(-1)[..., None, :] @ rows)
    return torch.cat(out, 2)


def form_neighborhood_2d(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    out = []
    for i in range(M):
        y, x = (min(max(c - 3, 0), 16 - 7) for c in divmod(i, 16))
        keys = [j for r in range(y, y + 7) for j in range(16 * r + x, 16 * r + x + 7) if j < M]
        out.append(dots(q[:, :, i : i + 1], k[:, :, keys]).softmax(-1) @ v[:, :, keys])
    return torch.cat(out, 2)


def form_swin(q: Tensor, k: Tensor, v: Tensor, t: Tensors) -> Tensor:
    def cut(x: Any) -> Any:
        """[B, H, windows, 16, C]: the image rolled by half a window, then cut into 4 x 4 windows."""
        image = x.unflatten(2, (M // 16, 16)).roll((-2, -2), (2, 3))
        windows = image.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).transpose(3, 4)
        return windows.flatten(4, 5).flatten(2, 3)

    # Numbers of the regions that the roll brought together; a pair of two of them is masked.
    row, column = torch.arange(M) // 16, torch.arange(M) % 16
    region = cut((2 * (row < 2) + (column < 2)).double()[None, None, :, None])[0, 0, :, :, 0]
    y, x = torch.arange(16) // 4, torch.arange(16) % 4
    bias = t["table"][:, None, y[:, None] - y + 3, x[:, None] - x + 3]
    s = dots(cut(q), cut(k)) + bias
    out: Any = s.masked_fill(region[:, :, None] != region[:, None], -math.inf).softmax(-1) @ cut(v)
    image: Tensor = out.unflatten(3, (4, 4)).unflatten(2, (-1, 4)).transpose(3, 4)
    whole: Tensor = image.flatten(4, 5).flatten(2, 3).roll((2, 2), (2, 3))
    return whole.flatten(2, 3)


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensors], Tensor]] = {
    name.removeprefix("form_"): function
    for name, function in inspect.getmembers(inspect.getmodule(dots), inspect.isfunction)
    if name.startswith("form_")
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_example_is_what_its_paper_says(name: str) -> None:
    checker = Checker(load_variant(EXAMPLES / f"{name}.py"))
    q, k, v, tensors = checker.inputs(Case(B=2, H=4, G=2, M=M, N=M, D=16, Dv=24, seed=7))
    found = checker.operator(q, k, v, **tensors)
    wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    torch.set_default_dtype(torch.float64)
    try:
        keys, values = (x.double().repeat_interleave(2, 1) for x in (k, v))
        expected = FORMULAS[name](q.double(), keys, values, wide)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
