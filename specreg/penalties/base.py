"""Penalties: from a spectrum to a loss that is zero at its target and has a finite gradient everywhere.

A penalty pools a layer: all steps and heads that count, each eigenvalue once. `PerHead(penalty)` takes each head's
own spectrum instead and averages over heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from specreg.spectrum import Spectrum
from specreg.targets import Target


class Penalty(ABC):
    """A scalar loss of one spectrum; members are frozen dataclasses and write `loss`."""

    takes: ClassVar[type] = Spectrum  # what an estimator has to give

    def __call__(self, spectrum: Spectrum) -> Tensor:
        """The loss, scalar, at least 0; steps that do not count have no part in it and no gradient."""
        return self.loss(spectrum.counted())

    @abstractmethod
    def loss(self, spectrum: Spectrum) -> Tensor:
        """The loss of a spectrum whose masked steps have weight 0 and hold finite values, scalar, at least 0."""

    @abstractmethod
    def goal(self, count: int) -> Spectrum:
        """A spectrum of `count` values, ``(1, 1, 1, count)`` in float64, at which the loss is 0."""

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A member for tests and first tries."""


def line(log_modulus: Tensor, phase: Tensor | None = None) -> Spectrum:  # (count,), (count,)
    phase = torch.zeros_like(log_modulus) if phase is None else phase
    ones = torch.ones(len(log_modulus), dtype=torch.long)
    return Spectrum(log_modulus.view(1, 1, 1, -1), phase.view(1, 1, 1, -1), ones)


def check_target(name: str, target: object) -> None:
    if not isinstance(target, Target):
        raise ValueError(f"{name} takes a target, as in {name}(ring(0.9, 0.99)), got {target!r}")
