"""Modular arithmetic without brackets: products before sums, modulo five."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.formal_language import TwoLayouts, check_modulus
from specreg.tasks.streams import below_each, words
from specreg.tasks.strings import (
    Integers,
    Words,
    answered_once,
    code_width,
    follow,
    real,
    settle,
    symbols,
)
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["ModularArithmetic"]

_OPERATORS = "+-×"


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(TwoLayouts):
    """Modular arithmetic without brackets: the value modulo five of digits joined by +, − and ×, × binding first.

    Probes state tracking with products: the state is a sum and the signed product that is still growing, and × maps it
    in ways that a sum of periods cannot. k uniform digits and k − 1 uniform operators.

    Variants: "xlstm" (tokens 0 padding, 1 +, 2 −, 3 ×, 4 =, 5 … the digits; "=" follows the expression and its target
    is the answer's digit; a length counts both, is 2k + 1, and uniform on the odd lengths) and "chomsky" (tokens 0 …
    p − 1 the digits, p +, p + 1 −, p + 2 ×, p + 3 unused, then the query p + 4, where the value is the target; a length
    2k − 1, drawn uniformly and, when even, reduced by one). Padding stands on the right. Expressions belong to splits
    by content.

    Sizes: modulus 5; lengths 3 … 40, tested on 40 … 256 (xLSTM), or 1 … 40, tested on 41 … 500 (DeepMind). Inputs
    (B, T) tokens, targets (B, T) with one scored step, p + 5 classes in "xlstm", p in "chomsky".

    Chance: `chance` is exact, the share of answer 0, from the distribution of the state: a little over 1/p, since
    products with a 0 are 0.

    Defects: xLSTM's code rounds an even lower bound down, so its test on 40 … 256 has length 39, which is trained on:
    `faithful`. DeepMind's holds its operators in a generator that is empty when the function is traced for a second
    length, which stops the program and is not reproduced.

    Source: Beck et al. (2024), arXiv:2405.04517 (xLSTM); Delétang et al. (2022), arXiv:2207.02098 (DeepMind).

    Raises ValueError for lengths out of order or too short, another variant, a modulus below 3 or above 100,
    and `faithful` in "chomsky".
    """

    probes: ClassVar[str] = "state tracking with products, modulo a small number"
    source: ClassVar[str] = "Beck et al. 2024, arXiv:2405.04517; Delétang et al. 2022, arXiv:2207.02098"

    modulus: int = 5
    """The modulus p, and the number of digits."""
    faithful: bool = False
    """Whether an even shortest length in "xlstm" is rounded down, as published, and not up."""

    def __post_init__(self) -> None:
        """Check the modulus, then the lengths."""
        check_modulus(self.modulus)
        if self.faithful and self.variant != "xlstm":
            raise ValueError(f"faithful is set in the variant {self.variant!r}; the defect is that of 'xlstm'")
        super().__post_init__()

    @property
    def alphabet(self) -> int:
        """Digits, operators and one more: "=", or the blank that no expression has."""
        return self.modulus + 4

    @property
    def answers(self) -> int:
        """The residues."""
        return self.modulus

    @property
    def first_answer(self) -> int:
        """The class of residue 0, its digit in "xlstm"."""
        return 5 if self.variant == "xlstm" else 0

    @property
    def slots(self) -> int:
        """In "xlstm" two steps, "=" and the answer."""
        return 2 if self.variant == "xlstm" else 0

    @property
    def max_length(self) -> int:
        """The longest expression and what follows it."""
        return 2 * self._digits(self.longest)

    @property
    def chance(self) -> float:
        """The share of the commonest answer, exact."""
        if self.variant == "xlstm":
            digits = [*range(self._fewest("test"), self._digits(self.longest) + 1)]
        else:
            digits = [self._digits(length) for length in self.held_out]
        return _commonest(self.modulus, tuple(digits))

    @property
    def need(self) -> SpectralNeed:
        """The period of the sum; the products need more."""
        note = "sums track the period; products make the maps affine, not commutative"
        return SpectralNeed(memory=self.longest, periods=(self.modulus,), note=note)

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 7 … 16."""
        return cls(shortest=7, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the setting of xLSTM's code and DeepMind's."""
        xlstm = cls(validation_examples=8192, test_examples=8192)
        return {"tiny": cls.tiny(), "xlstm": xlstm, "chomsky": cls(variant="chomsky", shortest=1)}

    def token_name(self, token: int) -> str:
        """Return the digit or the sign, "·" for padding, "?" for the query."""
        if self.variant == "xlstm":
            return str(token - 5) if token >= 5 else f"·{_OPERATORS}="[token]
        return str(token) if token < self.modulus else f"{_OPERATORS}_?"[token - self.modulus]

    def strings(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, N), (B,)
        """Return expressions, 0 outside: the digits, then p, p + 1 and p + 2 for the operators; and their lengths."""
        chosen, most = words(keyed, 0, 2), self._digits(self.longest)
        digits = self._numbers(split, chosen[:, 0])
        filler = -(-most // 2)
        strings = np.empty((keyed.size, 2 * most - 1), dtype=np.int64)
        strings[:, ::2] = symbols(keyed, 2, most, self.modulus)
        strings[:, 1::2] = self.modulus + symbols(keyed, 2 + filler, most - 1, 3)
        counts = 2 * digits - 1
        strings *= real(counts, strings.shape[1])
        width = min(code_width(self.modulus), most)
        places = np.broadcast_to(2 * np.arange(width), (keyed.size, width))
        settle(split, chosen[:, 1], strings, counts, self.modulus, places, np.minimum(digits, width))
        return strings, counts

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return the values, by an automaton that reads an operator and a digit at a time."""
        modulus = self.modulus
        pairs = (strings[:, 1::2] - modulus) * modulus + strings[:, 2::2]
        letters = np.concatenate([strings[:, :1], pairs], axis=1)
        last = follow(_automaton(modulus), letters)[np.arange(counts.size), counts // 2]
        value: Integers = (last // modulus + last) % modulus
        return value

    def lay_out(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
        answers: Integers,  # (B,)
    ) -> Batch:
        """Return the batch in the layout of the variant, "=" after each expression in "xlstm"."""
        if self.variant != "xlstm":
            return super().lay_out(strings, counts, answers)
        names = np.array([*range(5, 5 + self.modulus), 1, 2, 3])
        tokens = np.zeros((len(strings), strings.shape[1] + 1), dtype=np.int64)
        tokens[:, :-1] = names[strings] * real(counts, strings.shape[1])
        tokens[np.arange(counts.size), counts] = 4
        return answered_once(tokens, counts + 1, answers + 5, query=None, padded=self.padded)

    def _digits(self, length: int) -> int:
        """Return how many digits an expression of a length has, the length reduced by one where it is even."""
        return (length - 1) // 2 if self.variant == "xlstm" else (length + 1) // 2

    def _fewest(self, split: Split) -> int:
        """Return the fewest digits in "xlstm"."""
        shortest = self.shortest if split == "train" else self.held_out.start
        fewest = (shortest - 1) // 2 if self.faithful else shortest // 2
        return min(fewest, self._digits(self.longest))

    def _numbers(
        self,
        split: Split,
        draws: Words,  # (B,)
    ) -> Integers:  # (B,)
        """Return how many digits each expression has."""
        if self.variant != "xlstm":
            return (self.lengths(split, draws) + 1) // 2
        fewest = self._fewest(split)
        return fewest + below_each(draws, self._digits(self.longest) - fewest + 1)


def _automaton(modulus: int) -> Integers:
    """Return the table (p², 3p): a state is p·sum + growing product, a letter p·operator + digit; start at 0."""
    total, product = np.divmod(np.arange(modulus**2), modulus)
    digit = np.arange(modulus)
    added = (total + product)[:, None] % modulus * modulus
    plus, minus = added + digit, added + -digit % modulus
    times = total[:, None] * modulus + product[:, None] * digit % modulus
    return np.concatenate([plus, minus, times], axis=1)


@lru_cache(maxsize=64)
def _commonest(modulus: int, digits: tuple[int, ...]) -> float:
    """Return the share of the commonest value of expressions whose numbers of digits are equally often these."""
    table = _automaton(modulus)
    states: NDArray[np.float64] = np.zeros(modulus**2)
    states[:modulus] = 1 / modulus
    total, product = np.divmod(np.arange(modulus**2), modulus)
    values = np.zeros(modulus)
    for count in range(1, max(digits) + 1):
        values += digits.count(count) * np.bincount((total + product) % modulus, states, modulus)
        shares = np.repeat(states / table.shape[1], table.shape[1])
        states = np.bincount(table.ravel(), shares, modulus**2).astype(np.float64)
    return float(values.max() / len(digits))
