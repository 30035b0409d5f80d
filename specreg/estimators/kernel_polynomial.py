"""The spectral density of a symmetric operator by Chebyshev moments, which have polynomial gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.estimators.base import Estimator, as_operator
from specreg.estimators.quadrature import KrylovSpace, apply, draw_probes, lanczos
from specreg.operators import LinearOperator
from specreg.spectrum import Density
from specreg.system import LinearSystem

BOUND_STEPS = 24  # Lanczos steps for the ends of the spectrum
BOUND_PROBES = 4  # from how many of the probes
MARGIN = 0.01  # of the range, added at each end beside the residual
OVERSHOOT = 1e-3  # how far a Chebyshev moment may exceed 1 before the interval is widened
WIDENINGS = 8  # by a quarter each, before it is given up


@dataclass(frozen=True)
class KernelPolynomial(Estimator[Density]):
    """The kernel polynomial method: Chebyshev moments of random probes, damped by Jackson's kernel.

    On an interval [a, b] around the spectrum, mapped to [−1, 1], each probe v uniform on the sphere gives
    μ_m = vᴴ T_m(Ã) v, m < M, with E μ_m = (1/n) tr T_m(Ã). The damped series (Weisse, Wellein, Alvermann, Fehske 2006,
    Rev. Mod. Phys. 78, eq. 71, arXiv cond-mat/0504627) is evaluated at 2M Chebyshev nodes: its weights are not negative
    and sum to 1. Eigenvalues are blurred by about s = π (b − a)/(2M), so (1/n) tr f(A) is biased by up to s² f″/2; more
    probes do not change that. 1-Wasserstein errors fall as 1/M (Chen, Trogdon, Ubaru 2022, arXiv 2204.01941).

    ⌊M/2⌋ products with A give M moments, since T_2m = 2 T_m² − 1. The gradient is that of the value itself,
    through the recurrence of polynomials: no small eigenproblem, hence nothing to break down; with double backward.
    `bounds` (a, b) are found by a short Lanczos with a margin when None, and are constants of the gradient. The moments
    show when the spectrum leaves the interval; then found bounds are widened, and given ones raise a `ValueError`.

    The source is a symmetric or Hermitian operator, or a system with such transitions, masked steps left out.
    """

    num_moments: int
    num_probes: int
    bounds: tuple[float, float] | None = None

    gives = Density

    def __post_init__(self) -> None:
        if self.num_moments < 2 or self.num_probes < 1:
            raise ValueError(
                f"got {self.num_moments} moments and {self.num_probes} probes: allowed are from 2 and from 1 on"
            )
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds {self.bounds} of the spectrum: the first must be below the second")

    def __call__(self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None) -> Density:
        operator = as_operator(source, "KernelPolynomial")
        probes = draw_probes(operator, self.num_probes, generator)
        centre, radius = self._interval(operator, probes)
        for _ in range(WIDENINGS):
            moments = chebyshev_moments(operator, probes, centre, radius, self.num_moments)
            outside = ~(moments.detach().abs().amax((-1, -2)) <= 1 + OVERSHOOT)
            if not outside.any():
                return self._density(moments, centre, radius)
            if self.bounds is not None:
                break
            radius = torch.where(outside[..., None, None], 1.25 * radius, radius)
        where = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"the spectrum of batch element {where} is not inside its bounds, or the operator is not symmetric and "
            "finite: give wider `bounds`"
        )

    def _interval(self, operator: LinearOperator, probes: Tensor) -> tuple[Tensor, Tensor]:
        if self.bounds is None:
            with torch.no_grad():
                return spectral_interval(lanczos(operator, probes[..., :BOUND_PROBES, :], BOUND_STEPS))
        low, high = self.bounds
        ones = torch.ones_like(probes[..., :1, :1].real)
        return ones * (low + high) / 2, ones * (high - low) / 2

    def _density(self, moments: Tensor, centre: Tensor, radius: Tensor) -> Density:
        count, points = self.num_moments, 2 * self.num_moments
        angle = (torch.arange(points, dtype=moments.dtype, device=moments.device) + 0.5) * math.pi / points
        order = torch.arange(count, dtype=moments.dtype, device=moments.device)
        series = torch.where(order > 0, 2.0, 1.0) * jackson(order, count) / points
        weights = (moments * series) @ torch.cos(order.unsqueeze(-1) * angle)
        return Density((centre + radius * angle.cos()).expand_as(weights), weights)


def jackson(order: Tensor, count: int) -> Tensor:
    """Jackson's damping factors g_m of `count` moments, which keep a truncated Chebyshev series from going negative."""
    step = math.pi / (count + 1)
    return ((count - order + 1) * torch.cos(order * step) + torch.sin(order * step) / math.tan(step)) / (count + 1)


def spectral_interval(krylov: KrylovSpace) -> tuple[Tensor, Tensor]:
    """Centre and half-width ``(*batch, 1, 1)`` of an interval that holds the spectrum, but for bad luck.

    Ritz values lie inside the spectrum, and some eigenvalue is within β_k |s_kj| of each (Parlett 1998); the interval
    adds that at both ends and `MARGIN`. Bad luck is a probe without any part in an extreme eigenvector.
    """
    size = krylov.projected.shape[-1]
    absent = torch.arange(size, device=krylov.dimension.device) >= krylov.dimension.unsqueeze(-1)
    projected = (krylov.projected + krylov.projected.mH) / 2
    # what the recurrence did not reach repeats the first Rayleigh quotient, which is inside
    nodes, vectors = torch.linalg.eigh(projected + torch.diag_embed(torch.where(absent, projected[..., 0, :1], 0.0)))
    error = krylov.residual.unsqueeze(-1) * vectors[..., -1, :].abs()
    high = (nodes + error)[..., -1].amax(-1)
    low = (nodes - error)[..., 0].amin(-1)
    centre, radius = (high + low) / 2, (high - low) / 2
    # a multiple of the identity has no range
    floor = torch.finfo(centre.dtype).eps ** 0.5 * torch.where(centre == 0, 1.0, centre.abs())
    radius = (1 + 2 * MARGIN) * torch.maximum(radius, floor)
    return centre[..., None, None] * krylov.scale, radius[..., None, None] * krylov.scale


def chebyshev_moments(
    operator: LinearOperator, probes: Tensor, centre: Tensor, radius: Tensor, count: int
) -> Tensor:  # (*batch, probes, n), (*batch, 1, 1) twice
    """μ_m = vᴴ T_m((A − centre)/radius) v for m < count, ``(*batch, probes, count)``, two from each product with A."""
    before = probes
    current = (apply(operator, probes) - centre * probes) / radius
    one = _inner(probes, probes)
    first = _inner(probes, current)
    moments = [one, first]
    while len(moments) < count:
        moments.append(2 * _inner(current, current) - one)
        if len(moments) < count:
            following = 2 * (apply(operator, current) - centre * current) / radius - before
            moments.append(2 * _inner(following, current) - first)
            before, current = current, following
    return torch.stack(moments, -1)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left, right)
    return product.real
