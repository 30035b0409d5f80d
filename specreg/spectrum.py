"""What is known of a spectrum: all eigenvalues with their counts, a few extreme ones, a density, or exponents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_RATE = 1e-6  # decay a step below which a timescale is read as "for ever" and extended smoothly
LARGEST_RATE = 1e9  # decay a step above which an eigenvalue is read as 0


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Distinct eigenvalues of a batch of transitions, as log-modulus and phase.

    Heads may be few and time steps many: the layout is always ``(B|1, T|1, H, m)``, with size-1 axes where the
    system does not vary, so that one reduction serves every mixer.
    """

    log_modulus: Tensor  # (B|1, T|1, H, m), log |λ|; −inf where λ is 0
    phase: Tensor  # (B|1, T|1, H, m), radians
    multiplicity: Tensor  # (m,), how often each occurs
    mask: Tensor | None = None  # (B|1, T), True where the step counts; None: all count
    condition: Tensor | None = None  # (B|1, T|1, H, m), κ = ‖x‖‖y‖/|yᴴx| ≥ 1 of each, detached; None: normal, all 1

    @property
    def eigenvalues(self) -> Tensor:
        """Complex values ``(B|1, T|1, H, m)``; log-moduli beyond the number range overflow here and only here."""
        return from_polar(self.log_modulus, self.phase)

    @property
    def modulus(self) -> Tensor:
        """|λ|."""
        return self.log_modulus.exp()

    @property
    def log_timescale(self) -> Tensor:
        """log τ with τ = −1/log|λ| steps, continued smoothly where |λ| ≥ 1: see `log_timescale`."""
        return log_timescale(self.log_modulus)

    @property
    def folded_phase(self) -> Tensor:
        """|arg λ| in [0, π]: conjugates, which a real system always has both of, are one value."""
        return torch.remainder(self.phase + torch.pi, 2 * torch.pi).sub(torch.pi).abs()

    def weights(self) -> Tensor:
        """Share of each value, ``(B|1, T|1, H, m)``: its multiplicity times the steps it stands for that count.

        Sums to 1, or is 0 throughout if no step counts. A size-1 axis weighs as if it were written out.
        """
        weights = self.multiplicity.to(self.log_modulus)
        if self.mask is not None:
            weights = self._steps_counted(self.mask).to(weights)[:, :, None, None] * weights
        weights = weights.expand(self.log_modulus.shape)
        return weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)

    def counted(self) -> Spectrum:
        """The same with λ = 1/e at masked steps, so that not even a NaN there reaches a sum or a gradient."""
        if self.mask is None:
            return self
        counts = (self._steps_counted(self.mask) > 0)[:, :, None, None]
        return replace(
            self, log_modulus=torch.where(counts, self.log_modulus, -1.0), phase=torch.where(counts, self.phase, 0.0)
        )

    def heads(self) -> list[Spectrum]:
        """One spectrum for each head or independent block."""
        return [
            replace(
                self,
                log_modulus=self.log_modulus[:, :, head, None],
                phase=self.phase[:, :, head, None],
                condition=None if self.condition is None else self.condition[:, :, head, None],
            )
            for head in range(self.log_modulus.shape[2])
        ]

    def detach(self) -> Spectrum:
        """The same values, cut off from the graph."""
        return replace(self, log_modulus=self.log_modulus.detach(), phase=self.phase.detach())

    def _steps_counted(self, mask: Tensor) -> Tensor:
        """How many steps that count each entry of the batch and time axes stands for, ``(B|1, T|1)``."""
        counts = mask.long()
        for axis in (0, 1):
            if self.log_modulus.shape[axis] == 1:
                counts = counts.sum(axis, keepdim=True)
        return counts


@dataclass(frozen=True, eq=False)
class Extremes:
    """A few eigenvalues at one end of a spectrum, each with its certificate; warm-starts the next call."""

    eigenvalues: Tensor  # (*batch, k), complex, or real of a symmetric operator, the most extreme first
    residuals: Tensor  # (*batch, k), the larger of ‖A x − λ x‖/|λ₁| and ‖Aᴴ y − λ̄ y‖/|λ₁| for unit x and y, recomputed
    condition: Tensor  # (*batch, k), κ = 1/|yᴴx| for unit x and y
    converged: Tensor  # (*batch, k), bool: certified to be the wanted eigenvalue, not a ghost and not a later one
    num_matvecs: int  # products with A and with Aᴴ that it took, of one batch element the most
    right: Tensor  # (*batch, n, k), unit right vectors, detached
    left: Tensor  # (*batch, n, k), unit left vectors, detached: yᴴ A = λ yᴴ


@dataclass(frozen=True, eq=False)
class Density:
    """A spectral density of a symmetric operator as weighted nodes, from independent probes."""

    nodes: Tensor  # (*batch, probes, m), real
    weights: Tensor  # (*batch, probes, m), sum to 1 over m for each probe

    def moment(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(1/n) tr f(A) and its standard error over the probes, each ``(*batch)``."""
        values = (self.weights * function(self.nodes)).sum(-1)
        probes = values.shape[-1]
        if probes < 2:
            raise ValueError("a standard error needs at least 2 probes, got 1: ask the estimator for more")
        return values.mean(-1), values.std(-1) / math.sqrt(probes)


@dataclass(frozen=True, eq=False)
class Exponents:
    """Lyapunov exponents of a product of transitions, largest first, in nats a step."""

    values: Tensor  # (*batch, k)
    standard_error: Tensor  # (*batch, k), over windows of time, detached


def from_polar(log_modulus: Tensor, phase: Tensor) -> Tensor:
    """Complex values e^{log_modulus + i phase}; the gradient of `torch.polar` is NaN where the modulus is subnormal."""
    modulus = log_modulus.exp()
    return torch.complex(modulus * phase.cos(), modulus * phase.sin())


def polar(values: Tensor) -> tuple[Tensor, Tensor]:
    """log-modulus and phase of complex `values`, with gradient 0 instead of NaN at exactly 0 (log-modulus −inf)."""
    zero = values == 0
    safe = torch.where(zero, torch.ones_like(values), values)
    modulus = safe.abs()
    # torch's gradient of `angle` divides by |z|², which underflows at 1e-30 in float32: take it on the unit circle
    return torch.where(zero, -torch.inf, modulus.log()), (safe / modulus.detach()).angle()


def log_timescale(log_modulus: Tensor) -> Tensor:
    """log τ = −log(−log|λ|) in log steps, finite with a finite gradient for every modulus.

    Below a decay of `SMALLEST_RATE` a step (τ > 10⁶, and all |λ| ≥ 1) it continues with the same value and slope
    and then grows as log(1 + …), so that a growing mode is worse than a lasting one and still has a gradient.
    Above `LARGEST_RATE` (λ = 0) it is constant.
    """
    rate = (-log_modulus).clamp_max(LARGEST_RATE)
    lasting = rate < SMALLEST_RATE
    decaying = -torch.where(lasting, 1.0, rate).log()
    excess = torch.where(lasting, (SMALLEST_RATE - rate) / SMALLEST_RATE, 0.0).log1p()
    return torch.where(lasting, excess - math.log(SMALLEST_RATE), decaying)
