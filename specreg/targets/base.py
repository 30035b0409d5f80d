"""Target spectra: one object initialises (`quantiles`, `sample`), penalises (`distance`) and constrains (`contains`).

A target is a law of timescales τ = −1/log|λ| and, if it says so, of phases. A target without a phase law leaves the
phase to the model: `Ring(0.9, 0.99)` can be met by a model of real decays, `Ring(0.9, 0.99, max_phase=0.3)` cannot.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from specreg.spectrum import Spectrum, log_timescale
from specreg.transport import circular_wasserstein, wasserstein


class Target(ABC):
    """A law on the closed unit disc; members are frozen dataclasses."""

    max_phase: float | None = None

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A member with a law of phases, for tests and first tries."""

    @abstractmethod
    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        """log |λ| at each probability in (0, 1), increasing."""

    def phase_quantile(self, probability: Tensor) -> Tensor | None:
        """The phase in radians at each probability, uniform on [0, max_phase]; None: the phase is free."""
        return None if self.max_phase is None else probability * self.max_phase

    def log_timescale_quantile(self, probability: Tensor) -> Tensor:
        """log τ at each probability."""
        return -(-self.log_modulus_quantile(probability)).log()

    def quantiles(self, count: int) -> tuple[Tensor, Tensor | None]:
        """`count` values that represent the law best: log-moduli and phases at the midpoints (i + ½)/count, float64.

        The phases are spread over the moduli by a golden-ratio order, so that both laws are met exactly and nothing
        is drawn at random.
        """
        check_count(count)
        middle = midpoints(count)
        phase = self.phase_quantile(middle)
        if phase is not None:
            phase = phase[spread_order(count)]
        return self.log_modulus_quantile(middle), phase

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """`count` independent draws of log-modulus and phase, each ``(count,)``, float64."""
        check_count(count)
        device = None if generator is None else generator.device
        modulus, phase = torch.rand(2, count, dtype=torch.float64, generator=generator, device=device)
        return self.log_modulus_quantile(modulus), self.phase_quantile(phase)

    def distance(self, spectrum: Spectrum) -> Tensor:
        """1-Wasserstein distance to the law, pooled: log-timescale in log steps, plus phase in radians."""
        distance = self.timescale_distance(spectrum)
        return distance if self.max_phase is None else distance + self.phase_distance(spectrum)

    def timescale_distance(self, spectrum: Spectrum) -> Tensor:
        """1-Wasserstein distance between the laws of log τ, scalar; both continued alike where τ is beyond measure."""
        spectrum = spectrum.counted()
        return wasserstein(
            spectrum.log_timescale, spectrum.weights(), lambda p: log_timescale(self.log_modulus_quantile(p))
        )

    def phase_distance(self, spectrum: Spectrum) -> Tensor:
        """Circular 1-Wasserstein distance between the laws of |phase|, conjugates counted as one, scalar."""
        if self.max_phase is None:
            raise ValueError(f"{self} has no law of phases: give it max_phase")
        spectrum = spectrum.counted()
        return circular_wasserstein(
            spectrum.folded_phase, spectrum.weights(), lambda p: _folded(self.phase_quantile(p))
        )

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each value lies in the support, up to `tolerance` in log-modulus and phase; bool, same shape."""
        low, high = self.support()
        inside = (log_modulus >= low - tolerance) & (log_modulus <= high + tolerance)
        if self.max_phase is None:
            return inside
        folded = torch.remainder(phase + math.pi, 2 * math.pi).sub(math.pi).abs()
        return inside & (folded <= min(self.max_phase, math.pi) + tolerance)

    def support(self) -> tuple[float, float]:
        """The smallest and the largest log |λ| of the law."""
        ends = self.log_modulus_quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return float(ends[0]), float(ends[1])


def check_count(count: int) -> None:
    """Refuse to represent a law by no value."""
    if count < 1:
        raise ValueError(f"a target gives at least 1 value, asked for {count}")


def check_phase(name: str, max_phase: float | None) -> None:
    """Refuse a phase range that is empty or more than a turn."""
    if max_phase is not None and not 0 < max_phase <= 2 * math.pi:
        raise ValueError(f"{name}: max_phase is in radians, over 0 and at most 2π = 6.2832, got {max_phase}")


def midpoints(count: int) -> Tensor:
    """(i + ½)/count, float64."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def spread_order(count: int) -> Tensor:
    """A fixed permutation in which neighbours are far apart: ranks of the fractional parts of i · golden ratio."""
    golden = (math.sqrt(5) - 1) / 2
    return torch.remainder(torch.arange(count, dtype=torch.float64) * golden, 1.0).argsort().argsort()


def _folded(phase: Tensor | None) -> Tensor:
    assert phase is not None
    return torch.remainder(phase + math.pi, 2 * math.pi).sub(math.pi).abs()
