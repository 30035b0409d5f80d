"""Target spectra: one object initialises (`quantiles`), penalises (`distance`), constrains (`contains`) and is drawn.

A target is a law of eigenvalues of a step: a map from the unit square to log-modulus and phase (`place`). Most laws
have moduli and phases that are independent, each with its own quantile function; a `Planar` law has them together,
because it is a set of points or came from a continuous-time law through a step. A target without a phase law leaves
the phase to the model: `Ring(0.9, 0.99)` can be met by a model of real decays, `Ring(0.9, 0.99, max_phase=0.3)` cannot.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.spectrum import Spectrum, log_timescale
from specreg.transport import circular_wasserstein, sliced_wasserstein, wasserstein

Path = tuple[Tensor, Tensor]
"""log-moduli and phases of consecutive points, each ``(m,)``, float64."""

FINE = 4096  # values that stand for a law whose marginals have no closed form
ARC = 181  # points of a drawn arc


@dataclass(frozen=True, eq=False)
class Outline:
    """What a picture of a law needs: boundaries to fill, curves and points, both conjugates of each."""

    areas: tuple[Path, ...] = ()  # closed: the last point joins the first
    curves: tuple[Path, ...] = ()
    points: tuple[Path, ...] = ()


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

    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor | None]:
        """log-modulus and phase at each point of the unit square; uniform points give the law."""
        return self.log_modulus_quantile(first), self.phase_quantile(second)

    def quantiles(self, count: int) -> tuple[Tensor, Tensor | None]:
        """`count` values that represent the law best: log-moduli and phases at the midpoints (i + ½)/count, float64.

        The second coordinate is spread over the first by a golden-ratio order, so that the laws of moduli and phases
        are both met exactly where they are independent, and nothing is drawn at random.
        """
        check_count(count)
        middle = midpoints(count)
        return self.place(middle, middle[spread_order(count)])

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """`count` independent draws of log-modulus and phase, each ``(count,)``, float64."""
        check_count(count)
        device = None if generator is None else generator.device
        first, second = torch.rand(2, count, dtype=torch.float64, generator=generator, device=device)
        return self.place(first, second)

    def distance(self, spectrum: Spectrum) -> Tensor:
        """1-Wasserstein distance to the law, pooled: log-timescale in log steps, plus phase in radians."""
        distance = self.timescale_distance(spectrum)
        return distance if self.max_phase is None else distance + self.phase_distance(spectrum)

    def timescale_distance(self, spectrum: Spectrum) -> Tensor:
        """1-Wasserstein distance between the laws of log τ, scalar; both continued alike where τ is beyond measure."""
        spectrum = spectrum.counted()
        weights = spectrum.weights()
        moduli, _ = self.marginals(represented(spectrum))
        return wasserstein(spectrum.log_timescale, weights, lambda p: log_timescale(moduli(p)))

    def phase_distance(self, spectrum: Spectrum) -> Tensor:
        """Circular 1-Wasserstein distance between the laws of |phase|, conjugates counted as one, scalar."""
        if self.max_phase is None:
            raise ValueError(f"{self} has no law of phases: give it max_phase")
        spectrum = spectrum.counted()
        weights = spectrum.weights()
        _, phases = self.marginals(represented(spectrum))
        return circular_wasserstein(spectrum.folded_phase, weights, lambda p: _folded(phases(p)))

    def marginals(self, count: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor | None]]:
        """The quantile functions of log |λ| and of the phase with which `count` values are compared."""
        return self.log_modulus_quantile, self.phase_quantile

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each value lies in the support, up to `tolerance` in log-modulus and phase; bool, same shape."""
        low, high = self.support()
        inside = (log_modulus >= low - tolerance) & (log_modulus <= high + tolerance)
        if self.max_phase is None:
            return inside
        return inside & (fold(phase) <= min(self.max_phase, math.pi) + tolerance)

    def support(self) -> tuple[float, float]:
        """The smallest and the largest log |λ| of the law."""
        ends = self.log_modulus_quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return float(ends[0]), float(ends[1])

    def outline(self) -> Outline:
        """The support as it is drawn: here an annulus, or its sector of phases up to `max_phase` on both sides."""
        reach = math.pi if self.max_phase is None else min(self.max_phase, math.pi)
        return Outline(areas=(wedge(self.support(), -reach, reach),))


class Planar(Target):
    """A law whose moduli and phases depend on each other; members write `place`, `support` and `contains`.

    Phases are those of one of each pair of conjugates, in [0, π]. `count` values are compared with the law's own
    `quantiles(count)`.
    """

    @property
    def max_phase(self) -> float | None:  # type: ignore[override]
        """The largest phase, radians."""
        return float(self._values(FINE)[1].max())

    @abstractmethod
    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """log-modulus and phase at each point of the unit square."""

    @abstractmethod
    def support(self) -> tuple[float, float]:
        """The smallest and the largest log |λ| of the law."""

    @abstractmethod
    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether each value, or its conjugate, lies in the support, up to `tolerance`; bool, same shape."""

    @abstractmethod
    def outline(self) -> Outline:
        """The support as it is drawn."""

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        """log |λ| at each probability, from 4096 values of the law."""
        return self.marginals(FINE)[0](probability)

    def phase_quantile(self, probability: Tensor) -> Tensor | None:
        """The phase at each probability, from 4096 values of the law."""
        return self.marginals(FINE)[1](probability)

    def distance(self, spectrum: Spectrum) -> Tensor:
        """Sliced 1-Wasserstein distance of (log τ, |phase|) to the law, pooled: the mean over 16 directions.

        Scaled by π/2, so that a shift of the whole law is its length. With it, unlike with the sum of the distances of
        moduli and of phases, every modulus has to meet its own phase.
        """
        spectrum = spectrum.counted()
        weights = spectrum.weights()
        log_modulus, phase = self._values(represented(spectrum))
        points = torch.stack((log_timescale(log_modulus), phase), -1)
        values = torch.stack((spectrum.log_timescale, spectrum.folded_phase), -1)
        return sliced_wasserstein(values.flatten(0, -2), weights.flatten(), points.to(values))

    def marginals(self, count: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor | None]]:
        log_modulus, phase = self._values(count)
        return steps_through(log_modulus), steps_through(phase)

    def _values(self, count: int) -> tuple[Tensor, Tensor]:
        log_modulus, phase = self.quantiles(count)
        assert phase is not None
        return log_modulus, phase


def steps_through(values: Tensor) -> Callable[[Tensor], Tensor]:  # (m,)
    """The quantile function of m values of equal weight."""
    ordered = values.sort().values

    def quantile(probability: Tensor) -> Tensor:
        # a hundredth of a step up: the same side of an edge in float32 and float64
        index = (probability * len(ordered) + 0.01).long().clamp(0, len(ordered) - 1)
        return ordered.to(probability.device)[index]

    return quantile


def wedge(ends: tuple[float, float], start: float, stop: float) -> Path:
    """The boundary of a range of log-moduli between two phases: the outer arc, and the inner one back."""
    angle = torch.linspace(start, stop, ARC, dtype=torch.float64)
    low, high = (torch.full_like(angle, end) for end in ends)
    return torch.cat((high, low)), torch.cat((angle, angle.flip(0)))


def arc(log_modulus: float, reach: float) -> Path:
    """The points of one modulus, phases up to `reach` on both sides."""
    angle = torch.linspace(-reach, reach, ARC, dtype=torch.float64)
    return torch.full_like(angle, log_modulus), angle


def both(log_modulus: Tensor, phase: Tensor) -> Path:
    """Values and their conjugates."""
    return log_modulus.repeat(2), torch.cat((phase, -phase))


def represented(spectrum: Spectrum) -> int:
    """How many points stand for a law beside a spectrum: as many as values count, half of them if they come in pairs.

    A real matrix has λ and λ̄ both, so that no more than half of its values, folded, can be where they like. A model of
    complex states holds one of each pair, and all of them can.
    """
    kept = (spectrum.weights() > 0).flatten()
    phase = torch.remainder(spectrum.phase.detach().flatten() + math.pi, 2 * math.pi) - math.pi
    phase = phase.expand(kept.shape)
    upper, lower = kept & (phase > 0) & (phase < math.pi), kept & (phase < 0) & (phase > -math.pi)
    above, below = (torch.where(side, phase.abs(), 4.0).sort().values for side in (upper, lower))
    alike = torch.isclose(above, below, rtol=1e-3, atol=1e-6).all() & (upper.sum() == lower.sum()) & upper.any()
    count = kept.sum()
    count = torch.where(alike, (count + 1) // 2, count).clamp_min(1)
    found = int(count)
    if torch.compiler.is_compiling():
        torch._check(found >= 1)
    return found


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


def fold(phase: Tensor) -> Tensor:
    """|arg λ| in [0, π] of a phase of any turn."""
    return torch.remainder(phase + math.pi, 2 * math.pi).sub(math.pi).abs()


def _folded(phase: Tensor | None) -> Tensor:
    assert phase is not None
    return fold(phase)
