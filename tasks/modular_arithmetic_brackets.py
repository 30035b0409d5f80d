"""Modular arithmetic with brackets: the value of a fully bracketed expression, modulo five."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.bracketed import Expressions, commonest
from specreg.tasks.formal_language import FormalLanguage, Variant, check_modulus, check_variant
from specreg.tasks.streams import stream_keys, words
from specreg.tasks.strings import Integers, Words, answered_once, real
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["ModularArithmeticBrackets"]


@dataclass(frozen=True, kw_only=True)
class ModularArithmeticBrackets(FormalLanguage):
    """Modular arithmetic with brackets: the value modulo five of a fully bracketed expression with +, − and ×.

    Probes nesting: a stack of unfinished sums, as deep as the brackets, which no fixed spectrum holds. Up to four
    symbols an expression is d, −d, (d) or (−d) with a uniform digit d; a longer one is (L∘R) with a uniform operator
    and the length of L uniform on what fits.

    Tokens: 0 … p − 1 the digits, then + − × ( ), p + 5 "=", p + 6 padding and query. Variants: "xlstm" ("=" follows
    and its target is the digit of the value; a length counts the expression, "=", the answer and one padding, and is 5
    at least, so of 3 … 40 a shorter one becomes 5) and "chomsky" (the query follows, where the value is the target; a
    length is the expression's). Padding stands on the right. Expressions belong to splits by content.

    Sizes: modulus 5; lengths 3 … 40, tested on 40 … 256 (Grazzi et al.), or 1 … 40, tested on 41 … 500 (DeepMind).
    Inputs (B, T) tokens, targets (B, T) with one scored step, p + 7 classes in "xlstm", p in "chomsky".

    Chance: 1/p without `multiplication`; with it exact, by the grammar's recursion, the share of 0.

    Source: Delétang et al. (2022), arXiv:2207.02098 (DeepMind, with ×); Grazzi et al. (2024), arXiv:2411.12537, in
    xLSTM's layout (with + and − alone, as their settings leave it; a copy of their code has × as the default).

    Raises ValueError for lengths out of order or too short, another variant, a modulus below 3 or above 100.
    """

    probes: ClassVar[str] = "nesting: a stack of unfinished sums"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098; Grazzi et al. 2024, arXiv:2411.12537"

    variant: Variant = "xlstm"
    """Whose layout: "xlstm" or "chomsky"."""
    shortest: int = 3
    """The shortest length."""
    modulus: int = 5
    """The modulus p, and the number of digits."""
    multiplication: bool = True
    """Whether × is among the operators."""

    def __post_init__(self) -> None:
        """Check the modulus, then the lengths."""
        check_modulus(self.modulus)
        check_variant(self.variant)
        super().__post_init__()

    @property
    def alphabet(self) -> int:
        """Digits, three operators, two brackets and "="; padding or the query is one more."""
        return self.modulus + 6

    @property
    def num_classes(self) -> int:
        """All tokens in "xlstm", the residues in "chomsky"."""
        return self.vocab_size if self.variant == "xlstm" else self.modulus

    @property
    def divisible(self) -> int:
        """The shortest length there is: one digit has three values or more."""
        return 3 if self.variant == "xlstm" else 1

    @property
    def max_length(self) -> int:
        """The longest expression and "=" or the query."""
        return self._symbols(self.longest) + 1

    @property
    def chance(self) -> float:
        """The share of the commonest value, exact."""
        if not self.multiplication:
            return 1 / self.modulus
        return commonest(self.modulus, tuple(self._symbols(length) for length in self.held_out))

    @property
    def need(self) -> SpectralNeed:
        """The period of the sums, and a stack."""
        return SpectralNeed(memory=self.longest, periods=(self.modulus,), note="a stack: no fixed spectrum suffices")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16 with + and −."""
        return cls(shortest=8, longest=16, multiplication=False, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the setting of Grazzi et al., "unlocking", and DeepMind's."""
        unlocking = cls(multiplication=False, validation_examples=8192, test_examples=8192)
        return {"tiny": cls.tiny(), "unlocking": unlocking, "chomsky": cls(variant="chomsky", shortest=1)}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the published lengths."""
        return batch.lengths + (2 if self.variant == "xlstm" else -1)

    def token_name(self, token: int) -> str:
        """Return the digit or the sign, "·" for padding, "?" for the query."""
        end = "·" if self.variant == "xlstm" else "?"
        return str(token) if token < self.modulus else f"+-×()={end}"[token - self.modulus]

    def class_name(self, label: int) -> str:
        """Return the residue, or the token that answers nothing."""
        return self.token_name(label)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed = stream_keys(self.seed, split, indices)
        expressions = self._expressions(split, keyed)
        return self._lay_out(expressions.strings, expressions.lengths, expressions.values())

    def _lay_out(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
        answers: Integers,  # (B,)
    ) -> Batch:
        """Return the batch in the layout of the variant."""
        pad = self.modulus + 6
        tokens = np.where(real(counts, strings.shape[1]), strings, pad)
        if self.variant != "xlstm":
            return answered_once(tokens, counts, answers, query=pad, padded=self.padded)
        tokens = np.concatenate([tokens, np.full((len(tokens), 1), pad)], axis=1)
        tokens[np.arange(counts.size), counts] = self.modulus + 5
        return answered_once(tokens, counts + 1, answers, query=None, padded=self.padded)

    def _symbols(self, length: int) -> int:
        """Return the symbols of an expression of a published length."""
        return max(length, 5) - 3 if self.variant == "xlstm" else length

    def _expressions(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> Expressions:
        chosen, most = words(keyed, 0, 2), self._symbols(self.longest)
        counts = np.array([self._symbols(length) for length in range(self.longest + 1)])
        lengths = counts[self.lengths(split, chosen[:, 0])]
        operators = 3 if self.multiplication else 2
        expressions = Expressions(words(keyed, 2, most), lengths, self.modulus, operators)
        expressions.settle(split, chosen[:, 1])
        return expressions
