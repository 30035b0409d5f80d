"""Transitions whose eigenvalues are their parameters: scalar and diagonal decays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specreg.operators.base import StructuredOperator, check_window, expanded, windowed_sign, windowed_sum
from specreg.spectrum import from_polar


@dataclass(frozen=True, eq=False)
class ScaledIdentity(StructuredOperator):
    """±exp(a) I: one decay for all n states of a head, as in attention, Mamba-2 and RetNet."""

    log_factor: Tensor  # (*batch), log of the modulus
    size: int
    sign: Tensor | None = None  # (*batch), ±1; None: positive

    normal: ClassVar[bool] = True

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.log_factor.shape, self.size, self.size))

    def dense(self) -> Tensor:
        identity = torch.eye(self.size, dtype=self.log_factor.dtype, device=self.log_factor.device)
        return self._factor()[..., None, None] * identity

    def log_modulus(self) -> Tensor:
        return self.log_factor.unsqueeze(-1)

    def phase(self) -> Tensor:
        if self.sign is None:
            return torch.zeros_like(self.log_factor).unsqueeze(-1)
        return (self.sign < 0).to(self.log_factor).expand_as(self.log_factor).unsqueeze(-1) * torch.pi

    def multiplicity(self) -> Tensor:
        return torch.tensor([self.size], device=self.log_factor.device)

    def mm(self, matrix: Tensor) -> Tensor:
        return self._factor()[..., None, None] * matrix

    def adjoint(self) -> ScaledIdentity:
        return self

    def scaled(self, log_scale: Tensor) -> ScaledIdentity:
        log_factor = self.log_factor + log_scale
        return replace(self, log_factor=log_factor, sign=expanded(self.sign, log_factor))

    def window(self, width: int, stride: int = 1) -> ScaledIdentity:
        check_window(self.shape, width, stride)
        sign = None if self.sign is None else windowed_sign(self.sign, width, stride)
        return replace(self, log_factor=windowed_sum(self.log_factor, width, stride), sign=sign)

    @classmethod
    def example(cls) -> ScaledIdentity:
        """Decays and growths of both signs, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_factor = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw)
        sign = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw).sign()
        return cls(log_factor, size=4, sign=sign)

    def _factor(self) -> Tensor:
        return self.log_factor.exp() if self.sign is None else self.sign * self.log_factor.exp()


@dataclass(frozen=True, eq=False)
class Diagonal(StructuredOperator):
    """diag(λ_1 … λ_n) by log-modulus and, for a complex operator, phase, or, for a real one, sign.

    A complex operator holds its n values; where the system takes a real part at the read-out, the conjugates belong
    to that real part and are not held (S4D, S5, LRU).
    """

    log_magnitude: Tensor  # (*batch, n)
    angle: Tensor | None = None  # (*batch, n), radians; None: a real operator
    sign: Tensor | None = None  # (*batch, n), ±1, real operators only; None: positive

    normal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.angle is not None and self.sign is not None:
            raise ValueError("Diagonal takes an angle (complex) or a sign (real), not both")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.log_magnitude.shape, self.log_magnitude.shape[-1]))

    def diagonal(self) -> Tensor:
        """The entries ``(*batch, n)``, complex where an angle is given."""
        if self.angle is not None:
            return from_polar(self.log_magnitude, self.angle)
        modulus = self.log_magnitude.exp()
        return modulus if self.sign is None else self.sign * modulus

    def dense(self) -> Tensor:
        return torch.diag_embed(self.diagonal())

    def log_modulus(self) -> Tensor:
        return self.log_magnitude

    def phase(self) -> Tensor:
        if self.angle is not None:
            return self.angle.expand_as(self.log_magnitude)
        if self.sign is None:
            return torch.zeros_like(self.log_magnitude)
        return (self.sign < 0).to(self.log_magnitude).expand_as(self.log_magnitude) * torch.pi

    def multiplicity(self) -> Tensor:
        return torch.ones(self.log_magnitude.shape[-1], dtype=torch.long, device=self.log_magnitude.device)

    def mm(self, matrix: Tensor) -> Tensor:
        return self.diagonal().unsqueeze(-1) * matrix

    def adjoint(self) -> Diagonal:
        return self if self.angle is None else replace(self, angle=-self.angle)

    def scaled(self, log_scale: Tensor) -> Diagonal:
        log_magnitude = self.log_magnitude + log_scale.unsqueeze(-1)
        angle, sign = expanded(self.angle, log_magnitude), expanded(self.sign, log_magnitude)
        return Diagonal(log_magnitude, angle=angle, sign=sign)

    def window(self, width: int, stride: int = 1) -> Diagonal:
        check_window(self.shape, width, stride)
        angle = None if self.angle is None else windowed_sum(self.phase(), width, stride)
        sign = None if self.sign is None else windowed_sign(self.sign, width, stride)
        return Diagonal(windowed_sum(self.log_magnitude, width, stride), angle=angle, sign=sign)

    @classmethod
    def example(cls) -> Diagonal:
        """Complex entries inside and outside the unit disc, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_magnitude, angle = torch.randn(2, 2, 7, 3, 4, dtype=torch.float64, generator=draw)
        return cls(log_magnitude, angle=angle)
