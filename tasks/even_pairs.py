"""Even pairs: whether a bit string changes an even number of times."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import TwoLayouts
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["EvenPairs"]


@dataclass(frozen=True, kw_only=True)
class EvenPairs(TwoLayouts):
    """Even pairs: whether 01 and 10 together stand an even number of times in a uniform bit string.

    Probes memory more than state: the string changes an even number of times exactly if its last bit is its first. The
    answer is 0 for even, 1 for odd.

    Variants: "xlstm" (tokens 0 padding, 1 and 2 the bits and the answers; a length counts the answer, which is the
    target of the last bit) and "chomsky" (tokens 0 and 1, then the query 2, where the class is the target). Padding
    stands on the right. Strings belong to splits by content.

    Sizes: lengths uniform on 3 … 40, tested on 40 … 256 (xLSTM), or uniform on 1 … 40, tested on 41 … 500 (DeepMind).
    Inputs (B, T) tokens, targets (B, T) with one scored step, 3 classes in "xlstm", 2 in "chomsky".

    Chance: 1/2 (a single bit is always even: held-out strings have two or more).

    Source: Delétang et al. (2022), arXiv:2207.02098 (DeepMind); Beck et al. (2024), arXiv:2405.04517 (xLSTM).

    Raises ValueError for lengths out of order, for no string to hold out, and for another variant.
    """

    probes: ClassVar[str] = "memory of the first symbol, in the guise of counting"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098; Beck et al. 2024, arXiv:2405.04517"
    alphabet: ClassVar[int] = 2
    """Two bits."""
    answers: ClassVar[int] = 2
    """Even and odd."""

    @property
    def need(self) -> SpectralNeed:
        """The first bit is kept to the end."""
        return SpectralNeed(memory=self.longest, note="the first bit against the last; or the period 2 of the changes")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16."""
        return cls(shortest=8, longest=16, validation_examples=200, test_examples=200)

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return 1 where the last bit is not the first."""
        last = strings[np.arange(counts.size), counts - 1]
        return strings[:, 0] ^ last
