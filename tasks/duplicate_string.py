"""Duplicate string: the string, twice."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import StringToString
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["DuplicateString"]


@dataclass(frozen=True, kw_only=True)
class DuplicateString(StringToString):
    """Duplicate string: the uniform symbols of a string, repeated twice without a separator.

    Probes a queue: every symbol is wanted as many steps later as the string is long, and again as many after that.

    Tokens: 0 … A − 1 the symbols, A the query, one for each symbol of the answer, and padding on the right. Strings
    belong to splits by content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), A classes; A = 2, the
    last 2n of the 3n steps scored.

    Chance: 1/A.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, for no string to hold out, and for fewer than 2 symbols.
    """

    probes: ClassVar[str] = "a queue: exact repetition"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"

    symbols: int = 2
    """Input symbols A."""

    @property
    def alphabet(self) -> int:
        """The input symbols."""
        return self.symbols

    @property
    def need(self) -> SpectralNeed:
        """Symbols are wanted one length and two lengths later."""
        lags = (self.longest, 2 * self.longest) if not self.padded else ()
        return SpectralNeed(memory=3 * self.longest, lags=lags)

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 6 … 12."""
        return cls(shortest=6, longest=12, validation_examples=200, test_examples=200)

    def extent(self, length: int) -> int:
        """Return twice the length."""
        return 2 * length

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the strings twice."""
        places = np.arange(2 * self.longest) % counts[:, None]
        return np.take_along_axis(strings, places, axis=1), 2 * counts
