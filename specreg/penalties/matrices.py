"""Penalties on matrices, on Lyapunov exponents and on spectral densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from specreg.eigen.nonnormal import henrici_departure
from specreg.operators import Dense, StructuredOperator
from specreg.penalties.base import Penalty, check_target
from specreg.spectrum import Density, Exponents
from specreg.targets import Signed, Target, midpoints

_FASTEST = 1e4  # nats a step: an exponent below minus that is read as that
_FAR = 1e4  # excess from which a square is continued as a line
_POINTS = 512  # of a density's target


@dataclass(frozen=True)
class Normality(Penalty):
    """The mean over matrices of ‖AᴴA − AAᴴ‖²_F/‖A‖⁴_F: 0 for a normal matrix, whose eigenvalues say all, at most 2.

    Smooth at a defective matrix too, where Henrici's departure Δ = √(‖A‖²_F − Σ|λ|²) is not, and without an eigensolve.
    The two vanish together: 12 Δ⁴/(n³ − n) ≤ ‖AᴴA − AAᴴ‖²_F ≤ 6 Δ² ‖A‖²_F (Henrici 1962; Elsner, Paardekooper 1987). A
    matrix of zeros is normal.
    """

    takes: ClassVar[type] = StructuredOperator

    def loss(self, operator: StructuredOperator) -> Tensor:
        scaled = _scaled(operator.dense())
        commutator = scaled.mH @ scaled - scaled @ scaled.mH
        size = scaled.abs().square().sum((-1, -2))
        ratio = commutator.abs().square().sum((-1, -2)) / torch.where(size > 0, size, 1.0).square()
        return ratio.sum() / max(1, ratio.numel())

    def goal(self, count: int) -> StructuredOperator:
        """A cyclic shift of `count` states."""
        return Dense(torch.eye(count, dtype=torch.float64).roll(1, 0))

    @classmethod
    def example(cls) -> Self:
        return cls()


@dataclass(frozen=True)
class HenriciDeparture(Penalty):
    """Keeps matrices near to normal: the mean of relu(√(1 − Σ|λ|²/‖A‖²_F) − most)², the departure relative to the norm.

    The relative departure is 0 for a normal matrix and 1 for a nilpotent one (Henrici 1962). Its gradient is that of
    the eigenvalues, which is large near defective matrices: `Normality` has none of that.
    """

    takes: ClassVar[type] = StructuredOperator

    most: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise ValueError(f"henrici_departure takes a largest relative departure from 0 to 1, got {self.most}")

    def loss(self, operator: StructuredOperator) -> Tensor:
        scaled = _scaled(operator.dense())
        size = torch.linalg.vector_norm(scaled.flatten(-2), dim=-1)
        departure = henrici_departure(scaled) / torch.where(size > 0, size, 1.0)
        return (departure - self.most).clamp_min(0).square().sum() / max(1, departure.numel())

    def goal(self, count: int) -> StructuredOperator:
        """A cyclic shift of `count` states."""
        return Normality().goal(count)

    @classmethod
    def example(cls) -> Self:
        return cls(0.1)


@dataclass(frozen=True)
class LyapunovDistance(Penalty):
    """Σ_i (exponent_i − target_i)², averaged over the batch: targets evenly spaced from `largest` to `smallest`.

    With both at 0, the default, all tangent directions are kept from vanishing and exploding (gradient flossing,
    Engelken 2023, arXiv 2312.17306). Exponents below −10⁴ nats a step are read as that.
    """

    takes: ClassVar[type] = Exponents

    largest: float = 0.0
    smallest: float = 0.0

    def __post_init__(self) -> None:
        if not -_FASTEST <= self.smallest <= self.largest < math.inf:
            raise ValueError(
                f"lyapunov_distance({self.largest}, {self.smallest}): allowed are finite exponents in nats a step, "
                "largest >= smallest"
            )

    def loss(self, exponents: Exponents) -> Tensor:
        values = exponents.values
        off = values.clamp_min(-_FASTEST) - self._targets(values.shape[-1]).to(values)
        return _square(off.abs()).sum(-1).mean()

    def goal(self, count: int) -> Exponents:
        values = self._targets(count)
        return Exponents(values, torch.zeros_like(values))

    def _targets(self, count: int) -> Tensor:
        return torch.linspace(self.largest, self.smallest, count, dtype=torch.float64)

    @classmethod
    def example(cls) -> Self:
        return cls(0.0, -1.0)


@dataclass(frozen=True)
class DensityBand(Penalty):
    """Keeps the eigenvalues of a symmetric operator in [low, high]: the mean squared excess under its density.

    Linear in the density, so that the estimate from few probes is as unbiased as the density is.
    """

    takes: ClassVar[type] = Density

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf:
            raise ValueError(f"density_band({self.low}, {self.high}): allowed are finite low <= high")

    def loss(self, density: Density) -> Tensor:
        above, below = (density.nodes - self.high).clamp_min(0), (self.low - density.nodes).clamp_min(0)
        return (density.weights * (_square(above) + _square(below))).sum(-1).mean()

    def goal(self, count: int) -> Density:
        return _density(self.low + (self.high - self.low) * midpoints(count))

    @classmethod
    def example(cls) -> Self:
        return cls(-0.5, 0.5)


@dataclass(frozen=True)
class DensityDistance(Penalty):
    """The energy distance between a density, smoothed over `width`, and that of a target's real parts times `scale`.

    2 E k(x, y) − E k(x, x') − E k(y, y') with k = √((x − y)² + width²), x and x' nodes of two different probes: without
    the pairs of one probe the estimate is unbiased, and may fall below 0 by its sampling error. Raises `ValueError` for
    a single probe.
    """

    takes: ClassVar[type] = Density

    target: Target
    width: float = 0.05
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_target("density_distance", self.target)
        if not (0 < self.width < math.inf and 0 < self.scale < math.inf):
            raise ValueError(f"density_distance takes a width and a scale over 0, got {self.width} and {self.scale}")

    def loss(self, density: Density) -> Tensor:
        nodes, weights = density.nodes, density.weights  # (*batch, probes, m)
        probes = nodes.shape[-2]
        if probes < 2:
            raise ValueError("an unbiased distance needs at least 2 probes, got 1: ask the estimator for more")
        points = self._points().to(nodes)
        mutual = (weights * self._kernel(nodes, points).mean(-1)).sum(-1).mean(-1)
        flat, mass = nodes.flatten(-2), weights.flatten(-2)
        pairs = self._kernel(flat, flat) * mass.unsqueeze(-1) * mass.unsqueeze(-2)
        probe = torch.arange(probes, device=nodes.device).repeat_interleave(nodes.shape[-1])
        between = torch.where(probe.unsqueeze(-1) != probe, pairs, 0.0).sum((-1, -2)) / (probes * (probes - 1))
        return (2 * mutual - between - self._kernel(points, points).mean()).mean()

    def goal(self, count: int) -> Density:
        """The target's own 512 values, for every count."""
        return _density(self._points())

    def _points(self) -> Tensor:
        log_modulus, phase = self.target.quantiles(_POINTS)
        real = log_modulus.exp() if phase is None else log_modulus.exp() * phase.cos()
        return self.scale * real

    def _kernel(self, first: Tensor, second: Tensor) -> Tensor:
        off = (first.unsqueeze(-1) - second.unsqueeze(-2)) / self.width
        return self.width * torch.hypot(off, torch.ones_like(off))

    @classmethod
    def example(cls) -> Self:
        return cls(Signed(-0.9, 0.95))


def _scaled(matrix: Tensor) -> Tensor:
    """The matrix over its largest entry: fourth powers leave float32 from 1e±10 on."""
    largest = matrix.detach().abs().amax((-1, -2), keepdim=True)
    return matrix / torch.where(largest > 0, largest, 1.0)


def _square(excess: Tensor) -> Tensor:
    """x² up to 10⁴ and its tangent from there: 1e30 squared is no float32. For x ≥ 0."""
    near = excess.clamp_max(_FAR)
    return near.square() + 2 * _FAR * (excess - near)


def _density(nodes: Tensor) -> Density:  # (m,)
    nodes = nodes.expand(2, -1)
    return Density(nodes, torch.full_like(nodes, 1 / nodes.shape[-1]))
