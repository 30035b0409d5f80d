"""What a running study tells: one frozen dataclass for each thing that happens, printed by nobody here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from specreg.studies.configuration import Run

Reason = Literal[
    "pruned", "diverged", "out of memory", "worker died", "exception", "driver died", "timeout", "interrupted"
]


@dataclass(frozen=True)
class StudyStarted:
    """The driver has the study for itself and knows what is left to do."""

    name: str
    folder: Path
    objectives: Mapping[str, str]
    budget: int
    finished: int  # slots filled before
    unfinished: int  # slots that an earlier driver left, run first and with the same parameters
    workers: int


@dataclass(frozen=True)
class TrialStarted:
    """A worker process has been given a trial."""

    slot: int
    attempt: int  # 1-based; a driver's death does not count
    pid: int
    run: Run
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class RungReached:
    """A trial reported a rung value, and goes on unless `pruned`."""

    slot: int
    step: int
    value: float
    pruned: bool


@dataclass(frozen=True)
class TrialRetried:
    """An attempt was lost; the trial will be run again."""

    slot: int
    reason: Reason
    message: str
    attempt: int  # the attempt that was lost


@dataclass(frozen=True)
class TrialFinished:
    """A slot is filled. `reason` is None when the trial was completed, and `values` are its objectives then."""

    slot: int
    reason: Reason | None
    message: str
    values: Mapping[str, float]
    seconds: float
    finished: int
    budget: int


@dataclass(frozen=True)
class Draining:
    """An interrupt: nothing new is begun, the running trials are waited for."""

    running: tuple[int, ...]
    advice: str


@dataclass(frozen=True)
class StudyEnded:
    """The driver has let the study go. `advice` says how to go on; empty when the budget is spent."""

    outcome: Literal["finished", "drained", "interrupted"]
    finished: int
    budget: int
    advice: str


Event = StudyStarted | TrialStarted | RungReached | TrialRetried | TrialFinished | Draining | StudyEnded
