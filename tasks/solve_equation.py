"""Solve equation: the unknown digit of a bracketed sum whose value is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.bracketed import Expressions
from specreg.tasks.formal_language import FormalLanguage, check_modulus
from specreg.tasks.streams import below_each, stream_keys, words
from specreg.tasks.strings import Integers, answered_once
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["SolveEquation"]


@dataclass(frozen=True, kw_only=True)
class SolveEquation(FormalLanguage):
    """Solve equation: the digit that x stands for in a bracketed sum, given its value modulo five.

    Probes nesting with an unknown: the value up to x and from x on have to meet. An expression as in
    `modular_arithmetic_brackets` with + and −, n − 2 symbols long, one digit of which is x: of a uniform symbol on, the
    first digit, from the start again after the end. "=" and the value follow, then the query, where the digit is the
    target; there is one solution.

    Tokens: 0 … p − 1 the digits, then + − ( ) x =, and p + 6, query and padding on the right. Equations belong to
    splits by content.

    Sizes: modulus 5; lengths n uniform on 3 … 40, tested on 41 … 500; the published lengths 1 and 2, which hold no
    equation, are left out. Inputs (B, T) tokens, targets (B, T) with one scored step, p classes.

    Chance: 1/p.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order or below 3, a modulus below 3 or above 100.
    """

    probes: ClassVar[str] = "nesting, with an unknown"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"
    smallest: ClassVar[int] = 3
    divisible: ClassVar[int] = 3
    """The shortest length: x = d, with three values of d or more."""

    shortest: int = 3
    """The shortest equation."""
    modulus: int = 5
    """The modulus p, and the number of digits."""

    def __post_init__(self) -> None:
        """Check the modulus, then the lengths."""
        check_modulus(self.modulus)
        super().__post_init__()

    @property
    def alphabet(self) -> int:
        """Digits and + − ( ) x =."""
        return self.modulus + 6

    @property
    def num_classes(self) -> int:
        """The digits."""
        return self.modulus

    @property
    def need(self) -> SpectralNeed:
        """The period of the sums, and a stack."""
        return SpectralNeed(memory=self.longest, periods=(self.modulus,), note="a stack: no fixed spectrum suffices")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16."""
        return cls(shortest=8, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and DeepMind's setting."""
        return {"tiny": cls.tiny(), "chomsky": cls()}

    def token_name(self, token: int) -> str:
        """Return the digit or the sign, "?" for the query."""
        return str(token) if token < self.modulus else "+-()x=?"[token - self.modulus]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed = stream_keys(self.seed, split, indices)
        chosen, most, rows = words(keyed, 0, 3), self.longest - 2, np.arange(indices.size)
        counts = self.lengths(split, chosen[:, 0]) - 2
        expressions = Expressions(words(keyed, 3, most), counts, self.modulus, 2)
        unknown = _digit_after(expressions.digits, below_each(chosen[:, 2], counts))
        expressions.settle(split, chosen[:, 1], unknown[:, None])
        answers, values = expressions.strings[rows, unknown], expressions.values()

        names = np.array([*range(self.modulus + 2), self.modulus + 6, self.modulus + 2, self.modulus + 3])
        tokens = np.full((indices.size, self.longest), self.modulus + 6)
        inside = np.arange(most) < counts[:, None]
        tokens[:, :most][inside] = names[expressions.strings[inside]]
        tokens[rows, unknown] = self.modulus + 4
        tokens[rows, counts] = self.modulus + 5
        tokens[rows, counts + 1] = values
        return answered_once(tokens, counts + 2, answers, query=self.modulus + 6, padded=self.padded)


def _digit_after(
    digits: NDArray[np.bool_],  # (B, N)
    places: Integers,  # (B,)
) -> Integers:  # (B,)
    """Return the first digit at a place or after it, the first of all where none follows."""
    later = digits & (np.arange(digits.shape[1]) >= places[:, None])
    found: Integers = np.where(later.any(axis=1), later.argmax(axis=1), digits.argmax(axis=1)).astype(np.int64)
    return found
