"""Majority: whether most bits of a string are ones, at its end or at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from specreg.tasks.formal_language import FinalAnswer, steps_answered
from specreg.tasks.strings import Integers, answered_at_every_step, real
from specreg.tasks.task import Batch, SpectralNeed

__all__ = ["Majority"]


@dataclass(frozen=True, kw_only=True)
class Majority(FinalAnswer):
    """Majority: whether a uniform bit string has more ones than zeros.

    Probes counting without a modulus: one eigenvalue 1 adds up the bits, and nothing may leak. At the end (tokens 0 and
    1, then the query 2, where the class is the target) the answer is 1 for strictly more ones; with `cumulative`, at
    every step of the string (no query; 2 pads), it is 1 for at least as many ones as zeros so far. Ties are decided
    as published, differently in the two. Padding stands on the right. Strings belong to splits by content.

    Sizes: one length in Zoology's circuits, which publish none; here uniform on shortest … longest, 40 each unless
    said. Inputs (B, T) tokens, targets (B, T), 2 classes.

    Chance: a string of n bits ties with probability t = C(n, n/2)/2ⁿ, 0 for odd n, and the class of ties has
    probability (1 + t)/2: the mean of this over lengths, with `cumulative` over steps too.

    Source: the rules are those of the circuits of Zoology, Arora et al. (2023), arXiv:2312.04927.

    Raises ValueError for lengths out of order or below 2.
    """

    probes: ClassVar[str] = "counting without a modulus"
    source: ClassVar[str] = "Arora et al. 2023, arXiv:2312.04927 (Zoology's circuits)"
    alphabet: ClassVar[int] = 2
    """Two bits."""
    answers: ClassVar[int] = 2
    """No and yes."""

    shortest: int = 40
    """The shortest length."""
    cumulative: bool = False
    """Whether every step is answered, not the end alone."""

    @property
    def max_length(self) -> int:
        """The longest string, and the query unless `cumulative`."""
        return self.longest if self.cumulative else self.longest + 1

    @property
    def chance(self) -> float:
        """The probability of the class that ties belong to, mean over lengths and, if asked, steps."""
        tied = [0.0 if n % 2 else comb(n, n // 2) / 2**n for n in range(self.longest + 1)]
        if self.cumulative:
            tied = [0.0, *(np.cumsum(tied[1:]) / np.arange(1, self.longest + 1)).tolist()]
        return float(0.5 + np.mean([tied[n] for n in self.held_out]) / 2)

    @property
    def need(self) -> SpectralNeed:
        """A sum, kept to the end."""
        return SpectralNeed(memory=self.longest, note="a counter: an eigenvalue 1")

    @classmethod
    def tiny(cls) -> Self:
        """Return length 16, answered at the end."""
        return cls(shortest=16, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", and length 40 answered at the end and at every step."""
        return {"tiny": cls.tiny(), "final-40": cls(), "cumulative-40": cls(cumulative=True)}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the bits of each string."""
        return batch.lengths if self.cumulative else super().lengths_of(batch)

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how many bits each answer is about."""
        if not self.cumulative:
            return super().slices(batch)
        return {"length": steps_answered(batch)}

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return 1 for strictly more ones than zeros."""
        more: Integers = (2 * strings.sum(axis=1) > counts).astype(np.int64)
        return more

    def lay_out(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
        answers: Integers,  # (B,)
    ) -> Batch:
        """Return the batch, answered at the query or at every step."""
        if not self.cumulative:
            return super().lay_out(strings, counts, answers)
        ahead = 2 * strings.cumsum(axis=1) >= np.arange(1, self.longest + 1)
        tokens = np.where(real(counts, self.longest), strings, 2)
        return answered_at_every_step(tokens, counts, ahead.astype(np.int64), padded=self.padded)
