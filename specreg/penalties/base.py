"""Penalties: from what an estimator gives to a loss that is zero at its target and has a finite gradient everywhere.

Most take a spectrum and pool a layer: all steps and heads that count, each eigenvalue once. `PerHead(penalty)` takes
each head's own spectrum instead and averages over heads. Others take what an eigenvalue alone does not say, and name it
in `takes`: the applied system, its matrices, Lyapunov exponents, a spectral density.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from specreg.spectrum import Spectrum
from specreg.targets import Outline, Target
from specreg.targets.base import wedge


class Penalty(ABC):
    """A scalar loss of what an estimator gives; members are frozen dataclasses and write `loss`."""

    takes: ClassVar[type] = Spectrum  # what an estimator has to give

    def __call__(self, found: Any) -> Tensor:
        """The loss, scalar, at least 0; steps that do not count have no part in it and no gradient."""
        return self.loss(found.counted() if isinstance(found, Spectrum) else found)

    @abstractmethod
    def loss(self, found: Any) -> Tensor:
        """The loss, scalar, at least 0; masked steps of a spectrum have weight 0 and hold finite values here."""

    @abstractmethod
    def goal(self, count: int) -> Any:
        """What has a loss of 0: of a spectrum `count` values, ``(1, 1, 1, count)`` in float64."""

    def outline(self) -> Outline:
        """Where a picture of the plane may show the goal; nothing, where eigenvalues alone do not say it."""
        return Outline()

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A member for tests and first tries."""


@dataclass(frozen=True)
class TargetPenalty(Penalty):
    """A penalty of a spectrum that is zero where its law is the target's; members write `loss` and check the target."""

    target: Target

    def goal(self, count: int) -> Spectrum:
        return line(*self.target.quantiles(count))

    def outline(self) -> Outline:
        return self.target.outline()


def line(log_modulus: Tensor, phase: Tensor | None = None) -> Spectrum:  # (count,), (count,)
    phase = torch.zeros_like(log_modulus) if phase is None else phase
    ones = torch.ones(len(log_modulus), dtype=torch.long)
    return Spectrum(log_modulus.view(1, 1, 1, -1), phase.view(1, 1, 1, -1), ones)


def annulus(low: float, high: float) -> Outline:
    """All phases between two log-moduli."""
    return Outline(areas=(wedge((low, high), -math.pi, math.pi),))


def check_target(name: str, target: object) -> None:
    if not isinstance(target, Target):
        raise ValueError(f"{name} takes a target, as in {name}(ring(0.9, 0.99)), got {target!r}")


def check_phases(name: str, target: object) -> None:
    check_target(name, target)
    if isinstance(target, Target) and target.max_phase is None:
        raise ValueError(f"{name} needs a target with a law of phases: give {target} a max_phase")


def check_penalty(name: str, penalty: object, beside: str = "") -> None:
    """Refuse to wrap what is no penalty of a spectrum."""
    if not isinstance(penalty, Penalty):
        raise ValueError(f"{name} takes a penalty, as in {name}(band(0.5, 1.0){beside}), got {penalty!r}")
    if penalty.takes is not Spectrum:
        raise ValueError(f"{name} takes a penalty of a spectrum; {penalty!r} takes a {penalty.takes.__name__}")
