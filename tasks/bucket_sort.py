"""Bucket sort: the symbols of a string in order."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import StringToString
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["BucketSort"]


@dataclass(frozen=True, kw_only=True)
class BucketSort(StringToString):
    """Bucket sort: the uniform symbols of a string in ascending order.

    Probes counters: how often each symbol occurs is enough, and the order does not matter.

    Tokens: 0 … A − 1 the symbols, A the query, one for each symbol of the answer, and padding on the right. Strings
    belong to splits by content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), A classes; A = 5, n of
    the 2n steps scored.

    Chance: 1/A: in the answer every symbol is as frequent as in the string.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, for no string to hold out, and for fewer than 2 symbols.
    """

    probes: ClassVar[str] = "counters: how often each symbol occurs"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"

    symbols: int = 5
    """Input symbols A."""

    @property
    def alphabet(self) -> int:
        """The input symbols."""
        return self.symbols

    @property
    def need(self) -> SpectralNeed:
        """A sum for each symbol."""
        return SpectralNeed(memory=2 * self.longest, note="counters: eigenvalues 1")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 6 … 12."""
        return cls(shortest=6, longest=12, validation_examples=200, test_examples=200)

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the strings sorted."""
        outside = np.arange(self.longest) >= counts[:, None]
        return np.sort(strings + self.symbols * outside, axis=1), counts
