"""Recordings of several channels: content, time distance and channel distance each have a say.

Multi-variate parallel attention (MVPA, 2025): for tokens t * channels + c,
s = [near * (q + u) . k + (q + y) . r[tq - tk] + (q + z) . e[abs(cq - ck)]] / sqrt(D), causal in time; the content
term is 0, not masked, when the times lie more than ``reach`` apart, except for the last time.
"""

from attncompiler.dsl import Tensor, Variant, where


class Multivariate(Variant):
    """``u``, ``y`` and ``z`` are learned; ``r`` and ``e`` embed the distances in time and between channels."""

    channels = 4
    reach: int = 10
    u, y, z = Tensor("g", "D"), Tensor("g", "D"), Tensor("g", "D")
    r, e = Tensor("times", "D"), Tensor(4, "D")
    time_term = Tensor("b", "h", "q", "times")
    channel_term = Tensor("b", "h", "q", 4)

    def prepare(self, q, k, v, u, y, z, r, e):
        def moved(x):
            return q + x.to(q.dtype).repeat_interleave(q.shape[1] // x.shape[0], 0)[:, None]

        root = q.shape[-1] ** 0.5
        time, channel = moved(y) @ r.to(q.dtype).T, moved(z) @ e.to(q.dtype).T
        return moved(u), k, v, {"time_term": time / root, "channel_term": channel / root}

    def score(self, s, at):
        time, elapsed = at.q // self.channels, at.q // self.channels - at.k // self.channels
        near = (elapsed <= self.reach) | (time == (at.N - 1) // self.channels)
        apart = abs(at.q % self.channels - at.k % self.channels)
        time_term = self.time_term[at.b, at.h, at.q, elapsed]
        return where(near, s, 0.0) + time_term + self.channel_term[at.b, at.h, at.q, apart]

    def mask(self, at):
        return at.k // self.channels <= at.q // self.channels

    def sample(self, sizes, generator):
        return super().sample(sizes | {"times": sizes["q_start"] + sizes["M"]}, generator)
