"""The oracle against dense torch, its gradients, and the semantics of masked keys, empty rows and tensor reads."""

from __future__ import annotations

import math

import pytest
import torch

from attncompiler import oracle
from attncompiler.dsl import Tensor, Variant, causal, exp, maximum
from attncompiler.errors import MissingTensorError, OutOfRangeError, PrepareError, ShapeError


def inputs(b=2, h=4, g=2, m=5, n=7, d=8, dv=6, grad=False, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, dv)
    return tuple(
        torch.randn(s, generator=gen, dtype=torch.float64, requires_grad=grad) for s in shapes
    )


class Causal(Variant):
    def mask(self, at):
        return causal(at)


class Sink(Variant):
    sink = Tensor("h")

    def normalize(self, s, row):
        m = maximum(row.max(s), self.sink[row.h])
        e = exp(s - m)
        return e / (row.sum(e) + exp(self.sink[row.h] - m))


@pytest.mark.parametrize(
    "sizes", [{}, {"m": 1}, {"n": 1}, {"h": 3, "g": 1}, {"b": 0}, {"m": 0}, {"dv": 1}]
)
def test_default_is_scaled_dot_product_attention(sizes) -> None:
    q, k, v = inputs(**sizes)
    repeat = q.shape[1] // k.shape[1]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    )

    class Plain(Variant):
        pass

    torch.testing.assert_close(oracle.attention(Plain(), q, k, v).out, wanted)


def test_query_positions_start_at_q_start() -> None:
    q, k, v = inputs(m=7)
    whole = oracle.attention(Causal(), q, k, v)
    tail = oracle.attention(Causal(), q[:, :, 4:], k, v, q_start=4)
    torch.testing.assert_close(tail.out, whole.out[:, :, 4:])
    torch.testing.assert_close(tail.stats["lse"], whole.stats["lse"][:, :, 4:])


def test_lse_is_that_of_the_allowed_scores() -> None:
    q, k, v = inputs(h=2, g=2)
    s = q @ k.transpose(-1, -2) / math.sqrt(8)
    s = s.masked_fill(torch.ones(5, 7).triu(1).bool(), -math.inf)
    torch.testing.assert_close(oracle.attention(Causal(), q, k, v).stats["lse"], s.logsumexp(-1))


class Strict(Variant):
    """The first row sees no key."""

    def mask(self, at):
        return at.k < at.q

    def score(self, s, at):
        return s * (at.q - at.k).float().log() ** 2 + 1e4 * (at.k - at.q).clamp(min=0)


def test_empty_rows_give_zero_and_gradients_stay_finite() -> None:
    q, k, v = inputs(grad=True)
    result = oracle.attention(Strict(), q, k, v)
    assert (result.out[:, :, 0] == 0).all()
    assert (result.stats["lse"][:, :, 0] == -math.inf).all()
    result.out.square().sum().backward()
    for t in (q, k, v):
        assert t.grad is not None
        assert t.grad.isfinite().all()
    assert (q.grad[:, :, 0] == 0).all()


def test_no_keys_at_all() -> None:
    q, k, v = inputs(n=0)

    class Shifted(Variant):
        def output(self, o, at):
            return o + 1

    result = oracle.attention(Shifted(), q, k, v)
    assert (result.out == 1).all()
    assert (result.stats["lse"] == -math.inf).all()

    class Kept(Variant):
        sink = Tensor("h")

        def normalize(self, s, row):
            row.keep("top", maximum(row.max(s), self.sink[row.h]))
            return exp(s)

    sink = torch.randn(q.shape[1], dtype=torch.float64, requires_grad=True)
    stats = oracle.attention(Kept(), q, k, v, tensors={"sink": sink}).stats
    assert torch.equal(stats["top"], sink[None, :, None].expand(q.shape[:3]))


def test_gradients_reach_tensors_and_pass_gradcheck() -> None:
    q, k, v = inputs(b=1, h=2, g=1, m=3, n=4, d=2, dv=2, grad=True)
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def call(q, k, v, sink):
        return oracle.attention(Sink(), q, k, v, tensors={"sink": sink}).out

    assert torch.autograd.gradcheck(call, (q, k, v, sink))


def test_gradient_of_a_read_at_a_forbidden_pair_is_zero() -> None:
    class Bias(Variant):
        bias = Tensor("distance")

        def score(self, s, at):
            return s + self.bias[at.q - at.k]

        def mask(self, at):
            return causal(at)

    q, k, v = inputs(m=7)
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)
    oracle.attention(Bias(), q, k, v, tensors={"bias": bias}).out.square().sum().backward()
    assert (bias.grad[7:] == 0).all()
    assert (bias.grad[:7] != 0).all()
    with pytest.raises(OutOfRangeError, match="out of range") as caught:
        oracle.attention(Bias(), q, k, v, tensors={"bias": bias[:3]})
    assert isinstance(caught.value, IndexError)
    assert (
        caught.value.location.excerpt().splitlines()[0].strip()
        == "return s + self.bias[at.q - at.k]"
    )


def test_tensor_over_queries_is_read_by_row() -> None:
    class Gate(Variant):
        gate = Tensor("b", "h", "q", "d")

        def output(self, o, at):
            return o * self.gate[at.b, at.h, at.q, at.d]

    q, k, v = inputs()
    gate = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    plain = oracle.attention(Causal(), q, k, v, q_start=3).out

    class Both(Gate, Causal):
        pass

    got = oracle.attention(Both(), q, k, v, q_start=3, tensors={"gate": gate}).out
    torch.testing.assert_close(got, plain * gate)


def test_views_constants_and_scalars() -> None:
    class Views(Variant):
        table = Tensor("n", 3)
        one = Tensor()

        def score(self, s, at):
            row = self.table[at.q % 4]
            return s + row[0] + self.table[..., -1][at.k % 4] * self.one + self.table[:, 1][at.h]

    q, k, v = inputs()
    table, one = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    s = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)
    i, j = torch.arange(5).view(-1, 1), torch.arange(7)
    s = s + table[i % 4, 0] + table[j % 4, 2] * 0.5 + table[:4, 1].view(4, 1, 1)
    wanted = s.softmax(-1) @ v.repeat_interleave(2, 1)
    got = oracle.attention(Views(), q, k, v, tensors={"table": table, "one": one}).out
    torch.testing.assert_close(got, wanted)


def test_captured_torch_tensors() -> None:
    bias = torch.randn(7)

    class Captured(Variant):
        def score(self, s, at):
            return s + bias[at.q - at.k]

        def mask(self, at):
            return causal(at)

    q, k, v = inputs(h=2, g=2)
    s = q @ k.transpose(-1, -2) / math.sqrt(8)
    i, j = torch.arange(5).view(-1, 1), torch.arange(7)
    s = (s + bias.double()[(i - j).clamp(min=0)]).masked_fill(j > i, -math.inf)
    torch.testing.assert_close(oracle.attention(Captured(), q, k, v).out, s.softmax(-1) @ v)


def test_everything_is_float64_whatever_the_formula_says() -> None:
    class Narrow(Variant):
        slope: float = 0.1

        def score(self, s, at):
            return s.to(torch.bfloat16).float() - self.slope * (at.q - at.k).half() + at.q / 3

    q, k, v = inputs(h=2, g=2)
    i, j = torch.arange(5).view(-1, 1), torch.arange(7)
    s = q @ k.transpose(-1, -2) / math.sqrt(8) - 0.1 * (i - j).double()
    wanted = s.softmax(-1) @ v
    got = oracle.attention(Narrow(), q.float().double(), k, v).out
    assert got.dtype == torch.float64
    before = torch.get_default_dtype()
    s = q.float().double() @ k.transpose(-1, -2) / math.sqrt(8) - 0.1 * (i - j).double()
    torch.testing.assert_close(got, s.softmax(-1) @ v, rtol=1e-13, atol=1e-13)
    assert torch.get_default_dtype() == before
    assert not torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_yardstick_keeps_the_input_type(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in inputs())
    exact = oracle.attention(Causal(), q, k, v).out
    rough = oracle.attention(Causal(), q, k, v, dtype=None).out
    assert rough.dtype == dtype
    error = (rough - exact).abs().max()
    assert 0 < error < 16 * torch.finfo(dtype).eps


def test_parameters_and_scale_can_be_given_at_the_call() -> None:
    class Capped(Variant):
        cap: float = 2.0
        on: bool = True

        def score(self, s, at):
            return torch.where(self.on, self.cap * torch.tanh(s / self.cap), s)

    q, k, v = inputs()
    torch.testing.assert_close(
        oracle.attention(Capped(cap=0.5), q, k, v).out,
        oracle.attention(Capped(), q, k, v, params={"cap": 0.5}).out,
    )
    plain = oracle.attention(Capped(on=False), q, k, v, scale=1.0).out
    torch.testing.assert_close(
        plain, oracle.attention(Capped(on=False), q * math.sqrt(8), k, v).out
    )


class Rotated(Causal):
    """``prepare`` changes q and k and makes a tensor of its own."""

    angle: float = 0.3
    cos = Tensor("k")
    norms = Tensor("b", "g", "k")

    def prepare(self, q, k, v, cos, q_start):
        q = q * self.angle * cos[q_start : q_start + q.shape[2], None]
        k = k * cos[:, None]
        return q, k, v, {"norms": (k * k).sum(-1)}

    def score(self, s, at):
        return s - self.norms[at.b, at.g, at.k]


def test_prepare_runs_and_differentiates() -> None:
    q, k, v = inputs(grad=True)
    cos = torch.randn(7, dtype=torch.float64)
    out = oracle.attention(Rotated(angle=0.5), q, k, v, q_start=2, tensors={"cos": cos}).out
    q2, k2 = q * 0.5 * cos[2:7, None], k * cos[:, None]
    s = q2 @ k2.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)
    s = s - (k2 * k2).sum(-1).repeat_interleave(2, 1)[:, :, None]
    s = s.masked_fill(torch.arange(7) > torch.arange(2, 7).view(-1, 1), -math.inf)
    torch.testing.assert_close(out, s.softmax(-1) @ v.repeat_interleave(2, 1))
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = inputs()
    with pytest.raises(MissingTensorError, match="sink"):
        oracle.attention(Sink(), q, k, v)
    with pytest.raises(ShapeError, match="expected"):
        oracle.attention(Sink(), q, k, v, tensors={"sink": torch.zeros(3)})
    with pytest.raises(ShapeError, match="multiple of G"):
        oracle.attention(Causal(), q[:, :3], k, v)
    with pytest.raises(MissingTensorError, match="cos"):
        oracle.attention(Rotated(), q, k, v)

    class Wrong(Variant):
        def prepare(self, q, k, v):
            return q

    with pytest.raises(PrepareError, match="returned Tensor"):
        oracle.attention(Wrong(), q, k, v)


def test_samples_follow_the_declarations() -> None:
    class Sampled(Variant):
        a = Tensor("h", "n", low=0.5, high=1.0)
        i = Tensor("k", 2, dtype="int", low=3, high=5)
        t = Tensor(dtype=torch.bfloat16)
        f = Tensor("g", dtype="bool")
        n = Tensor("m", low=0.0)

    sizes = {"B": 1, "H": 4, "G": 2, "M": 3, "N": 6, "D": 8, "Dv": 8, "n": 11}
    drawn = Sampled().sample(sizes, torch.Generator().manual_seed(0))
    assert drawn["a"].shape == (4, 11)
    assert ((drawn["a"] >= 0.5) & (drawn["a"] < 1)).all()
    assert set(drawn["i"].unique().tolist()) <= {3, 4}
    assert drawn["t"].dtype == torch.bfloat16
    assert drawn["f"].dtype == torch.bool
    assert (drawn["n"] >= 0).all()
