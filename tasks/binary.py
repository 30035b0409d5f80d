"""Binary numbers of any length in batches: drawn, told apart by content, and turned into Python's integers and back.

Python's integers are exact at any length, and a microsecond a number is cheap beside the strings.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.formal_language import StringToString, measured_chance
from specreg.tasks.streams import below_each, words
from specreg.tasks.strings import Integers, Words, bits, digest, real, share
from specreg.tasks.task import Split

__all__ = ["TwoNumbers", "digits_of", "integers", "low_bits", "write_low"]

_LOW = 16  # bits that are drawn together, so that they are not all 0


def integers(
    digits: Integers,  # (B, N), the units first, 0 beyond each number
) -> list[int]:
    """Return the numbers."""
    octets = np.packbits(digits.astype(np.uint8), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in octets]


def digits_of(
    numbers: Sequence[int],
    width: int,
) -> Integers:  # (B, width), the units first
    """Return the binary digits of numbers below 2^width."""
    size = -(-width // 8)
    octets = np.frombuffer(b"".join(number.to_bytes(size, "little") for number in numbers), dtype=np.uint8)
    return np.unpackbits(octets.reshape(-1, size), axis=1, count=width, bitorder="little").astype(np.int64)


def low_bits(widths: Integers) -> Integers:
    """Return how many different low parts, sixteen bits and not 0, numbers of these widths have."""
    return 2 ** np.minimum(widths, _LOW) - 1


def write_low(
    digits: Integers,  # (B, N)
    low: Integers,  # (B,)
) -> None:
    """Set the lowest sixteen digits in place."""
    width = min(_LOW, digits.shape[1])
    digits[:, :width] = (low[:, None] >> np.arange(width)) & 1


@dataclass(frozen=True, kw_only=True)
class TwoNumbers(StringToString):
    """Two binary numbers, units first, and what an operation makes of them."""

    smallest: ClassVar[int] = 3
    alphabet: ClassVar[int] = 3
    """Two bits and the sign."""
    divisible: ClassVar[int] = 4
    """One bit and two: three strings."""

    shortest: int = 3
    """The shortest length of the two numbers and the sign between."""

    @property
    def chance(self) -> float:
        """Measured: the share of the commonest bit among the outputs of 4,096 examples."""
        return measured_chance(self)

    @staticmethod
    @abstractmethod
    def combine(first: int, second: int) -> int:
        """Return the result."""

    def class_name(self, label: int) -> str:
        """Return the bit, "." for the end mark."""
        return "01."[label]

    def strings(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, N), (B,)
        """Return both numbers with the sign between, 0 outside, and the lengths."""
        chosen, most, rows = words(keyed, 0, 4), self.longest, np.arange(keyed.size)
        counts = self.lengths(split, chosen[:, 0])
        first, second = self._numbers(split, keyed, chosen, counts)
        widths = 1 + below_each(chosen[:, 1], counts - 2)
        steps = np.arange(most)
        behind = np.take_along_axis(second, np.maximum(steps - 1 - widths[:, None], 0), axis=1)
        strings = np.where(steps < widths[:, None], first, behind) * real(counts, most)
        strings[rows, widths] = 2
        return strings, counts

    def _numbers(
        self,
        split: Split,
        keyed: Words,
        chosen: Words,  # (B, 4)
        counts: Integers,
    ) -> tuple[Integers, Integers]:  # (B, N), (B, N)
        """Return numbers from 1 with a uniform width each; the low part of the longer one is the code."""
        most, filler = self.longest, -(-self.longest // 64)
        widths = 1 + below_each(chosen[:, 1], counts - 2)
        others = counts - 1 - widths
        longer, shorter = np.maximum(widths, others), np.minimum(widths, others)
        fixed = bits(words(keyed, 4, filler), most) * real(shorter, most)
        write_low(fixed, 1 + below_each(chosen[:, 2], low_bits(shorter)))
        coded = bits(words(keyed, 4 + filler, filler), most) * real(longer, most)
        coded[:, :_LOW] = 0
        sizes = low_bits(longer)
        content = digest(np.concatenate([fixed, coded], axis=1), counts + most * widths)
        low = (share(split, chosen[:, 3], sizes) + (content % sizes.astype(np.uint64)).astype(np.int64)) % sizes
        write_low(coded, 1 + low)
        swapped = (widths < others)[:, None]
        return np.where(swapped, fixed, coded), np.where(swapped, coded, fixed)

    def solve(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the results, units first, each with its end mark after its last 1."""
        signs, steps = (strings == 2).argmax(axis=1)[:, None], np.arange(self.longest)
        first = strings * (steps < signs)
        second = np.take_along_axis(strings, np.minimum(steps + 1 + signs, self.longest - 1), axis=1)
        second = second * (steps < counts[:, None] - 1 - signs)
        results = [self.combine(a, b) for a, b in zip(integers(first), integers(second), strict=True)]
        widths: NDArray[np.int64] = np.array([result.bit_length() for result in results])
        outputs = digits_of(results, self.extent(self.longest))
        outputs[np.arange(counts.size), widths] = 2
        return outputs, widths + 1
