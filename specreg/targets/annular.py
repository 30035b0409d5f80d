"""Laws of moduli with a range of phases beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.targets.base import Target, check_phase


@dataclass(frozen=True)
class Ring(Target):
    """Uniform by area between two radii: |λ|² uniform on [r_min², r_max²], phase uniform on [0, max_phase].

    The initialisation of the linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349).
    """

    r_min: float
    r_max: float
    max_phase: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"ring({self.r_min}, {self.r_max}): allowed are 0 <= r_min < r_max <= 1")
        check_phase("ring", self.max_phase)

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        inner = (self.r_min / self.r_max) ** 2  # a ratio: r_max² itself may underflow
        return math.log(self.r_max) + 0.5 * (inner + probability * (1 - inner)).log()

    @classmethod
    def example(cls) -> Self:
        return cls(0.5, 0.99, max_phase=math.pi / 2)


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

    @classmethod
    def example(cls) -> Self:
        return cls(0.4, max_phase=1.0)
