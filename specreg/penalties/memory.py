"""Penalties on what a system reads of its past: of the influence, which no gauge changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from specreg.invariants import effective_memory, log_spaced_lags, relative_influence
from specreg.operators import Diagonal
from specreg.penalties.base import Penalty, check_target
from specreg.system import LinearSystem, System
from specreg.targets import LogUniformTimescale, Target

_GOAL_LENGTH = 64  # steps of a goal's system


@dataclass(frozen=True)
class MemoryBand(Penalty):
    """Keeps each head's effective memory in [low, high]: the mean over heads of the squared excess.

    Effective memory is the mean age of what a reader reads as a share of its past, ½ for even reading
    (`specreg.invariants.effective_memory`).
    """

    takes: ClassVar[type] = LinearSystem

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"memory_band({self.low}, {self.high}): allowed are 0 <= low <= high <= 1, two shares")

    def loss(self, system: LinearSystem) -> Tensor:
        memory = effective_memory(system)
        return ((memory - self.high).clamp_min(0).square() + (self.low - memory).clamp_min(0).square()).mean()

    def goal(self, count: int) -> LinearSystem:
        """`count` heads of one real mode whose memory is the middle of the band: its decay is found by bisection."""
        middle, low, high = 0.5 * (self.low + self.high), -10.0, 10.0  # log|λ|; growth reads old input more
        for _ in range(60):
            centre = 0.5 * (low + high)
            memory = float(effective_memory(decaying(torch.full((1,), centre, dtype=torch.float64))))
            low, high = (centre, high) if memory < middle else (low, centre)
        return decaying(torch.full((count,), 0.5 * (low + high), dtype=torch.float64))

    @classmethod
    def example(cls) -> Self:
        return cls(0.2, 0.3)


@dataclass(frozen=True)
class InfluenceDistance(Penalty):
    """1-Wasserstein distance in log(1 + age) between the ages of what is read and those that a target would give.

    A head's influence at lag τ, averaged over the readers that reach back so far, is a share of what it reads; the
    layer's law of ages is the mean over heads. The target's is the mean over its log|λ| of |λ|^τ, each to sum 1 over
    the same lags, one mode for each distinct eigenvalue of the layer. Phases have no part. Lags: 24, even in log, each
    for those nearest to it. Heads that read nothing are left out.
    """

    takes: ClassVar[type] = LinearSystem

    target: Target

    def __post_init__(self) -> None:
        check_target("influence_distance", self.target)

    def loss(self, system: LinearSystem) -> Tensor:
        lags = log_spaced_lags(system.length)
        profile = relative_influence(system, lags)  # (lags, H)
        place = torch.tensor(lags).to(profile).log1p()
        sizes = _sizes(lags, system.length).to(profile).unsqueeze(-1)
        read = sizes * profile
        reads = read.sum(0) > 0
        ages = torch.where(reads, read / torch.where(reads, read.sum(0), 1.0), 0.0).sum(-1) / reads.sum().clamp_min(1)
        modes = len(system.transition.multiplicity()) * profile.shape[-1]
        log_modulus = self.target.quantiles(modes)[0].to(profile)
        # a finite log: at lag 0 even λ = 0 is read in full
        wanted = sizes * (torch.tensor(lags).to(profile).unsqueeze(-1) * log_modulus.clamp_min(-1e4)).exp()
        aim = (wanted / wanted.sum(0)).mean(-1) * reads.any()
        return (place.diff() * (ages - aim).cumsum(0)[:-1].abs()).sum()

    def goal(self, count: int) -> LinearSystem:
        return decaying(self.target.quantiles(count)[0])

    @classmethod
    def example(cls) -> Self:
        return cls(LogUniformTimescale(1, 100))


def decaying(log_modulus: Tensor) -> LinearSystem:  # (count,)
    """A system of `count` heads, each one real mode that is written and read with weight 1, 64 steps long."""
    count = len(log_modulus)
    one = torch.ones(1, 1, count, 1, 1, dtype=log_modulus.dtype)
    values = torch.zeros(1, _GOAL_LENGTH, count, 1, 1, dtype=log_modulus.dtype)
    return System(Diagonal(log_modulus.view(1, 1, count, 1)), one, one, values)


def _sizes(lags: list[int], length: int) -> Tensor:
    """How many lags each stands for: from half-way to one neighbour to half-way to the other."""
    middles = [(a + b) / 2 for a, b in pairwise(lags)]
    return torch.tensor([-0.5, *middles, length - 0.5], dtype=torch.float64).diff()
