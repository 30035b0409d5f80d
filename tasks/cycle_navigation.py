"""Cycle navigation: where a walk of single steps on a circle ends."""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import TwoLayouts
from specreg.tasks.strings import Integers
from specreg.tasks.task import SpectralNeed

__all__ = ["CycleNavigation"]

_MOVES: dict[str, tuple[int, int, int]] = {"xlstm": (0, 1, -1), "chomsky": (-1, 0, 1)}


@dataclass(frozen=True, kw_only=True)
class CycleNavigation(TwoLayouts):
    """Cycle navigation: where on a circle of five places a walk ends that stays, steps right or steps left.

    Probes counting modulo five: the sum of uniform moves −1, 0, +1 modulo the number of places, from place 0. A linear
    recurrence needs eigenvalues at the fifth roots of unity, or a permutation that depends on the move.

    Variants: "xlstm" (tokens 0 padding; 1, 2, 3 the moves 0, +1, −1; 4 … the places, which are answers only; a length
    counts the answer, which is the target of the last move) and "chomsky" (tokens 0, 1, 2 the moves −1, 0, +1, then
    the query 3, where the place is the target). Padding stands on the right. Strings belong to splits by content.

    Sizes: lengths uniform on 3 … 40, tested on 40 … 256 (xLSTM), or uniform on 1 … 40, tested on 41 … 500 (DeepMind);
    five places (xLSTM's code gives its vocabulary, 4 + places: 9). Inputs (B, T) tokens, targets (B, T) with one scored
    step, 4 + places classes in "xlstm", as many as places in "chomsky".

    Chance: the place 0 is the commonest, after n moves with probability (1/p)·Σ_k ((1 + 2 cos(2πk/p))/3)^n; `chance` is
    its mean over the lengths, near 1/p.

    Source: Delétang et al. (2022), arXiv:2207.02098 (DeepMind); Beck et al. (2024), arXiv:2405.04517 (xLSTM).

    Raises ValueError for lengths out of order, another variant, or fewer than 3 places.
    """

    probes: ClassVar[str] = "counting modulo a small number"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098; Beck et al. 2024, arXiv:2405.04517"
    alphabet: ClassVar[int] = 3
    """Three moves."""

    places: int = 5
    """Places on the circle p."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.places < 3:
            raise ValueError(f"places is {self.places}; left and right differ on a circle of 3 or more")

    @property
    def answers(self) -> int:
        """The places."""
        return self.places

    @property
    def vocab_size(self) -> int:
        """Padding, moves and places in "xlstm", moves and the query in "chomsky"."""
        return 4 + self.places if self.variant == "xlstm" else 4

    @property
    def first_answer(self) -> int:
        """The class of place 0, a token after the moves in "xlstm"."""
        return 4 if self.variant == "xlstm" else 0

    @property
    def chance(self) -> float:
        """The probability of place 0, mean over the lengths."""
        steps = np.array(self.held_out) - self.slots
        turns = [(1 + 2 * cos(2 * pi * k / self.places)) / 3 for k in range(self.places)]
        return float(np.mean([sum(turn**n for turn in turns) / self.places for n in steps.tolist()]))

    @property
    def need(self) -> SpectralNeed:
        """The roots of unity of the circle, kept to the end."""
        return SpectralNeed(memory=self.longest, periods=(self.places,))

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16."""
        return cls(shortest=8, longest=16, validation_examples=200, test_examples=200)

    def token_name(self, token: int) -> str:
        """Return the move, a place as @0, @1, …, "·" for padding and "?" for the query."""
        first = 1 if self.variant == "xlstm" else 0
        if first <= token < first + 3:
            return ("0", "+", "-")[_MOVES[self.variant][token - first]]
        if self.variant == "xlstm":
            return "·" if token == 0 else f"@{token - 4}"
        return "?"

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return the sum of the moves, modulo the number of places."""
        moves = np.array(_MOVES[self.variant])[strings]
        # outside the string stands symbol 0, which moves in "chomsky"
        outside = strings.shape[1] - counts
        final: Integers = (moves.sum(axis=1) - outside * _MOVES[self.variant][0]) % self.places
        return final
