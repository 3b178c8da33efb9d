"""Windows of an image, shifted by half a window in every other layer, with a learned bias a distance.

Swin Transformer (Liu et al., 2021, arXiv:2103.14030): s + table[h, dy, dx]; q and k share a window when
(y - shift) // window and (x - shift) // window agree. The paper rolls the image and masks what wrapped around; without
the roll it is the same set of pairs.
"""

from attncompiler.dsl import Tensor, Variant


class Swin(Variant):
    """``table`` holds the distances -(window - 1) .. window - 1 on both axes; ``shift`` is 0 or window // 2."""

    width = 16
    window = 4
    sample_lengths = 16 * 16
    shift: int = 2
    table = Tensor("h", 7, 7)

    def score(self, s, at):
        dy = at.q // self.width - at.k // self.width + self.window - 1
        dx = at.q % self.width - at.k % self.width + self.window - 1
        return s + self.table[at.h, dy, dx]

    def mask(self, at):
        same_row = self.of(at.q // self.width) == self.of(at.k // self.width)
        return same_row & (self.of(at.q % self.width) == self.of(at.k % self.width))

    def of(self, position):
        return (position - self.shift) // self.window
