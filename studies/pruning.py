"""Stopping trials early, for one objective or several: Optuna's own pruners refuse more than one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specreg.studies.definition import Direction

RUNGS = tuple(2**k for k in range(8))
"""A rung is the 1st, 2nd, 4th, …, 128th value that a trial reports: at most eight, whatever the unit of a step."""


@dataclass(frozen=True)
class RungRule:
    """Median stopping: a trial ends at a rung where it is worse than the median of the trials that were completed.

    With values y₁ … yₙ of completed trials at the same step and n at least `warmup`, a value v is stopped when it is
    strictly worse than their median. The values are taken to improve in the direction of the first objective.
    Source: Golovin et al., Google Vizier, KDD 2017, section 3.2, with the value itself in place of its running mean.
    """

    direction: Direction
    warmup: int = 5  # completed trials with a value at this step before anything is stopped

    def stops(self, value: float, completed: Sequence[float]) -> bool:
        """Whether a trial with this value ends here, given the values of completed trials at the same step."""
        if len(completed) < max(self.warmup, 1):
            return False
        bar = sorted(completed)[self._bar(len(completed))]
        return value < bar if self.direction == "maximize" else value > bar

    def _bar(self, count: int) -> int:
        # the middle value of an odd number; of an even number the more lenient of the two, so that half always pass
        return (count - 1) // 2 if self.direction == "maximize" else count // 2
