"""Wrappers that hold back eigenvalues of large condition number κ, whose gradient in the matrix has norm κ.

The value of the loss stays as it is: an ill-conditioned eigenvalue is still seen, its pull is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from specreg.penalties.base import Penalty, check_penalty
from specreg.penalties.law import Band
from specreg.spectrum import Spectrum
from specreg.targets import Outline


@dataclass(frozen=True)
class InverseCondition(Penalty):
    """A penalty whose gradient in each eigenvalue is divided by κ: all pull on the matrix with the same force."""

    penalty: Penalty

    def __post_init__(self) -> None:
        check_penalty("inverse_condition", self.penalty)

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.penalty(_held_back(spectrum, torch.reciprocal))

    def outline(self) -> Outline:
        return self.penalty.outline()

    def goal(self, count: int) -> Spectrum:
        found: Spectrum = self.penalty.goal(count)
        return found

    @classmethod
    def example(cls) -> Self:
        return cls(Band.example())


@dataclass(frozen=True)
class ClippedCondition(Penalty):
    """A penalty whose gradient in each eigenvalue of κ > `limit` is scaled by limit/κ; `clips` counts them."""

    penalty: Penalty
    limit: float

    def __post_init__(self) -> None:
        check_penalty("clipped_condition", self.penalty, ", 1000")
        if not 1 <= self.limit < math.inf:
            raise ValueError(f"clipped_condition takes a largest κ of at least 1, got {self.limit}")

    def loss(self, spectrum: Spectrum) -> Tensor:
        return self.penalty(_held_back(spectrum, lambda condition: (self.limit / condition).clamp_max(1)))

    def outline(self) -> Outline:
        return self.penalty.outline()

    def clips(self, spectrum: Spectrum) -> Tensor:
        """How many eigenvalues that count are clipped, each by its multiplicity, scalar integer."""
        if spectrum.condition is None:
            return torch.zeros((), dtype=torch.long, device=spectrum.log_modulus.device)
        clipped = ~(spectrum.condition <= self.limit) & (spectrum.weights() > 0)
        return (clipped * spectrum.multiplicity).sum()

    def goal(self, count: int) -> Spectrum:
        found: Spectrum = self.penalty.goal(count)
        return found

    @classmethod
    def example(cls) -> Self:
        return cls(Band.example(), 1000.0)


def _held_back(spectrum: Spectrum, scale: Callable[[Tensor], Tensor]) -> Spectrum:
    """The same values, with gradients scaled; what has no κ at all (not a number, infinite) is held still."""
    if spectrum.condition is None:
        return spectrum
    factor = scale(spectrum.condition).nan_to_num(0.0)
    return replace(
        spectrum,
        log_modulus=_scale_gradient(spectrum.log_modulus, factor),
        phase=_scale_gradient(spectrum.phase, factor),
    )


def _scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """x with the derivative `factor`, in operations that every transform and compiler knows.

    The difference that carries it leaves out log|λ| = −∞, of which −∞ − (−∞) is no number, and what is held still,
    where an infinite gradient times 0 is none.
    """
    moved = torch.where(x.isfinite() & (factor != 0), x, 0.0)
    return x.detach() + factor * (moved - moved.detach())
