"""Row formulas of many normalizers with the passes and accumulators their plans should have."""

from __future__ import annotations

from dataclasses import dataclass

from formulas import (
    DOT,
    F,
    Formula,
    H,
    K,
    Q,
    S,
    call,
    exp,
    exp2,
    log,
    maximum,
    param,
    relu,
    sqrt,
    tensor,
    where,
)

from attncompiler.ir.program import Program

AL, BE, TAU, THETA = param("al"), param("be"), param("tau"), param("theta")
SINK, GATE = tensor("sink", H), tensor("gate", H, K)
IS_SINK = param("sinks", "int") > K
CAUSAL = K <= Q
TAG = tensor("tag", K, kind="int")


@dataclass(frozen=True)
class Case:
    program: Program
    passes: int
    accumulators: int


def _softmax(f: Formula, s: F = S, tag: str = "") -> tuple[F, F, F]:
    m = f.max(f"m{tag}", s)
    e = exp(s - m)
    return m, e, f.sum(f"total{tag}", e)


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}

    def add(f: Formula, passes: int, accumulators: int, weight: F | float, **slots: object) -> None:
        cases[f.name] = Case(f.program(weight, **slots), passes, accumulators)  # type: ignore[arg-type]

    f = Formula("softmax")
    m, e, total = _softmax(f)
    add(f, 1, 1, e / total, mask=CAUSAL, kept={"lse": m + log(total)})
    f = Formula("learned sink")
    m = maximum(f.max("m", S), SINK)
    e = exp(S - m)
    add(f, 1, 1, e / (f.sum("l", e) + exp(SINK - m)))
    f = Formula("off by one")
    m = maximum(f.max("m", S), 0.0)
    e = exp(S - m)
    add(f, 1, 1, e / (exp(-m) + f.sum("l", e)), mask=CAUSAL)
    add(Formula("sigmoid"), 1, 1, call("sigmoid", S), mask=CAUSAL)
    f = Formula("relu over sum")
    add(f, 1, 1, relu(S) / (f.sum("l", relu(S)) + 0.01))
    add(Formula("relu squared"), 1, 1, relu(S) * relu(S) * AL)
    f = Formula("signed")
    m = f.max("m", call("abs", S))
    e = exp(call("abs", S) - m)
    add(f, 1, 1, call("sign", S) * e / f.sum("l", e))
    f = Formula("affine-scaled")
    _, e, total = _softmax(f)
    add(f, 1, 2, AL * (e / total) + BE)
    f = Formula("centred")
    _, e, total = _softmax(f)
    add(f, 1, 2, e / total - 1.0 / (f.sum("n", 1.0) * 2.0), mask=CAUSAL)
    f = Formula("anti")
    lo = f.min("lo", S)
    add(f, 1, 1, exp(lo - S) / f.sum("l", exp(lo - S)))
    f = Formula("temperature")
    _, e, total = _softmax(f, S / TAU)
    add(f, 1, 1, e / total)
    f = Formula("temperature of a tensor")
    m = f.max("m", S)
    e = exp((S - m) * tensor("temp", H, Q))
    add(f, 1, 1, e / f.sum("l", e))
    f = Formula("clipped base 2")
    m = f.max("m", S)
    e = exp2(S - m)
    total = f.sum("l", e)
    add(f, 1, 1, e / maximum(total, 1.5), kept={"lse": m + call("log2", total)})
    f = Formula("l2-normalised")
    add(f, 1, 1, relu(S) / sqrt(f.sum("l2", relu(S) * relu(S)) + 0.001))
    f = Formula("z-scored")
    n = f.sum("n", 1.0)
    mu = f.sum("s1", S) / n
    z = (S - mu) / sqrt(f.sum("s2", S * S) / n - mu * mu + 1.0)
    add(f, 2, 1, exp(z) / f.sum("l", exp(z)))
    f = Formula("z-scored with a maximum")
    n = f.sum("n", 1.0)
    mu = f.sum("s1", S) / n
    z = (S - mu) / sqrt(f.sum("s2", S * S) / n - mu * mu + 1.0)
    _, e, total = _softmax(f, z)
    add(f, 2, 1, e / total)
    f = Formula("variance as written")
    n = f.sum("n", 1.0)
    mu = f.sum("s1", S) / n
    variance = f.sum("s2", (S - mu) * (S - mu)) / n
    _, e, total = _softmax(f, (S - mu) / sqrt(variance + 0.1))
    add(f, 3, 1, e / total)
    f = Formula("threshold on the weight")
    _, e, total = _softmax(f)
    add(f, 2, 1, relu(e / total - 0.05))
    f = Formula("top-theta on the weight")
    _, e, total = _softmax(f)
    add(f, 2, 1, where(e / total > 0.05, e / total, 0.0))
    f = Formula("top-theta on the score")
    _, e, total = _softmax(f)
    add(f, 1, 1, where(S > THETA, e / total, 0.0))
    f = Formula("log count")
    n = f.sum("n", 1.0)
    _, e, total = _softmax(f, S * log(n))
    add(f, 2, 1, e / total, mask=CAUSAL)
    f = Formula("mean of relu")
    add(f, 1, 1, relu(S) / f.sum("n", 1.0), mask=CAUSAL)
    f = Formula("uniform")
    add(f, 1, 1, 1.0 / f.sum("n", 1.0), mask=CAUSAL)
    add(Formula("nothing"), 1, 1, 0.0)
    add(Formula("constant"), 1, 1, 1.0, mask=CAUSAL)
    f = Formula("tanh")
    t = call("tanh", S)
    add(f, 1, 1, t / (f.sum("l", call("abs", t)) + 0.01))
    f = Formula("gated by a tensor")
    _, e, total = _softmax(f)
    add(f, 1, 1, GATE * e / total)
    f = Formula("gated and normalised")
    m = f.max("m", S)
    e = GATE * exp(S - m)
    add(f, 1, 1, e / f.sum("l", e))
    f = Formula("log-domain")
    m, e, total = _softmax(f)
    add(f, 1, 1, exp(S - (m + log(total))), kept={"lse": m + log(total)})
    f = Formula("two temperatures")
    _, e1, l1 = _softmax(f, S, "1")
    _, e2, l2 = _softmax(f, S * 0.5, "2")
    add(f, 1, 2, e1 / l1 - AL * (e2 / l2))
    f = Formula("product of softmaxes")
    _, e1, l1 = _softmax(f, S, "1")
    _, e2, l2 = _softmax(f, S * 0.5, "2")
    add(f, 1, 1, (e1 / l1) * (e2 / l2))
    f = Formula("two classes")
    _, e, total = _softmax(f)
    a = f.sum("a", where(IS_SINK, e, 0.0))
    add(f, 1, 2, where(IS_SINK, AL * a / total, 1.0 / (total - a * AL)) * e)
    f = Formula("four classes")
    _, e, total = _softmax(f)
    c = [f.sum(f"c{i}", where(TAG.equals(i), e, 0.0)) / total for i in range(4)]
    scaled = where(TAG.equals(2), c[2] * c[0], c[3])
    factor = where(TAG.equals(0), c[0], where(TAG.equals(1), c[1] + 1.0, scaled))
    add(f, 1, 4, factor * (e / total))
    f = Formula("a softmax for each class")
    m1 = f.max("m1", where(IS_SINK, S, float("-inf")))
    m2 = f.max("m2", where(IS_SINK, float("-inf"), S))
    l1 = f.sum("l1", where(IS_SINK, exp(S - m1), 0.0))
    l2 = f.sum("l2", where(IS_SINK, 0.0, exp(S - m2)))
    mixed = where(IS_SINK, AL * exp(S - m1) / l1, (1.0 - AL) * exp(S - m2) / l2)
    add(f, 1, 2, mixed, mask=CAUSAL)
    f = Formula("a maximum for each class")
    m1 = f.max("m1", where(IS_SINK, S, float("-inf")))
    m2 = f.max("m2", where(IS_SINK, float("-inf"), S))
    e = exp(S - where(IS_SINK, m1, m2))
    add(f, 1, 2, e / f.sum("l", e), mask=CAUSAL)
    f = Formula("maximum of maxima")
    m1 = f.max("m1", where(IS_SINK, S, float("-inf")))
    m2 = f.max("m2", where(IS_SINK, float("-inf"), S))
    e = exp(S - maximum(m1, m2))
    add(f, 1, 1, e / f.sum("l", e), mask=CAUSAL)
    f = Formula("redistribution")
    _, e, total = _softmax(f)
    p = e / total
    visual = K >= 9
    sinks = f.sum("sinks", where(IS_SINK, p, 0.0))
    rest = f.sum("rest", where(visual, p, 0.0))
    chosen = call("and", sinks / (sinks + rest) <= 0.5, rest >= 0.2)
    grown = p * (1.0 + (1.0 - AL) * sinks / rest)
    moved = where(IS_SINK, p * AL, where(visual, grown, p))
    add(f, 1, 3, where(chosen, moved, p), kept={"sinks": sinks}, mask=CAUSAL)
    f = Formula("entropy kept")
    m, e, total = _softmax(f)
    entropy = f.sum("h", e * (S - m))
    add(f, 2, 1, e / total, kept={"entropy": m * 0.0 + log(total) - entropy / total})
    f = Formula("entropy kept in one pass")
    m, e, total = _softmax(f)
    mean = f.sum("h", e * S) / total
    add(f, 1, 1, e / total, kept={"entropy": m + log(total) - mean})
    f = Formula("minus the row's mean score")
    mean = f.sum("s1", S) / f.sum("n", 1.0)
    add(f, 1, 2, (S - mean) * AL)
    f = Formula("sum of sums")
    a, b = f.sum("a", relu(S)), f.sum("b", relu(-S))
    _, e, total = _softmax(f)
    add(f, 1, 2, e / total * (a / (a + b + 1.0)) + relu(S) / (a + b + 1.0))
    f = Formula("entmax-like")
    m = f.max("m", S)
    tau = m - 2.0
    for i in range(2):
        d = relu(S - tau)
        tau = tau + (f.sum(f"f{i}", d * d) - 1.0) / (f.sum(f"g{i}", d) * 2.0 + 0.01)
    add(f, 4, 1, relu(S - tau) * relu(S - tau))
    f = Formula("masked body")
    m = f.max("m", where(TAG.equals(1), float("-inf"), S))
    e = where(TAG.equals(1), 0.0, exp(S - m))
    add(f, 1, 1, e / (f.sum("l", e) + 0.001))
    f = Formula("minus infinity in the score")
    _, e, total = _softmax(f)
    add(f, 1, 1, e / total, score=where((K % 7 > 2) & (K > 9), DOT + SINK, float("-inf")))
    f = Formula("alibi with sinks of -1e9")
    _, e, total = _softmax(f)
    add(f, 1, 1, e / total, score=where(K > 11, DOT, -1e9), mask=CAUSAL)
    f = Formula("maximum weight kept")
    _, e, total = _softmax(f)
    top = f.max("top", e / total)
    add(f, 1, 1, e / total / top, kept={"top": top})
    f = Formula("maximum of exponentials")
    m = f.max("m", S)
    top = f.max("top", exp(S - m) * 0.5)
    add(f, 1, 1, exp(S - m) / top)
    f = Formula("not vanishing")
    m = f.max("m", S)
    e = exp(tensor("bias", K) - m)
    add(f, 2, 1, e, score=where(K > 9, DOT, float("-inf")))
    f = Formula("a weight and its square")
    _, e, total = _softmax(f)
    add(f, 1, 2, (e / total) * (e / total) * AL + e / total)
    f = Formula("a weight and half of it")
    _, e, total = _softmax(f)
    add(f, 1, 1, e / total + GATE * (e / total) * 0.5 + AL * BE * e / total)
    f = Formula("redistribution in rows without keys")
    _, e, total = _softmax(f)
    sinks = f.sum("sinks", where(IS_SINK, e / total, 0.0))
    highest = f.max("highest", S - f.sum("s1", S) / f.sum("n", 1.0))
    add(
        f,
        1,
        1,
        e / (total + sinks),
        mask=K + 4 <= Q,
        kept={"sinks": sinks, "highest": highest},
    )
    f = Formula("shifted by a sum")
    e = exp(S * 0.1 - f.sum("t", S * 0.01))
    add(f, 2, 1, e / f.sum("l", e))
    f = Formula("bounded score minus a maximum")
    m = f.max("m", S)
    add(f, 2, 1, exp(call("tanh", S) - m))
    f = Formula("clamped score minus its maximum")
    m = f.max("m", call("tanh", S))
    e = exp(call("tanh", S) - m)
    add(f, 1, 1, e / f.sum("l", e))
    f = Formula("shifted by the mean")
    e = exp(S - f.sum("s1", S) / f.sum("n", 1.0))
    add(f, 2, 1, e / f.sum("l", e), mask=K + 1 <= Q)
    f = Formula("normalised by the mean magnitude")
    n = f.sum("n", 1.0)
    add(f, 1, 1, call("sign", S) * sqrt(call("abs", S) / (f.sum("a", call("abs", S)) / n + 0.1)))
    f = Formula("cube root of products")
    m = f.max("m", S)
    e = call("pow", exp(S - m), AL)
    add(f, 1, 1, e / f.sum("l", e))
    return cases


CASES = _cases()
