"""Square root: the integer root of a binary number."""

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.binary import digits_of, integers, low_bits, write_low
from specreg.tasks.formal_language import StringToString, measured_chance
from specreg.tasks.streams import words
from specreg.tasks.strings import Integers, Words, bits, digest, real, share
from specreg.tasks.task import SpectralNeed, Split

__all__ = ["SquareRoot"]


@dataclass(frozen=True, kw_only=True)
class SquareRoot(StringToString):
    """Square root: the largest integer whose square is at most a binary number.

    Probes arithmetic that is not done digit by digit in one pass. A number uniform from 1 up in n bits, leading zeros
    included, the highest bit first (of numbers longer than 16 bits those divisible by 2¹⁶ are left out, one in 65,536);
    the answer is the root in ⌈n/2⌉ bits, the highest first.

    Tokens: 0 and 1 the bits, then 2, the query, ⌈n/2⌉ times, and padding on the right. Strings belong to splits by
    content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), 2 classes.

    Chance: measured on 4,096 examples, the share of the commonest bit, 1: the highest bit of most roots.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order or with none from 2.
    """

    probes: ClassVar[str] = "arithmetic beyond one pass over the string"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"
    alphabet: ClassVar[int] = 2
    """Two bits."""

    @property
    def chance(self) -> float:
        """Measured: the share of the commonest bit among the outputs of 4,096 examples."""
        return measured_chance(self)

    @property
    def need(self) -> SpectralNeed:
        """The number is kept until its root is out."""
        return SpectralNeed(memory=self.longest + self.extent(self.longest))

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 12 … 18."""
        return cls(shortest=12, longest=18, validation_examples=200, test_examples=200)

    def extent(self, length: int) -> int:
        """Return half the length, rounded up."""
        return -(-length // 2)

    def strings(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, N), (B,)
        """Return the numbers, the highest bit first, 0 outside, and their lengths; the low part is the code."""
        chosen, most = words(keyed, 0, 2), self.longest
        counts = self.lengths(split, chosen[:, 0])
        sizes = low_bits(counts)
        digits = bits(words(keyed, 2, -(-most // 64)), most) * real(counts, most)
        write_low(digits, np.zeros_like(counts))
        content = (digest(digits, counts) % sizes.astype(np.uint64)).astype(np.int64)
        write_low(digits, 1 + (share(split, chosen[:, 1], sizes) + content) % sizes)
        return _turned(digits, counts), counts

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the roots, the highest bit first."""
        roots = [isqrt(number) for number in integers(_turned(strings, counts))]
        widths = -(-counts // 2)
        return _turned(digits_of(roots, self.extent(self.longest)), widths), widths


def _turned(
    digits: Integers,  # (B, N)
    counts: Integers,  # (B,)
) -> Integers:  # (B, N)
    """Return the first `counts` digits of each row in the opposite order, 0 beyond."""
    steps = digits.shape[1]
    places = (counts[:, None] - 1 - np.arange(steps)) % steps
    return np.take_along_axis(digits, places, axis=1) * real(counts, steps)
