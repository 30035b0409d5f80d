"""Laws of continuous-time state-space models, brought into the unit disc by a step.

A continuous eigenvalue a = −ρ + iω decays at ρ and turns at ω per unit of time. Over a step Δ it becomes λ = e^{Δa}
(zero-order hold, what S4D does), or (1 + Δa/2)/(1 − Δa/2) by the bilinear rule (what S4 does): `Bilinear(law)`. With
ranges of steps the law of Δ is log-uniform, as the published initialisations draw it, one step for each channel.
Frequencies beyond π/Δ fold back, as they do in the model.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.spectrum import from_polar
from specreg.targets.base import ARC, Outline, Planar, both, fold


@dataclass(frozen=True)
class Stepped(Planar):
    """Finitely many continuous eigenvalues of equal weight, each at a step that is log-uniform on a range."""

    size: int  # N, of the real state
    shortest_step: float = 0.001
    longest_step: float = 0.1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.size < self.smallest_size() or self.size % self.smallest_size():
            raise ValueError(
                f"{name}: size is the number N of real states, a positive multiple of {self.smallest_size()}, "
                f"got {self.size}"
            )
        if not 0 < self.shortest_step <= self.longest_step < math.inf:
            raise ValueError(
                f"{name}: allowed are 0 < shortest_step <= longest_step, got {self.shortest_step} and "
                f"{self.longest_step}"
            )

    @abstractmethod
    def continuous(self) -> tuple[Tensor, Tensor]:
        """ρ > 0 and ω ≥ 0 of each a = −ρ + iω, float64, one of each pair of conjugates."""

    @classmethod
    def smallest_size(cls) -> int:
        """2: conjugate pairs."""
        return 2

    def scaled(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Δρ and Δω at each point of the unit square: the index of a along one axis, log Δ along the other."""
        rate, frequency = (x.to(first.device) for x in self.continuous())
        index = (first * len(rate)).long().clamp(0, len(rate) - 1)
        low, high = math.log(self.shortest_step), math.log(self.longest_step)
        step = (low + second * (high - low)).exp()
        return step * rate[index], step * frequency[index]

    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        decay, turn = self.scaled(first, second)
        return -decay, fold(turn)

    def support(self) -> tuple[float, float]:
        rate, _ = self.continuous()
        return -self.longest_step * float(rate.max()), -self.shortest_step * float(rate.min())

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        """λ = e^{Δa} asks for Δ = −log|λ|/ρ, which has to lie in the range and to give the phase as well."""
        rate, frequency = (x.to(log_modulus) for x in self.continuous())
        step = -log_modulus.unsqueeze(-1) / rate
        slack = tolerance / rate
        near = (step >= self.shortest_step - slack) & (step <= self.longest_step + slack)
        turned = fold(step.clamp(self.shortest_step, self.longest_step) * frequency)
        off = (turned - fold(phase).unsqueeze(-1)).abs()
        return (near & (off <= tolerance + slack * frequency)).any(-1)

    def outline(self) -> Outline:
        return traced(self, self)


@dataclass(frozen=True)
class HippoLegS(Stepped):
    """a = −1, −2, …, −N: the eigenvalues of the HiPPO-LegS matrix, real, as λ = e^{−Δn}.

    A_nk = −√((2n+1)(2k+1)) below the diagonal and −(n+1) on it (Gu et al. 2020, arXiv 2008.07669): triangular, and so
    far from normal that a dense solve of the discretised matrix finds none of them from N ≈ 24 on.
    """

    def continuous(self) -> tuple[Tensor, Tensor]:
        rate = torch.arange(1, self.size + 1, dtype=torch.float64)
        return rate, torch.zeros_like(rate)

    @classmethod
    def smallest_size(cls) -> int:
        """1: real eigenvalues."""
        return 1

    @classmethod
    def example(cls) -> Self:
        return cls(16)


@dataclass(frozen=True)
class S4DLin(Stepped):
    """a_n = −½ + iπn for n < N/2: evenly spaced frequencies (Gu et al. 2022, arXiv 2206.11893)."""

    def continuous(self) -> tuple[Tensor, Tensor]:
        n = _pairs(self.size)
        return torch.full_like(n, 0.5), math.pi * n

    @classmethod
    def example(cls) -> Self:
        return cls(16)


@dataclass(frozen=True)
class S4DInv(Stepped):
    """a_n = −½ + i (N/π)(N/(2n+1) − 1) for n < N/2: near LegS's normal part (Gu et al. 2022, arXiv 2206.11893)."""

    def continuous(self) -> tuple[Tensor, Tensor]:
        n = _pairs(self.size)
        return torch.full_like(n, 0.5), self.size / math.pi * (self.size / (2 * n + 1) - 1)

    @classmethod
    def example(cls) -> Self:
        return cls(16)


@dataclass(frozen=True)
class S4DQuad(Stepped):
    """a_n = −½ + i (2n+1)²/π for n < N/2: frequencies that grow with the square (Gu et al. 2022, arXiv 2206.11893)."""

    def continuous(self) -> tuple[Tensor, Tensor]:
        n = _pairs(self.size)
        return torch.full_like(n, 0.5), (2 * n + 1).square() / math.pi

    @classmethod
    def example(cls) -> Self:
        return cls(16)


@dataclass(frozen=True)
class Bilinear(Planar):
    """A continuous-time law by the bilinear rule, λ = (1 + Δa/2)/(1 − Δa/2), instead of e^{Δa}.

    Fast modes come out at λ near −1 and not near 0: at N = 64 and Δ = 0.1 the last of LegS is −0.52, not 0.0017.
    """

    law: Stepped

    def __post_init__(self) -> None:
        if not isinstance(self.law, Stepped):
            raise ValueError(f"bilinear takes a continuous-time law, as in bilinear(hippo_leg_s(64)), got {self.law!r}")

    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return bilinear(*self.law.scaled(first, second))

    def support(self) -> tuple[float, float]:
        """|λ|² = 1 − 2ρΔ/(1 + ρΔ + |a|²Δ²/4) falls until Δ = 2/|a| and grows from there."""
        rate, frequency = self.law.continuous()
        low, high = self.law.shortest_step, self.law.longest_step
        deepest = (2 / torch.hypot(rate, frequency)).clamp(low, high)
        ends = [bilinear(step * rate, step * frequency)[0] for step in (deepest, low, high)]
        return float(ends[0].min()), max(float(end.max()) for end in ends[1:])

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        """|Δa| = 2 |λ − 1|/|λ + 1| asks for one step for each a, which has to give λ, up to a relative tolerance."""
        value = from_polar(log_modulus.double().clamp_max(1.0), fold(phase.double())).unsqueeze(-1)
        rate, frequency = (x.to(value.device) for x in self.law.continuous())
        step = 2 * (value - 1).abs() / ((value + 1).abs() * torch.hypot(rate, frequency))
        step = step.clamp(self.law.shortest_step, self.law.longest_step)
        off = (from_polar(*bilinear(step * rate, step * frequency)) - value).abs()
        return (off <= tolerance * value.abs().clamp_min(tolerance)).any(-1)

    def outline(self) -> Outline:
        return traced(self, self.law)

    @classmethod
    def example(cls) -> Self:
        return cls(S4DLin(16))


def traced(target: Planar, law: Stepped) -> Outline:
    """The points at a single step; over a range of steps, one curve and its conjugate for each a, as Δ grows."""
    count = len(law.continuous()[0])
    first = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if law.shortest_step == law.longest_step:
        return Outline(points=(both(*target.place(first, torch.zeros_like(first))),))
    second = torch.linspace(0, 1, ARC, dtype=torch.float64)
    curves = [target.place(start.expand(ARC), second) for start in first]
    return Outline(curves=tuple((lm, sign * phase) for lm, phase in curves for sign in (1, -1)))


def bilinear(decay: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """log-modulus and |phase| of (1 + s/2)/(1 − s/2) for s = −decay + i·turn, with all digits near s = 0 and −2."""
    below = (1 + 0.5 * decay).square() + 0.25 * turn.square()  # |1 − s/2|²
    above = (1 - 0.5 * decay).square() + 0.25 * turn.square()  # |1 + s/2|²
    loss = -2 * decay / below  # above/below − 1
    log_square = torch.where(loss > -0.5, torch.log1p(loss.clamp_min(-0.5)), (above / below).log())
    real = 1 - 0.25 * (decay.square() + turn.square())
    return 0.5 * log_square, torch.atan2(turn, real).abs()


def _pairs(size: int) -> Tensor:
    return torch.arange(size // 2, dtype=torch.float64)
