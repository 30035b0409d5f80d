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
    condition: Tensor | None = None  # (B|1, T|1, H, m), κ = ‖x‖‖y‖/|yᴴx| ≥ 1, detached; None: no solve

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
    residuals: Tensor  # (*batch, k), larger of ‖A x − λ x‖ and ‖Aᴴ y − λ̄ y‖ for unit x, y over the largest |θ| seen
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
        return _mean_and_error(self._samples(function))

    def moment_gradient(self, function: Callable[[Tensor], Tensor], parameter: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of (1/n) tr f(A), summed over the batch, and its standard error, shaped as `parameter`.

        One backward pass for each probe: for a check or a plot. In training, differentiate `moment`.
        """
        samples = [sample.sum() for sample in self._samples(function).unbind(-1)]
        gradients = [torch.autograd.grad(sample, parameter, retain_graph=True)[0] for sample in samples]
        return _mean_and_error(torch.stack(gradients, -1))

    def squared_error(self, function: Callable[[Tensor], Tensor], goal: Tensor | float) -> Tensor:
        """An unbiased estimate of ((1/n) tr f(A) − goal)², ``(*batch)``; may be negative, its gradient is unbiased too.

        The square of an estimate is too large by its variance. This is the mean over pairs of distinct probes of
        the product of their errors (Hoeffding 1948), so that every product is of independent factors.
        """
        errors = self._samples(function) - torch.as_tensor(goal, dtype=self.nodes.dtype).to(self.nodes)[..., None]
        probes = self._at_least_two()
        return (errors.sum(-1).square() - errors.square().sum(-1)) / (probes * (probes - 1))

    def split(self) -> tuple[Density, Density]:
        """Two densities of disjoint probes, so that a product of an estimate of each is unbiased."""
        half = self._at_least_two() // 2
        return (
            Density(self.nodes[..., :half, :], self.weights[..., :half, :]),
            Density(self.nodes[..., half:, :], self.weights[..., half:, :]),
        )

    def smoothed(self, points: Tensor, width: float) -> Tensor:
        """The density convolved with a normal law of standard deviation `width`, at `points` (p,): ``(*batch, p)``.

        The width is part of the loss: tie it to the range of the spectrum and hold it. Units: per unit of λ.
        """
        if not width > 0:
            raise ValueError(f"width is {width}: allowed are numbers above 0, in units of the eigenvalues")
        offset = (points - self.nodes.unsqueeze(-1)) / width  # (*batch, probes, m, p)
        kernel = (-0.5 * offset.square()).exp() / (width * math.sqrt(2 * math.pi))
        return (self.weights.unsqueeze(-1) * kernel).sum(-2).mean(-2)

    def distance(self, nodes: Tensor, weights: Tensor | None = None) -> Tensor:
        """The 1-Wasserstein distance to a law Σ weights δ_nodes, ``(*batch)``.

        Nodes and weights ``(*batch|1, m′)``; weights None: equal. It is ∫ |F − G| dλ for the
        distribution functions F of the mean over probes and G, in units of λ.
        """
        own, own_weights = self.nodes.flatten(-2), self.weights.flatten(-2) / self.nodes.shape[-2]
        if weights is None:
            weights = torch.full_like(nodes, 1 / nodes.shape[-1])
        shape = (*own.shape[:-1], nodes.shape[-1])
        points, order = torch.cat((own, nodes.expand(shape)), -1).sort(-1)
        excess = torch.cat((own_weights, -weights.expand(shape)), -1).gather(-1, order).cumsum(-1)
        return (excess[..., :-1].abs() * points.diff(dim=-1)).sum(-1)

    def _samples(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return (self.weights * function(self.nodes)).sum(-1)

    def _at_least_two(self) -> int:
        probes = self.nodes.shape[-2]
        if probes < 2:
            raise ValueError(f"independent halves need at least 2 probes, got {probes}: ask the estimator for more")
        return probes


@dataclass(frozen=True, eq=False)
class Exponents:
    """Lyapunov exponents of a product of transitions, largest first, in nats a step."""

    values: Tensor  # (*batch, k)
    standard_error: Tensor  # (*batch, k), over windows of time, detached
    basis: Tensor | None = None  # (*batch, n, k), orthonormal, detached: where the next call goes on; None: closed form


def _mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    probes = samples.shape[-1]
    if probes < 2:
        raise ValueError("a standard error needs at least 2 probes, got 1: ask the estimator for more")
    return samples.mean(-1), samples.std(-1) / math.sqrt(probes)


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
