"""Stack manipulation: a stack after some pushes and pops, from the top."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from specreg.tasks.formal_language import StringToString
from specreg.tasks.streams import below_each, words
from specreg.tasks.strings import Integers, Words, digest, real, share, symbols
from specreg.tasks.task import SpectralNeed, Split

__all__ = ["StackManipulation"]


@dataclass(frozen=True, kw_only=True)
class StackManipulation(StringToString):
    """Stack manipulation: what is left of a stack of bits after pushes and pops, read from the top.

    Probes a stack that is used, not only filled. A string of n symbols is a stack of 1 … n − 1 uniform bits, from the
    bottom, then uniform actions: pop, push 0, push 1; a pop of an empty stack does nothing. A single symbol is a stack.
    The answer is the stack from the top and an end mark.

    Tokens: 0 and 1 the bits, 2 pop, 3 push 0, 4 push 1, then 5, the query, n + 1 times, and padding on the right.
    Output classes: the bits and 2, the end mark; what follows the mark is not scored. Strings belong to splits by
    content.

    Sizes: lengths n uniform on 1 … 40, tested on 41 … 500. Inputs (B, T) tokens, targets (B, T), 3 classes.

    Chance: exact, from the law of the height k of the stack: the larger of E[k/(2k + 2)], a bit always, and
    E[1/(k + 1)], the end mark.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order or with none from 2.
    """

    probes: ClassVar[str] = "a stack that is used"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"
    alphabet: ClassVar[int] = 5
    """Two bits and three actions."""
    num_classes: ClassVar[int] = 3
    """Two bits and the end mark."""
    divisible: ClassVar[int] = 2
    """A bit and an action."""

    @property
    def chance(self) -> float:
        """The share of a bit or of the end mark, whichever is larger, mean over the lengths."""
        shares = np.array([_shares(length) for length in self.held_out])
        return float(shares.mean(axis=0).max())

    @property
    def need(self) -> SpectralNeed:
        """The bottom of the stack is wanted last."""
        return SpectralNeed(memory=2 * self.longest + 1, note="a stack: no fixed spectrum suffices")

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 6 … 12."""
        return cls(shortest=6, longest=12, validation_examples=200, test_examples=200)

    def extent(self, length: int) -> int:
        """Return one more than the length."""
        return length + 1

    def token_name(self, token: int) -> str:
        """Return the bit, "-" for pop, "+0" and "+1" for push, "?" for the query."""
        return ("0", "1", "-", "+0", "+1", "?")[token]

    def class_name(self, label: int) -> str:
        """Return the bit, "." for the end mark."""
        return "01."[label]

    def strings(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, N), (B,)
        """Return stacks and actions, 0 outside, and their lengths; the first bit and the first action are the code."""
        chosen, half, rows = words(keyed, 0, 3), -(-self.longest // 2), np.arange(keyed.size)
        counts = self.lengths(split, chosen[:, 0])
        heights = np.where(counts > 1, 1 + below_each(chosen[:, 2], np.maximum(counts - 1, 1)), 1)
        strings = np.where(
            real(heights, self.longest),
            symbols(keyed, 3, self.longest, 2),
            2 + symbols(keyed, 3 + half, self.longest, 3),
        )
        strings *= real(counts, self.longest)
        acted = rows[counts > 1]
        strings[:, 0] = 0
        strings[acted, heights[acted]] = 0
        codes = np.where(counts > 1, 6, 2)
        shift = digest(strings, counts + self.longest * heights) % codes.astype(np.uint64)
        code = (share(split, chosen[:, 1], codes) + shift.astype(np.int64)) % codes
        strings[:, 0] = code % 2
        strings[acted, heights[acted]] = 2 + code[acted] // 2
        return strings, counts

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the stacks from the top, each with its end mark."""
        rows, stacks = np.arange(counts.size), np.zeros((counts.size, self.longest + 1), dtype=np.int64)
        heights = np.zeros_like(counts)
        for step, symbol in enumerate(strings.T):
            acts = step < counts
            pushed = np.where(symbol >= 3, symbol - 3, symbol)
            stacks[rows, heights] = np.where(acts & (symbol != 2), pushed, stacks[rows, heights])
            heights += acts * np.where(symbol == 2, -(heights > 0).astype(np.int64), 1)
        places = heights[:, None] - 1 - np.arange(self.longest + 1)
        outputs = np.take_along_axis(stacks, np.maximum(places, 0), axis=1)
        outputs[rows, heights] = 2
        return outputs, heights + 1


def _shares(length: int) -> tuple[float, float]:
    """Return the expected shares of bit 0 and of the end mark among the outputs for strings of a length."""
    laws = np.zeros(length + 1)
    for height in range(1, max(length, 2)):
        law = np.zeros(length + 1)
        law[height] = 1.0
        for _ in range(length - height):
            law = np.concatenate([[law[0] / 3], 2 * law[:-1] / 3]) + np.concatenate([law[1:] / 3, [0.0]])
        laws += law / max(length - 1, 1)
    heights = np.arange(length + 1)
    return float(laws @ (heights / (2 * heights + 2))), float(laws @ (1 / (heights + 1)))
