"""Penalties on each eigenvalue and on their law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.penalties.base import Penalty, TargetPenalty, annulus, check_penalty, check_phases, check_target, line
from specreg.spectrum import Spectrum
from specreg.targets import LogUniformTimescale, Outline, Ring, midpoints


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

    def outline(self) -> Outline:
        return annulus(math.log(self.low) if self.low else -math.inf, math.log(self.high))

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

    def outline(self) -> Outline:
        return annulus(-1 / self.shortest, -1 / self.longest)

    @classmethod
    def example(cls) -> Self:
        return cls(2.0, 500.0)


@dataclass(frozen=True)
class TimescaleDistance(TargetPenalty):
    """1-Wasserstein distance between the law of log τ and the target's, in log steps."""

    def __post_init__(self) -> None:
        check_target("timescale_distance", self.target)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.target.timescale_distance(spectrum)

    @classmethod
    def example(cls) -> Self:
        return cls(LogUniformTimescale(1, 1024))


@dataclass(frozen=True)
class PhaseDistance(TargetPenalty):
    """Circular 1-Wasserstein distance between the law of phases and the target's, in radians, conjugates folded."""

    def __post_init__(self) -> None:
        check_phases("phase_distance", self.target)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.target.phase_distance(spectrum)

    @classmethod
    def example(cls) -> Self:
        return cls(Ring(0.5, 0.99, max_phase=math.pi / 2))


@dataclass(frozen=True)
class TimescaleCoverage(Penalty):
    """Asks for modes at every timescale from 1 to `longest` steps: K Σ_k relu(share · t_k − o_k)² over K bins.

    The bins are even in log τ. o_k = Σ_i w_i / (1 + u²) is the occupation of bin k, u being the distance of log τ_i
    from its middle in half widths: ½ at the bin's edge, and a gradient from any distance. t_k is the occupation that as
    many values, log-uniform on the whole range, would give. What a bin holds beyond its `share` is free.
    """

    longest: float
    bins: int = 8
    share: float = 0.5

    def __post_init__(self) -> None:
        if not (1 < self.longest < math.inf and self.bins >= 1 and 0 < self.share <= 1):
            raise ValueError(
                f"timescale_coverage({self.longest}, {self.bins}, {self.share}): allowed are a longest timescale over "
                "1 step, at least 1 bin, and a share over 0 and at most 1 of an even occupation"
            )

    def loss(self, spectrum: Spectrum) -> Tensor:
        weights = spectrum.weights().flatten()
        even = -self.goal(max(1, int((weights > 0).sum()))).log_modulus.flatten().to(weights)
        aim = self.occupation(-even.log(), torch.full_like(even, 1 / len(even))) * weights.sum()
        lack = (self.share * aim - self.occupation(spectrum.log_timescale.flatten(), weights)).clamp_min(0)
        return self.bins * lack.square().sum()

    def occupation(self, log_timescale: Tensor, weights: Tensor) -> Tensor:  # (n,), (n,)
        """o_k, ``(bins,)``."""
        half = 0.5 * math.log(self.longest) / self.bins
        middles = half * (2 * torch.arange(self.bins, device=weights.device).to(weights) + 1)
        off = (log_timescale - middles.unsqueeze(-1)) / half
        return (weights / (1 + off.square())).sum(-1)

    def goal(self, count: int) -> Spectrum:
        return line(-(-math.log(self.longest) * midpoints(count)).exp())

    def outline(self) -> Outline:
        return annulus(-1.0, -1 / self.longest)

    @classmethod
    def example(cls) -> Self:
        return cls(1000.0)


@dataclass(frozen=True)
class PerHead(Penalty):
    """The mean over heads of a penalty on each head's own spectrum."""

    penalty: Penalty

    def __post_init__(self) -> None:
        check_penalty("per_head", self.penalty)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return torch.stack([self.penalty(head) for head in spectrum.heads()]).mean()

    def goal(self, count: int) -> Spectrum:
        found: Spectrum = self.penalty.goal(count)
        return found

    def outline(self) -> Outline:
        return self.penalty.outline()

    @classmethod
    def example(cls) -> Self:
        return cls(TimescaleDistance.example())
