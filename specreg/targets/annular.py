"""Laws whose moduli and phases are independent: rings, discs, sectors, rectangles of the half plane, timescales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.targets.base import Outline, Target, arc, check_phase, fold, wedge


@dataclass(frozen=True)
class Ring(Target):
    """Uniform by area between two radii: |λ|² uniform on [r_min², r_max²], phase uniform on [0, max_phase].

    The initialisation of the linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349).
    """

    r_min: float
    r_max: float
    max_phase: float | None = None

    def __post_init__(self) -> None:
        check_radii("ring", self.r_min, self.r_max)
        check_phase("ring", self.max_phase)

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return area_quantile(self.r_min, self.r_max, probability)

    @classmethod
    def example(cls) -> Self:
        return cls(0.5, 0.99, max_phase=math.pi / 2)


@dataclass(frozen=True)
class Disk(Target):
    """Uniform by area in a disc around 0: |λ|² uniform on [0, radius²], the phase on [0, max_phase].

    The law of the eigenvalues of a large random matrix with independent entries of variance radius²/n.
    """

    radius: float = 1.0
    max_phase: float | None = math.pi

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise ValueError(f"disk({self.radius}): allowed is a radius over 0 and at most 1")
        check_phase("disk", self.max_phase)

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return area_quantile(0.0, self.radius, probability)

    @classmethod
    def example(cls) -> Self:
        return cls(0.9)


@dataclass(frozen=True)
class Sector(Target):
    """Uniform by area between two radii and two phases: modes that turn at some frequencies and at no other."""

    r_min: float
    r_max: float
    min_phase: float = 0.0
    max_phase: float | None = math.pi

    def __post_init__(self) -> None:
        check_radii("sector", self.r_min, self.r_max)
        check_phase("sector", self.max_phase)
        if self.max_phase is None or not 0 <= self.min_phase < self.max_phase <= math.pi:
            raise ValueError(
                f"sector: allowed are 0 <= min_phase < max_phase <= π = 3.1416, in radians, conjugates being one, got "
                f"{self.min_phase} and {self.max_phase} (max_phase is at most 2π = 6.2832 in any target)"
            )

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return area_quantile(self.r_min, self.r_max, probability)

    def phase_quantile(self, probability: Tensor) -> Tensor:
        assert self.max_phase is not None
        return self.min_phase + probability * (self.max_phase - self.min_phase)

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        return super().contains(log_modulus, phase, tolerance) & (fold(phase) >= self.min_phase - tolerance)

    def outline(self) -> Outline:
        assert self.max_phase is not None
        ends = self.support()
        return Outline(areas=tuple(wedge(ends, s * self.min_phase, s * self.max_phase) for s in (1, -1)))

    @classmethod
    def example(cls) -> Self:
        return cls(0.8, 0.99, 0.5, 1.5)


@dataclass(frozen=True)
class HalfPlane(Target):
    """Continuous-time eigenvalues a uniform on a rectangle left of the imaginary axis, as λ = e^{a · step}.

    −Re a uniform on [slowest, fastest], Im a on [0, max_frequency], per unit of time: log|λ| and the phase are those
    times the step. Frequencies above π/step would fold back on lower ones and are refused.
    """

    slowest: float
    fastest: float
    max_frequency: float
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.slowest < self.fastest < math.inf and 0 < self.step < math.inf):
            raise ValueError(
                f"half_plane: allowed are rates 0 <= slowest < fastest and a step over 0, got {self.slowest}, "
                f"{self.fastest} and step {self.step}"
            )
        if not 0 < self.max_frequency * self.step <= math.pi:
            raise ValueError(
                f"half_plane: max_frequency times step is a phase, over 0 and at most π = 3.1416, got "
                f"{self.max_frequency} · {self.step}"
            )

    @property
    def max_phase(self) -> float | None:  # type: ignore[override]
        """max_frequency · step, radians."""
        return self.max_frequency * self.step

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return -self.step * (self.fastest - probability * (self.fastest - self.slowest))

    @classmethod
    def example(cls) -> Self:
        return cls(0.1, 2.0, 4.0, step=0.5)


@dataclass(frozen=True)
class LogUniformTimescale(Target):
    """log τ uniform on [log shortest, log longest], τ = −1/log|λ| in steps: every time scale alike."""

    shortest: float
    longest: float
    max_phase: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.shortest < self.longest < math.inf:
            raise ValueError(
                f"log_uniform_timescale({self.shortest}, {self.longest}): allowed are 0 < shortest < longest, in steps"
            )
        check_phase("log_uniform_timescale", self.max_phase)

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return -(-self.log_timescale_quantile(probability)).exp()

    def log_timescale_quantile(self, probability: Tensor) -> Tensor:
        low, high = math.log(self.shortest), math.log(self.longest)
        return low + probability * (high - low)

    @classmethod
    def example(cls) -> Self:
        return cls(1.0, 1024.0, max_phase=math.pi)


@dataclass(frozen=True)
class TwoCluster(Target):
    """A share of the eigenvalues near 0, which select, and the rest near 1, which retain: two moduli.

    The pattern that task comparisons report (Rickenbach et al. 2025, arXiv 2510.09379).
    """

    share: float  # of the eigenvalues at near_zero
    near_zero: float = 0.05
    near_one: float = 0.99
    max_phase: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"two_cluster: share is a fraction from 0 to 1, got {self.share}")
        if not 0 < self.near_zero < self.near_one < 1:
            raise ValueError(
                f"two_cluster: allowed are 0 < near_zero < near_one < 1, got {self.near_zero} and {self.near_one}"
            )
        check_phase("two_cluster", self.max_phase)

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        low = torch.full_like(probability, math.log(self.near_zero))
        high = torch.full_like(probability, math.log(self.near_one))
        return torch.where(probability <= self.share, low, high)

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        low, high = self.support()
        between = (log_modulus > low + tolerance) & (log_modulus < high - tolerance)
        return super().contains(log_modulus, phase, tolerance) & ~between

    def support(self) -> tuple[float, float]:
        low, high = math.log(self.near_zero), math.log(self.near_one)
        return (low if self.share > 0 else high), (high if self.share < 1 else low)

    def outline(self) -> Outline:
        reach = math.pi if self.max_phase is None else min(self.max_phase, math.pi)
        return Outline(curves=tuple(arc(end, reach) for end in sorted(set(self.support()))))

    @classmethod
    def example(cls) -> Self:
        return cls(0.4, max_phase=1.0)


def area_quantile(r_min: float, r_max: float, probability: Tensor) -> Tensor:
    """log r with r² uniform on [r_min², r_max²]."""
    inner = (r_min / r_max) ** 2  # a ratio: r_max² itself may underflow
    return math.log(r_max) + 0.5 * (inner + probability * (1 - inner)).log()


def check_radii(name: str, r_min: float, r_max: float) -> None:
    """Refuse radii that are no annulus of the unit disc."""
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(f"{name}({r_min}, {r_max}): allowed are 0 <= r_min < r_max <= 1")
