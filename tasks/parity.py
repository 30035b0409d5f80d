"""Parity of a bit string, answered at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from specreg.tasks.formal_language import TwoLayouts
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["Parity"]


@dataclass(frozen=True, kw_only=True)
class Parity(TwoLayouts):
    """Parity: whether the number of ones in a bit string is odd.

    Probes state tracking at its smallest: the running state flips at every one, so a linear recurrence needs an
    eigenvalue −1 (Grazzi et al. 2024 prove that none with positive eigenvalues alone will do). The answer is the
    exclusive or of uniform bits, given at the end; `cumulative_parity` asks at every step.

    Variants: "xlstm" (tokens 0 padding, 1 and 2 the bits; lengths 3 … 40 count the answer, hence 2 … 39 bits; the
    answer is token 1 or 2, the target of the last bit) and "chomsky" (tokens 0 and 1, then the query 2, where the
    class 0 or 1 is the target; lengths 1 … 40). Zoology's parity is "chomsky" at one length, its end token the query.
    Padding stands on the right. Strings belong to splits by content: no split shares any, down to length 3.

    Sizes: lengths uniform on 3 … 40, tested on 40 … 256 (xLSTM), or uniform on 1 … 40, tested on 41 … 500 (DeepMind).
    Inputs (B, T) tokens, targets (B, T) with one scored step, 3 classes in "xlstm", 2 in "chomsky".

    Chance: 1/2.

    Source: Beck et al. (2024), arXiv:2405.04517 (xLSTM); Delétang et al. (2022), arXiv:2207.02098 (DeepMind).

    Raises ValueError for lengths out of order, for no string to hold out, and for another variant.
    """

    probes: ClassVar[str] = "state tracking: one bit that flips"
    source: ClassVar[str] = "Beck et al. 2024, arXiv:2405.04517; Delétang et al. 2022, arXiv:2207.02098"
    alphabet: ClassVar[int] = 2
    """Two bits."""
    answers: ClassVar[int] = 2
    """Even and odd."""

    @property
    def need(self) -> SpectralNeed:
        """An eigenvalue −1, kept to the end."""
        return SpectralNeed(memory=self.longest, periods=(2,))

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16."""
        return cls(shortest=8, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the setting of xLSTM's code and DeepMind's."""
        xlstm = cls(validation_examples=8192, test_examples=8192)
        return {"tiny": cls.tiny(), "xlstm": xlstm, "chomsky": cls(variant="chomsky", shortest=1)}

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return 1 for an odd number of ones."""
        odd: Integers = strings.sum(axis=1) & 1
        return odd
