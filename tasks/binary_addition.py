"""Binary addition: the sum of two binary numbers, units first."""

from dataclasses import dataclass
from typing import ClassVar, Self

from specreg.tasks.binary import TwoNumbers
from specreg.tasks.task import SpectralNeed

__all__ = ["BinaryAddition"]


@dataclass(frozen=True, kw_only=True)
class BinaryAddition(TwoNumbers):
    """Binary addition: the sum of two binary numbers of any length.

    Probes alignment and a carry: the digits of the numbers stand as far apart as the first is long, which varies.

    Two numbers in binary, units first, with a sign between them: n symbols, the first of 1 … n − 2 bits, the second of
    the others, each uniform from 1 up (of numbers longer than 16 bits those divisible by 2¹⁶ are left out, one in
    65,536). The answer is the sum without leading zeros, units first, and an end mark.

    Tokens: 0 and 1 the bits, 2 the sign, then 3, the query, n + 1 times, and padding on the right. Output classes:
    the bits and 2, the end mark; what follows the mark is not scored. Strings belong to splits by content.

    Sizes: lengths n uniform on 3 … 40, tested on 41 … 500; the published lengths 1 and 2, which hold no two numbers,
    are left out, and held-out strings have 4 symbols or more. Inputs (B, T) tokens, targets (B, T), 3 classes.

    Chance: measured on 4,096 examples, the share of the commonest output.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, below 3, or with none from 4.
    """

    probes: ClassVar[str] = "alignment of two strings, and a carry"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"

    @property
    def need(self) -> SpectralNeed:
        """Both numbers are kept until they are combined."""
        return SpectralNeed(memory=2 * self.longest + 1)

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 14."""
        return cls(shortest=8, longest=14, validation_examples=200, test_examples=200)

    def extent(self, length: int) -> int:
        """Return one more than the length."""
        return length + 1

    def token_name(self, token: int) -> str:
        """Return the bit, "+" for the sign, "?" for the query."""
        return "01+?"[token]

    @staticmethod
    def combine(first: int, second: int) -> int:
        """Return the sum."""
        return first + second
