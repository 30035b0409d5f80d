"""Arithmetic expressions in brackets, grown, evaluated and told apart by content."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.streams import below_each
from specreg.tasks.strings import Integers, Words, code_width, settle
from specreg.tasks.task import Split

__all__ = ["Expressions", "commonest"]


@dataclass(frozen=True, eq=False)
class Expressions:
    """A batch of expressions by DeepMind's grammar, of given lengths.

    Up to length 4 an expression is d, −d, (d) or (−d) with a uniform digit d; beyond it is (L∘R) with a uniform
    operator ∘, the length of L uniform on 1 … length − 4. Symbols: 0 … p − 1 the digits, then + − × ( ). Every choice
    has a word by its place in the string, so as many words as symbols are enough.
    """

    draws: Words
    """(B, N) words."""
    lengths: Integers
    """(B,) symbols in each, 1 … N."""
    modulus: int
    """The modulus p."""
    operators: int
    """2 for + and −, 3 with ×."""

    @cached_property
    def levels(self) -> list[tuple[Integers, ...]]:
        """The inner nodes of each depth: rows, where they, their left and their right parts start, operators."""
        return self._grown[0]

    @cached_property
    def strings(self) -> Integers:
        """(B, N) symbols, 0 outside; `settle` may change its digits."""
        return self._grown[1]

    @cached_property
    def digits(self) -> NDArray[np.bool_]:
        """(B, N), where digits stand."""
        found = np.zeros(self.strings.shape, dtype=np.bool_)
        for rows, starts, sizes in self._grown[2]:
            found[rows, starts + sizes // 2] = True
        return found

    @cached_property
    def _grown(self) -> tuple[list[tuple[Integers, ...]], Integers, list[tuple[Integers, ...]]]:
        strings = np.zeros(self.draws.shape, dtype=np.int64)
        levels: list[tuple[Integers, ...]] = []
        leaves: list[tuple[Integers, ...]] = []
        rows, starts, sizes = np.arange(self.lengths.size), np.zeros_like(self.lengths), self.lengths
        while rows.size:
            short = sizes < 5
            leaves.append((rows[short], starts[short], sizes[short]))
            self._write_leaves(strings, *leaves[-1])
            rows, starts, sizes = rows[~short], starts[~short], sizes[~short]
            lefts = 1 + below_each(self.draws[rows, starts], sizes - 4)
            middles = starts + 1 + lefts
            chosen = below_each(self.draws[rows, middles], self.operators)
            strings[rows, starts], strings[rows, starts + sizes - 1] = self.modulus + 3, self.modulus + 4
            strings[rows, middles] = self.modulus + chosen
            levels.append((rows, starts, starts + 1, middles + 1, chosen))
            rows, starts = np.concatenate([rows, rows]), np.concatenate([starts + 1, middles + 1])
            sizes = np.concatenate([lefts, sizes - 3 - lefts])
        return levels, strings, leaves

    def _write_leaves(self, strings: Integers, rows: Integers, starts: Integers, sizes: Integers) -> None:
        places = starts + sizes // 2
        strings[rows, places] = below_each(self.draws[rows, places], self.modulus)
        negative, enclosed = sizes % 2 == 0, sizes >= 3
        strings[rows[negative], places[negative] - 1] = self.modulus + 1
        ends = starts + sizes - 1
        strings[rows[enclosed], starts[enclosed]] = self.modulus + 3
        strings[rows[enclosed], ends[enclosed]] = self.modulus + 4

    def settle(self, split: Split, draws: Words, context: Integers | None = None) -> None:
        """Change the first digits of each expression so that it, with `context` (B, M), belongs to the split."""
        width = code_width(self.modulus)
        order = np.cumsum(self.digits, axis=1)
        counts = order[:, -1]
        places = np.stack([np.argmax(order == place + 1, axis=1) for place in range(width)], axis=1)
        whole = self.strings if context is None else np.concatenate([self.strings, context], axis=1)
        settle(split, draws, whole, self.lengths, self.modulus, places, np.minimum(counts, width))
        self.strings[:] = whole[:, : self.strings.shape[1]]

    def values(self) -> Integers:
        """Return the value of each expression modulo p, (B,)."""
        modulus = self.modulus
        values = np.zeros_like(self.strings)  # at the start of every part
        for rows, starts, sizes in self._grown[2]:
            digits = self.strings[rows, starts + sizes // 2]
            values[rows, starts] = np.where(sizes % 2 == 0, -digits, digits) % modulus
        for rows, starts, lefts, rights, chosen in reversed(self.levels):
            left, right = values[rows, lefts], values[rows, rights]
            values[rows, starts] = np.choose(chosen, [left + right, left - right, left * right]) % modulus
        return values[:, 0]


@lru_cache(maxsize=16)
def commonest(modulus: int, lengths: tuple[int, ...]) -> float:
    """Return the share of the commonest value of expressions with × whose lengths are equally often these.

    By the grammar's recursion: the law of a value is the mean over splits and operators of the laws of the parts.
    """
    residues = np.arange(modulus)
    results = [np.add.outer(residues, residues), np.subtract.outer(residues, residues), np.outer(residues, residues)]
    laws = np.full((max(5, *lengths) + 1, modulus), 1 / modulus)
    for length in range(5, max(lengths) + 1):
        joint = laws[1 : length - 3].T @ laws[length - 4 : 0 : -1] / (length - 4)
        laws[length] = sum(np.bincount((r % modulus).ravel(), joint.ravel(), modulus) for r in results) / 3
    return float(np.mean([laws[length] for length in lengths], axis=0).max())
