"""Accuracy broken down by what a task's answers differ in: lag, length, number of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

MOST_VALUES = 24  # of one slice that are told apart; beyond, values are gathered by powers of two


class SliceScores:
    """Right and scored answers of each value of each slice, summed over batches."""

    def __init__(self) -> None:
        self._right: dict[str, Counter[int]] = {}
        self._scored: dict[str, Counter[int]] = {}

    def add(self, slices: Mapping[str, Tensor], right: Tensor) -> None:
        """Count a batch: `slices` as the task gives them (−1: in no slice), `right` bool in the same shape."""
        for name, values in slices.items():
            inside = values >= 0
            self._scored.setdefault(name, Counter()).update(values[inside].tolist())
            self._right.setdefault(name, Counter()).update(values[inside & right].tolist())

    def accuracies(self) -> dict[str, dict[int, float]]:
        """Accuracy by value, smallest first; of many values, of those from each power of two to below the next."""
        return {name: self._accuracy(name) for name in self._scored}

    def _accuracy(self, name: str) -> dict[int, float]:
        scored, right = self._scored[name], self._right[name]
        if len(scored) > MOST_VALUES:
            scored, right = gathered(scored), gathered(right)
        return {value: right[value] / count for value, count in sorted(scored.items())}


def gathered(counts: Mapping[int, int]) -> Counter[int]:
    """Counts of the values from each power of two on, under that power; 0 by itself."""
    total: Counter[int] = Counter()
    for value, count in counts.items():
        total[1 << (value.bit_length() - 1) if value else 0] += count
    return total
