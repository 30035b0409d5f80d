"""Reverse string: the string, last symbol first."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import StringToString
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["ReverseString"]


@dataclass(frozen=True, kw_only=True)
class ReverseString(StringToString):
    """Reverse string: the uniform symbols of a string in the opposite order.

    Probes a stack: what came last is wanted first, and everything is kept until its turn.

    Tokens: 0 … A − 1 the symbols, A the query, one for each symbol of the answer, and padding on the right. Strings
    belong to splits by content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), A classes; A = 2, n of
    the 2n steps scored.

    Chance: 1/A.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, for no string to hold out, and for fewer than 2 symbols.
    """

    probes: ClassVar[str] = "a stack: last in, first out"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"

    symbols: int = 2
    """Input symbols A."""

    @property
    def alphabet(self) -> int:
        """The input symbols."""
        return self.symbols

    @property
    def need(self) -> SpectralNeed:
        """Symbol i of n is wanted 2(n − i) + 1 steps later."""
        return SpectralNeed(memory=2 * self.longest, note="a stack: lags of 1, 3, …, twice the length")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 6 … 12."""
        return cls(shortest=6, longest=12, validation_examples=200, test_examples=200)

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the strings in reverse."""
        places = (counts[:, None] - 1 - np.arange(self.longest)) % self.longest
        return np.take_along_axis(strings, places, axis=1), counts
