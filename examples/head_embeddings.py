"""All heads share one projection; what tells them apart is a small vector each.

Multiple-head embeddings (MHE, 2023), the multiplicative form: q[h] = q * (1 + eq[h]), k[h] = k * (1 + ek[h]),
v[h] = v * (1 + ev[h]). The key's factor moves to the query and the value's to the output, so one key and one value
head serve all queries.
"""

from attncompiler.dsl import Tensor, Variant


class HeadEmbeddings(Variant):
    """Pass the shared queries once a head (``expand`` copies nothing) and one key/value head."""

    query_embedding = Tensor("h", "D")
    key_embedding = Tensor("h", "D")
    value_embedding = Tensor("h", "d")

    def prepare(self, q, k, v, query_embedding, key_embedding):
        factor = (1 + query_embedding) * (1 + key_embedding)
        return q * factor[:, None].to(q.dtype), k, v

    def output(self, o, at):
        return o * (1 + self.value_embedding[at.h, at.d])
