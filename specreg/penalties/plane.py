"""Penalties in the plane: distances between the laws of λ and a target's, and repulsion.

Points are taken where λ lies on the unit disc and at (1 + log|λ|) e^{iθ} outside of it, which joins with the same slope
and keeps e^10000 finite. Distances fold conjugates onto one another, so that a spectrum of either or of both is the
same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.penalties.base import Penalty, TargetPenalty, check_phases, line
from specreg.spectrum import Spectrum
from specreg.targets import Disk, Ring, Target
from specreg.targets.base import fold, represented
from specreg.transport import energy_distance, sinkhorn, sliced_wasserstein

MOST_VALUES = 4096  # of a penalty that compares every value with every other


@dataclass(frozen=True)
class SlicedWasserstein(TargetPenalty):
    """π/2 times the mean over directions of the plane of the 1-Wasserstein distance between the projected laws.

    Has the unit of |λ|: a shift of the whole law by d costs d. Unlike the distances of timescales and of phases it
    wants each modulus at its own phase, and does not resolve long timescales. O(n log n).
    """

    def __post_init__(self) -> None:
        check_phases("sliced_wasserstein", self.target)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return sliced_wasserstein(*compared(spectrum, self.target))

    @classmethod
    def example(cls) -> Self:
        return cls(Ring(0.5, 0.99, max_phase=math.pi))


@dataclass(frozen=True)
class EnergyDistance(TargetPenalty):
    """The energy distance 2 E|X − Y| − E|X − X'| − E|Y − Y'| between the laws, a squared metric; O(n log n).

    Its gradient fades at the target, and its values repel one another, which keeps a spectrum off defective matrices.
    So do the real eigenvalues of a real matrix, which have to meet to leave the axis: where they are a large share of
    all, some stay (24×24 Gaussian: 2 to 8 % of the start is left; 128×128: 0.05 %), and sliced transport moves them.
    """

    def __post_init__(self) -> None:
        check_phases("energy_distance", self.target)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return energy_distance(*compared(spectrum, self.target))

    @classmethod
    def example(cls) -> Self:
        return cls(Disk(0.9))


@dataclass(frozen=True)
class Sinkhorn(TargetPenalty):
    """The debiased entropic transport cost for half the squared distance, at a blur in the unit of |λ|; O(n²).

    Half the squared 2-Wasserstein distance for blur → 0. Takes 4096 values at most, computed in float64, and raises
    `ValueError` for more: `sliced_wasserstein` and `energy_distance` have no such bound.
    """

    blur: float = 0.1

    def __post_init__(self) -> None:
        check_phases("sinkhorn", self.target)
        if not 0 < self.blur < math.inf:
            raise ValueError(f"sinkhorn takes a blur over 0, in the unit of |λ|, got {self.blur}")

    def loss(self, spectrum: Spectrum) -> Tensor:
        values, weights, points = compared(spectrum, self.target)
        kept = weights > 0
        if int(kept.sum()) > MOST_VALUES:
            raise ValueError(
                f"sinkhorn compares every value with every other: at most {MOST_VALUES}, got {int(kept.sum())}; use "
                "sliced_wasserstein or energy_distance"
            )
        if not bool(kept.any()):
            return 0 * values.sum()
        cost = sinkhorn(values[kept].double(), weights[kept].double(), points.double(), self.blur)
        return cost.to(values.dtype)

    @classmethod
    def example(cls) -> Self:
        return cls(Ring(0.5, 0.99, max_phase=math.pi), 0.2)


@dataclass(frozen=True)
class Spread(Penalty):
    """Repulsion within a step: the mean over pairs of relu(1 − d²/radius²)², d their distance in the plane.

    Pairs are those of one batch element at one step, of all heads of a layer; `PerHead(Spread(…))` keeps to one head.
    A value of multiplicity k is k values on the same spot. A pair that coincides has no direction to part in, and so no
    gradient. Takes (values of a step)² memory for each step.
    """

    radius: float

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"spread takes a radius over 0, in the unit of |λ|, got {self.radius}")

    def loss(self, spectrum: Spectrum) -> Tensor:
        steps = spectrum.weights().sum((-1, -2))  # (B|1, T|1)
        points = plane(spectrum.log_modulus, spectrum.phase).flatten(2, 3)
        count = spectrum.multiplicity.to(points).repeat(spectrum.log_modulus.shape[2])
        squares = (points.unsqueeze(-2) - points.unsqueeze(-3)).square().sum(-1)
        near = (1 - squares / self.radius**2).clamp_min(0).square()
        pairs = count.sum() * (count.sum() - 1)
        # k values on one spot are k(k − 1) pairs: each value's pair with itself is taken out
        touching = (near * count.unsqueeze(-1) * count).sum((-1, -2)) - count.sum() * near[..., 0, 0]
        return (steps * touching).sum() / pairs.clamp_min(1)

    def goal(self, count: int) -> Spectrum:
        """On a circle that is wide enough for the distance between neighbours."""
        widest = 0.9 if count == 1 else max(0.9, 1.001 * self.radius / (2 * math.sin(math.pi / count)))
        phase = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
        return line(torch.full_like(phase, math.log(widest) if widest <= 1 else widest - 1), phase)

    @classmethod
    def example(cls) -> Self:
        return cls(0.3)


def plane(log_modulus: Tensor, phase: Tensor) -> Tensor:
    """λ on the disc and (1 + log|λ|) e^{iθ} outside, as real and imaginary part ``(…, 2)``."""
    radius = torch.where(log_modulus > 0, 1 + log_modulus.clamp_min(0), log_modulus.clamp_max(0).exp())
    return torch.stack((radius * phase.cos(), radius * phase.sin()), -1)


def compared(spectrum: Spectrum, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """The folded values ``(n, 2)``, their weights ``(n,)``, and as many points of the target as can be met."""
    weights = spectrum.weights().flatten()
    log_modulus, phase = target.quantiles(represented(spectrum))
    assert phase is not None
    values = plane(spectrum.log_modulus, spectrum.folded_phase).flatten(0, -2)
    return values, weights, plane(log_modulus, fold(phase)).to(values)
