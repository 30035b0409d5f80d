"""Odds first: the symbols at odd places, then those at even ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np

from specreg.tasks.formal_language import StringToString
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["OddsFirst"]


@dataclass(frozen=True, kw_only=True)
class OddsFirst(StringToString):
    """Odds first: the symbols of a uniform string at places 1, 3, 5, …, then those at 2, 4, 6, ….

    Probes rearrangement: two queues that are filled in turn.

    Variants: "documented" is the rule of the paper and of the code's description, s₁ s₃ s₅ … s₂ s₄ s₆ …; "coded" is
    what the published code does, which counts places from 0: s₂ s₄ s₆ … s₁ s₃ s₅ …. Scores of that code are of "coded".

    Tokens: 0 … A − 1 the symbols, A the query, one for each symbol of the answer, and padding on the right. Strings
    belong to splits by content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), A classes; A = 2, n of
    the 2n steps scored.

    Chance: 1/A.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, for no string to hold out, fewer than 2 symbols, or another variant.
    """

    probes: ClassVar[str] = "rearrangement: two queues"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"

    variant: Literal["documented", "coded"] = "documented"
    """Whether odd places come first, as documented, or even ones, as coded."""
    symbols: int = 2
    """Input symbols A."""

    def __post_init__(self) -> None:
        """Check the variant, then the alphabet and the lengths."""
        allowed = get_args(Literal["documented", "coded"])
        if self.variant not in allowed:
            raise ValueError(f"variant is {self.variant!r}; give one of {', '.join(allowed)}")
        super().__post_init__()

    @property
    def alphabet(self) -> int:
        """The input symbols."""
        return self.symbols

    @property
    def need(self) -> SpectralNeed:
        """Everything is kept until its turn."""
        return SpectralNeed(memory=2 * self.longest)

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 6 … 12."""
        return cls(shortest=6, longest=12, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and DeepMind's setting, as documented and as coded."""
        return {"tiny": cls.tiny(), "chomsky": cls(), "chomsky-coded": cls(variant="coded")}

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the symbols of every second place, then the others."""
        steps = np.arange(self.longest)
        first = 0 if self.variant == "documented" else 1
        leading = ((counts + 1 - first) // 2)[:, None]
        places = np.where(steps < leading, 2 * steps + first, 2 * (steps - leading) + 1 - first)
        return np.take_along_axis(strings, places % self.longest, axis=1), counts
