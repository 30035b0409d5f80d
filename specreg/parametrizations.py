"""Eigenvalues that cannot leave a region: smooth maps for `torch.nn.utils.parametrize`, each with a section.

Registered on a parameter, every optimiser and checkpoint keeps working on the unconstrained value, and assigning to
the constrained one (an initialisation) goes through `right_inverse`. Diffeomorphisms, but for `Ring`, which winds the
plane around an annulus, and `SchurStable`, which is one away from the matrix of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_DOUBLINGS = 64  # of the terms of a sum over powers
_ENDLESS = 1e100  # a sum of squares that does not converge
_LINEAR = 1e-10  # norm below which S(A) is ‖A‖² to the last digit
_LARGEST_SIZE = 1e40


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


class Ring(nn.Module):
    """An open annulus: u + iv ↦ r e^{iv} with r = r_min + (r_max − r_min) σ(u), for complex tensors.

    The plane cannot be mapped onto an annulus one to one: this is its universal covering, which takes v and v + 2π to
    one value and is a diffeomorphism otherwise. `right_inverse` gives the v in (−π, π]; it raises `ValueError` outside.
    """

    def __init__(self, r_min: float, r_max: float) -> None:
        super().__init__()
        _check_radii("Ring", r_min, r_max)
        self.radii = _Interval(r_min, r_max)

    def forward(self, free: Tensor) -> Tensor:
        radius = self.radii.reach(free.real)
        return torch.complex(radius * free.imag.cos(), radius * free.imag.sin())

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.complex(self.radii.back(value.abs(), "moduli"), value.angle())


class Sector(nn.Module):
    """An open sector of an annulus: u + iv ↦ r e^{iθ}, r and θ each between two ends by a sigmoid; complex tensors.

    A diffeomorphism of the plane onto it. Phases are in radians from −π to π, at most a turn apart; `right_inverse`
    raises `ValueError` outside.
    """

    def __init__(self, r_min: float, r_max: float, min_phase: float, max_phase: float) -> None:
        super().__init__()
        _check_radii("Sector", r_min, r_max)
        if not -math.pi <= min_phase < max_phase <= math.pi:
            raise ValueError(
                f"Sector takes phases -π <= min_phase < max_phase <= π = 3.1416, got {min_phase} and {max_phase}"
            )
        self.radii, self.phases = _Interval(r_min, r_max), _Interval(min_phase, max_phase)

    def forward(self, free: Tensor) -> Tensor:
        radius, phase = self.radii.reach(free.real), self.phases.reach(free.imag)
        return torch.complex(radius * phase.cos(), radius * phase.sin())

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.complex(self.radii.back(value.abs(), "moduli"), self.phases.back(value.angle(), "phases"))


class SignRange(nn.Module):
    """The open interval (low, high) of real eigenvalues, negative ones among them: a sigmoid.

    With the default, (−1, 1), a decay can change its sign, which finite-state tasks need (Grazzi et al. 2024, arXiv
    2411.12537). `right_inverse` raises `ValueError` outside.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"SignRange takes finite low < high, got {low} and {high}")
        self.values = _Interval(low, high)

    def forward(self, free: Tensor) -> Tensor:
        return self.values.reach(free)

    def right_inverse(self, value: Tensor) -> Tensor:
        return self.values.back(value, "values")


class SchurStable(nn.Module):
    """All square matrices ``(*batch, n, n)`` of spectral radius below `radius`, real or complex: X ↦ A on the ray of X.

    With S(A) = Σ_{k≥1} ‖(A/radius)^k‖²_F, which is finite exactly there, A is the multiple of X with S(A) = ‖X‖²_F: S
    grows along each ray from 0 to ∞, so that every stable matrix has one X, in closed form X = A √S(A)/‖A‖_F. The map
    is smooth at Jordan blocks too, since no eigenvalue is computed, and once differentiable at 0. S + n is the trace of
    the solution of P = A P Aᴴ + I; a matrix whose powers grow before they fall is held as far from the circle as they
    ask.

    What would come nearer to it than rounded entries allow stays at S(A) ‖A‖_F/radius = √n/(32 eps): up to n = 1024 no
    rounding leads out of the region from there. `right_inverse` takes twice that, so that all that `forward` gives can
    be assigned, and raises `ValueError` beyond. Works in float64; ten to twenty times the cost of S, which takes three
    products of matrices for each doubling of its terms. First and second derivatives are exact; third ones are not.
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        if not 0 < radius < math.inf:
            raise ValueError(f"SchurStable takes a finite radius over 0, got {radius}")
        self.radius = radius

    def forward(self, free: Tensor) -> Tensor:
        _check_square(free)
        wide = free.to(torch.promote_types(free.dtype, torch.float64))
        peak = wide.detach().abs().amax((-1, -2))
        peak = torch.where(peak > 0, peak, 1.0)
        shape = wide / peak[..., None, None]
        norm = _norm(shape)
        direction = shape / torch.where(norm > 0, norm, 1.0)[..., None, None]
        size = (peak * norm).clamp_max(_LARGEST_SIZE)
        small = (size < _LINEAR)[..., None, None]
        direction = torch.where(small, torch.eye(free.shape[-1]).to(direction), direction)  # of 0 there is none
        length = _length(direction, torch.where(size < _LINEAR, 1.0, size), _room(free))
        return (self.radius * torch.where(small, wide, length[..., None, None] * direction)).to(free.dtype)

    def right_inverse(self, value: Tensor) -> Tensor:
        _check_square(value)
        wide = value.to(torch.promote_types(value.dtype, torch.float64)) / self.radius
        size, total = _norm(wide), energy(wide)
        room = 2 * _room(value)
        if not bool((total * size <= room).all()):
            raise ValueError(
                f"matrices must have a spectral radius below {self.radius} by more than the rounding of their entries: "
                f"S(A)·‖A‖/radius at most {room:.3g}, got {float((total * size).max()):.3g}"
            )
        stretch = torch.where(size < _LINEAR, 1.0, total.sqrt() / torch.where(size < _LINEAR, 1.0, size))
        free: Tensor = (stretch[..., None, None] * wide).to(value.dtype)
        return free


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


class _Interval:
    """An open interval by a sigmoid; what would round to an end stays inside, by a few units in the last place."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def reach(self, free: Tensor) -> Tensor:
        margin = self._margin(free)
        return self.low + (self.high - self.low) * (margin + (1 - 2 * margin) * torch.sigmoid(free))

    def back(self, value: Tensor, what: str) -> Tensor:
        """The free value; raises `ValueError` outside."""
        margin = self._margin(value)
        if not bool(((value > self.low) & (value < self.high)).all()):
            raise ValueError(
                f"{what} must lie between {self.low} and {self.high}, both excluded, got {float(value.min()):.6g} to "
                f"{float(value.max()):.6g}"
            )
        share = (value - self.low) / (self.high - self.low)
        return torch.logit(((share - margin) / (1 - 2 * margin)).clamp(margin, 1 - margin))

    def _margin(self, like: Tensor) -> float:
        largest = max(abs(self.low), abs(self.high), self.high - self.low)
        return min(0.25, 4 * torch.finfo(like.dtype).eps * largest / (self.high - self.low))


def energy(matrix: Tensor) -> Tensor:
    """Σ_{k≥1} ‖A^k‖²_F of matrices ``(*batch, n, n)``, ``(*batch)``; 1e100 where the spectral radius is 1 or more.

    T ← T + M T Mᴴ and M ← M², from T = A Aᴴ and M = A, double the number of terms of T = Σ A^k A^kᴴ, whose trace it is.
    """
    power, total = matrix, matrix @ matrix.mH
    reached = _trace(total)
    for _ in range(_DOUBLINGS):
        total = total + power @ total @ power.mH
        power = power @ power
        before, reached = reached, _trace(total)
        growing = ~(reached <= before)  # NaN among it
        if not bool(growing.any()):
            return reached
        endless = ~(reached < _ENDLESS)  # held there: no power of it shall leave the number range
        if bool(endless.any()):
            hold = endless[..., None, None]
            power = torch.where(hold, 0.0, power)
            total = torch.where(hold, torch.full_like(total, _ENDLESS), total)
            reached = torch.where(endless, _ENDLESS, reached)
    return torch.where(growing, _ENDLESS, reached)


def _room(like: Tensor) -> float:
    return math.sqrt(like.shape[-1]) / (32 * torch.finfo(like.dtype).eps)


def _length(direction: Tensor, size: Tensor, room: float) -> Tensor:
    """The q with S(q X̂) = size², or S(q X̂) q = `room` if that is less, for ‖X̂‖_F = 1; twice differentiable in both."""
    with torch.no_grad():
        aim = size.square()

        def excess(log_square: Tensor) -> Tensor:
            q = (0.5 * log_square).exp()
            total = energy(q[..., None, None] * direction)
            return torch.maximum(_between(total, aim), _between(total * q, torch.full_like(q, room)))

        # q² ≤ S(q X̂) ≤ q²/(1 − q²)
        low, high = (torch.minimum(aim, torch.full_like(aim, room)) / (1 + aim)).log(), aim.log()
        # S may grow as 1/(1 − q²), so that a root is as near as S is great
        log_square = _root(excess, low, high, 1e-7 / (1 + aim))
        q = (0.5 * log_square).exp()
        bound = aim * q > room
    with torch.enable_grad():  # the slope of log S in log q, at least 2
        factor = torch.ones_like(q).requires_grad_()
        along = energy((factor * q)[..., None, None] * direction.detach()).log()
        (slope,) = torch.autograd.grad(along.sum(), factor)
    slope = torch.where(bound, slope + 1, slope)
    # Newton steps at a fixed slope: at the root each makes one more order of derivatives exact
    for _ in range(2):
        reached = energy(q[..., None, None] * direction).log()
        off = torch.where(bound, reached + q.log() - math.log(room), reached - 2 * size.log())
        q = q * (-off / slope).exp()
    return q


def _between(value: Tensor, aim: Tensor) -> Tensor:
    """The difference of v/(1 + v), which is nearly linear in q² and finite for all v ≥ 0."""
    return (value - aim) / ((1 + value) * (1 + aim))


def _root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, tolerance: Tensor) -> Tensor:
    """Just below the root of an increasing function between two points, for each entry (Chandrupatla 1997)."""
    a, b = high, low
    value_a, value_b = function(a), function(b)
    share = torch.full_like(a, 0.5)
    for _ in range(100):
        x = a + share * (b - a)
        value = function(x)
        same = (value > 0) == (value_a > 0)
        c, value_c = torch.where(same, a, b), torch.where(same, value_a, value_b)
        b, value_b = torch.where(same, b, a), torch.where(same, value_b, value_a)
        a, value_a = x, value
        smallest = torch.maximum(tolerance, 4e-16 * torch.maximum(a.abs(), b.abs()))
        least = (0.5 * smallest / (b - a).abs().clamp_min(1e-300)).clamp_max(0.5)
        if bool(((least >= 0.5) | (value == 0)).all()):
            break
        xi, phi = (a - b) / (c - b), (value_a - value_b) / (value_c - value_b)
        inside = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
        quadratic = value_a / (value_b - value_a) * value_c / (value_b - value_c)
        quadratic = quadratic + (c - a) / (b - a) * value_a / (value_c - value_a) * value_b / (value_c - value_b)
        share = torch.where(inside & quadratic.isfinite(), quadratic, 0.5).clamp(least, 1 - least)
    return torch.where(value_a > 0, b, a)


def _trace(matrix: Tensor) -> Tensor:
    trace: Tensor = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace.real if trace.is_complex() else trace


def _check_square(matrix: Tensor) -> None:
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"SchurStable takes square matrices (*batch, n, n), got shape {tuple(matrix.shape)}")


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix.flatten(-2), dim=-1)
    return norm


def _check_radii(name: str, r_min: float, r_max: float) -> None:
    if not 0 <= r_min < r_max < math.inf:
        raise ValueError(f"{name} takes radii 0 <= r_min < r_max, got {r_min} and {r_max}")
