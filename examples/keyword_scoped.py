"""An image under conditions: a spatial one is read at the same place only, a subject only where its keyword is.

Rethinking Multi-Condition DiTs: Eliminating Redundant Attention via Position-Alignment and Keyword-Scoping (PKA, Zhou
et al., 2026, arXiv:2602.06850): image tokens read the image, token q + image of the condition and, inside the region,
the subject; tokens of the condition read themselves; those of the subject read it and the region.
"""

import torch

from attncompiler.dsl import Tensor, Variant


class KeywordScoped(Variant):
    """In the sequence stand ``image`` tokens, as many of the condition, then the subject's."""

    image: int = 40
    region = Tensor("b", "position", dtype="bool")

    def mask(self, at):
        of_image, of_subject = at.q < self.image, at.q >= 2 * self.image
        image, subject = at.k < self.image, at.k >= 2 * self.image
        aligned = (at.k == at.q + self.image) | (subject & self.region[at.b, at.q])
        scoped = subject | (image & self.region[at.b, at.k])
        return (of_image & (image | aligned)) | (of_subject & scoped) | (at.q == at.k)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"region": torch.rand(sizes["B"], length, generator=generator) < 0.4}
