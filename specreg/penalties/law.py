"""Penalties on each eigenvalue and on their law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.penalties.base import Penalty, check_target, line
from specreg.spectrum import Spectrum
from specreg.targets import LogUniformTimescale, Ring, Target, midpoints


@dataclass(frozen=True)
class Band(Penalty):
    """Keeps moduli in [low, high]: mean of relu(low − |λ|)² + high² relu(log|λ| − log high)².

    The upper side equals relu(|λ| − high)² to second order at the edge and stays finite where |λ| itself overflows.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high < math.inf and self.high > 0):
            raise ValueError(f"band({self.low}, {self.high}): allowed are 0 <= low <= high, two moduli, high over 0")

    def loss(self, spectrum: Spectrum) -> Tensor:
        log_modulus = spectrum.log_modulus
        above = (log_modulus - math.log(self.high)).clamp_min(0)
        below = (self.low - log_modulus.clamp_max(math.log(self.high)).exp()).clamp_min(0)
        return (spectrum.weights() * (self.high**2 * above.square() + below.square())).sum()

    def goal(self, count: int) -> Spectrum:
        return line(((self.high - self.low) * midpoints(count) + self.low).log())

    @classmethod
    def example(cls) -> Self:
        return cls(0.5, 0.95)


@dataclass(frozen=True)
class TimescaleBand(Penalty):
    """Keeps timescales τ = −1/log|λ| in [shortest, longest] steps: mean of the squared excess in log τ."""

    shortest: float
    longest: float

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest < math.inf:
            raise ValueError(
                f"timescale_band({self.shortest}, {self.longest}): allowed are 0 < shortest <= longest, in steps"
            )

    def loss(self, spectrum: Spectrum) -> Tensor:
        log_timescale = spectrum.log_timescale
        above = (log_timescale - math.log(self.longest)).clamp_min(0)
        below = (math.log(self.shortest) - log_timescale).clamp_min(0)
        return (spectrum.weights() * (above.square() + below.square())).sum()

    def goal(self, count: int) -> Spectrum:
        low, high = math.log(self.shortest), math.log(self.longest)
        return line(-(-(low + (high - low) * midpoints(count))).exp())

    @classmethod
    def example(cls) -> Self:
        return cls(2.0, 500.0)


@dataclass(frozen=True)
class TimescaleDistance(Penalty):
    """1-Wasserstein distance between the law of log τ and the target's, in log steps."""

    target: Target

    def __post_init__(self) -> None:
        check_target("timescale_distance", self.target)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.target.timescale_distance(spectrum)

    def goal(self, count: int) -> Spectrum:
        return line(*self.target.quantiles(count))

    @classmethod
    def example(cls) -> Self:
        return cls(LogUniformTimescale(1, 1024))


@dataclass(frozen=True)
class PhaseDistance(Penalty):
    """Circular 1-Wasserstein distance between the law of phases and the target's, in radians, conjugates folded."""

    target: Target

    def __post_init__(self) -> None:
        check_target("phase_distance", self.target)
        if self.target.max_phase is None:
            raise ValueError(f"phase_distance needs a target with a law of phases: give {self.target} a max_phase")

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.target.phase_distance(spectrum)

    def goal(self, count: int) -> Spectrum:
        return line(*self.target.quantiles(count))

    @classmethod
    def example(cls) -> Self:
        return cls(Ring(0.5, 0.99, max_phase=math.pi / 2))


@dataclass(frozen=True)
class PerHead(Penalty):
    """The mean over heads of a penalty on each head's own spectrum."""

    penalty: Penalty

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise ValueError(f"per_head takes a penalty, as in per_head(band(0.5, 1.0)), got {self.penalty!r}")

    def loss(self, spectrum: Spectrum) -> Tensor:
        return torch.stack([self.penalty(head) for head in spectrum.heads()]).mean()

    def goal(self, count: int) -> Spectrum:
        return self.penalty.goal(count)

    @classmethod
    def example(cls) -> Self:
        return cls(TimescaleDistance.example())
