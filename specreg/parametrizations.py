"""Eigenvalues that cannot leave a region: smooth maps for `torch.nn.utils.parametrize`, each with a section.

Registered on a parameter, every optimiser and checkpoint keeps working on the unconstrained value, and assigning to
the constrained one (an initialisation) goes through `right_inverse`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Disc(nn.Module):
    """The open disc of a radius: z ↦ radius · z/√(1 + |z|²), a diffeomorphism of the plane onto it.

    For complex tensors, or real ones (the interval). What would round to the circle stays inside it, by a few units in
    the last place, so that `right_inverse` takes back all that `forward` gives; it raises `ValueError` outside.
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        if not 0 < radius < math.inf:
            raise ValueError(f"Disc takes a finite radius over 0, got {radius}")
        self.radius = radius

    def forward(self, free: Tensor) -> Tensor:
        modulus = free.abs()
        # hypot: |z|² overflows float32 from 2e19, and 0 would come out
        return self._reach(free) * free / torch.hypot(torch.ones_like(modulus), modulus)

    def right_inverse(self, value: Tensor) -> Tensor:
        if not bool((value.abs() < self.radius).all()):
            raise ValueError(
                f"values must lie inside the disc of radius {self.radius}, got modulus {float(value.abs().max()):.6g}"
            )
        scaled = value / self._reach(value)
        modulus = scaled.abs().clamp_max(1 - torch.finfo(value.dtype).eps)
        return scaled / ((1 - modulus) * (1 + modulus)).sqrt()

    def _reach(self, like: Tensor) -> float:
        return self.radius * (1 - 4 * torch.finfo(like.dtype).eps)


class TimescaleInterval(nn.Module):
    """ν = log(−log|λ|) = −log τ with τ between two timescales: a sigmoid in log τ.

    For parameters that hold ν, as the LRU's does. What would round to an end stays inside, by a few units in the last
    place, so that `right_inverse` takes back all that `forward` gives; it raises `ValueError` outside.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        super().__init__()
        if not 0 < shortest < longest < math.inf:
            raise ValueError(f"TimescaleInterval takes 0 < shortest < longest in steps, got {shortest} and {longest}")
        self.shortest, self.longest = shortest, longest

    def forward(self, free: Tensor) -> Tensor:
        low, high, margin = self._range(free)
        share = margin + (1 - 2 * margin) * torch.sigmoid(free)
        return -(low + (high - low) * share)

    def right_inverse(self, log_rate: Tensor) -> Tensor:
        low, high, margin = self._range(log_rate)
        share = (-log_rate - low) / (high - low)
        if not bool(((share > 0) & (share < 1)).all()):
            raise ValueError(
                f"timescales must lie between {self.shortest} and {self.longest} steps, both excluded, got "
                f"{float((-log_rate).min().exp()):.6g} to {float((-log_rate).max().exp()):.6g}"
            )
        return torch.logit(((share - margin) / (1 - 2 * margin)).clamp(margin, 1 - margin))

    def _range(self, like: Tensor) -> tuple[float, float, float]:
        """log shortest, log longest, and a margin, as a share of the way between, that covers the rounding of ν."""
        low, high = math.log(self.shortest), math.log(self.longest)
        largest = max(abs(low), abs(high), high - low)
        return low, high, min(0.25, 4 * torch.finfo(like.dtype).eps * largest / (high - low))
