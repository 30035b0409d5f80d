"""What eigenvalues do not say of a matrix that is far from normal: norms, ranges and pseudospectra, with gradients.

All take finite square matrices ``(*batch, n, n)``, real or complex, float32 or float64, and give real ``(*batch)``.
Gradients are those of the envelope: the point that attains a maximum is held, which is exact to first order where it is
the only one, and one element of the generalised gradient where there are several. Second derivatives are refused.
Convention: Ā = ∂L/∂Re A + i ∂L/∂Im A. Searches in the plane run in float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.eigen.dense import checked, eigenvalues
from specreg.eigen.first_order import first_order_only
from specreg.eigen.pairs import check_finite
from specreg.eigen.resolvent import kreiss_above, kreiss_below, outermost_point

Array = NDArray[Any]

ANGLES = 64  # directions of a first look at a numerical range
CELLS = 8  # of them that are refined
LARGEST_STACK = 2**24  # entries of the matrices of all directions that are held at once
SECANTS = 10  # bracketed steps on the slope of a support function


@dataclass(frozen=True, eq=False)
class Certified:
    """A value with bounds that rounding cannot break."""

    value: Tensor  # (*batch), differentiable
    lower: Tensor  # (*batch), detached: lower ≤ the exact value ≤ upper
    upper: Tensor  # (*batch), detached


class _Envelope(torch.autograd.Function):
    """A real number for each matrix with a gradient that is known."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *of_value: Tensor) -> tuple[Tensor, None, None]:
        matrix, gradient = ctx.saved_tensors
        return first_order_only(of_value[0][..., None, None] * gradient, matrix), None, None


def spectral_norm(matrix: Tensor) -> Certified:
    """‖A‖₂, the largest singular value, certified from both sides.

    Lower: ‖Av‖/‖v‖ at the computed right vector. Upper: with the computed A = UΣVᴴ + E, ‖A‖ ≤ ‖U‖‖Σ‖‖V‖ + ‖E‖_F and
    ‖U‖² ≤ 1 + ‖UᴴU − I‖_F. Each is moved by the bound on its own rounding, γ_n = n·eps/(1 − n·eps) a product (Higham
    2002, ch. 3), so that upper − lower is about n² eps ‖A‖. Gradient u vᴴ, 0 at the zero matrix. Errors as
    `eigenvalues`.
    """
    flat, scale = _prepared(matrix)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(flat)
        size, eps = flat.shape[-1], torch.finfo(flat.dtype).eps
        rounding = 8 * size * eps
        top = right[..., :1, :].mH
        lower = torch.linalg.vector_norm(flat @ top, dim=(-1, -2)) / torch.linalg.vector_norm(top, dim=(-1, -2))
        error = torch.linalg.matrix_norm(flat - (left * values.unsqueeze(-2)) @ right)
        spread = _orthogonality(left) * _orthogonality(right)
        # entries are at most 1, so that each of the products above is off by at most γ_n ‖·‖_F ‖·‖_F in norm
        slack = rounding * size**0.5 * torch.linalg.matrix_norm(flat)
        bounds = (lower - slack).clamp_min(0), spread * values[..., 0] * (1 + rounding) + error + slack
        gradient = torch.where((values[..., 0] > 0)[..., None, None], left[..., :, :1] @ right[..., :1, :], 0.0)
    shape = matrix.shape[:-2]
    lower, upper = ((bound * scale).reshape(shape) for bound in bounds)
    value = _with_gradient(matrix, values[..., 0] * scale, gradient)
    return Certified(value, lower, upper)


def numerical_radius(matrix: Tensor) -> Tensor:
    """w(A) = max |xᴴAx| over unit x = max over θ of λ_max of the Hermitian part of e^{iθ}A.

    ρ(A) ≤ w(A) ≤ ‖A‖ ≤ 2 w(A), and ‖A^k‖ ≤ 2 w(A)^k (Berger 1965). The support function h(θ) is seen on a grid of step
    δ, which bounds w by h/cos(δ/2) (Johnson 1978, SIAM J. Numer. Anal. 15); the cells with the highest are refined by
    bracketing where h′ = −Im(e^{iθ}xᴴAx) changes its sign. Gradient e^{−iθ}xxᴴ; 0 at the zero matrix. Cost about 150
    Hermitian eigensolves. Errors as `eigenvalues`.
    """
    flat, scale = _prepared(matrix)
    with torch.no_grad():
        work = flat.to(torch.promote_types(flat.dtype, torch.complex64))
        parts = work.split(max(1, LARGEST_STACK // (ANGLES * work.shape[-1] ** 2)))
        value, gradient = (torch.cat(found) for found in zip(*map(_outermost_support, parts), strict=True))
    return _with_gradient(matrix, value * scale, gradient)


def henrici_departure(matrix: Tensor) -> Tensor:
    """The departure from normality √(‖A‖_F² − Σ|λ|²) = ‖N‖_F, N the strictly upper part of a Schur form (Henrici 1962).

    0 exactly for normal matrices. Read off the Schur form, with an error of n·eps·‖A‖, where the difference of squares
    leaves √eps ‖A‖. Gradient (A − Σ λ_i y_i x_iᴴ)/‖N‖_F from `eigenvalues`, with its care for clusters; 0 where ‖N‖_F
    is rounding: the departure has a cone there, as a norm at 0. It is unbounded near defective matrices with three or
    more equal eigenvalues, where Σ|λ|² is not Lipschitz: clip it. Errors as `eigenvalues`.
    """
    flat, scale = _prepared(matrix)
    with torch.no_grad():
        numbers = _as_numpy(flat)
        parts = [np.linalg.norm(np.triu(scipy.linalg.schur(one, output="complex")[0], 1)) for one in numbers]
        value = torch.tensor(np.array(parts)).to(flat.real)
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        return (value * scale).reshape(matrix.shape[:-2])
    with torch.enable_grad():
        leaf = flat.detach().requires_grad_()
        (of_values,) = torch.autograd.grad(eigenvalues(leaf).abs().square().sum() / 2, leaf)
    size, eps = flat.shape[-1], torch.finfo(flat.dtype).eps
    seen = value > 8 * size * eps * torch.linalg.matrix_norm(flat.detach())
    gradient = (flat.detach() - of_values) / torch.where(seen, value, 1.0)[:, None, None]
    return _with_gradient(matrix, value * scale, torch.where(seen[:, None, None], gradient, 0.0))


def pseudospectral_radius(matrix: Tensor, epsilon: float) -> Tensor:
    """ρ_ε(A) = max {|z| : σ_min(A − zI) ≤ ε}: the largest |λ| of all A + E with ‖E‖₂ ≤ ε.

    At least ρ(A) + ε, with equality for normal A; a smooth stand-in for the radius where κ is large. Criss-cross search
    (Mengi, Overton 2005, IMA J. Numer. Anal. 25): along a ray, the largest real eigenvalue of [[e^{−iθ}A, −εI], [−εI,
    e^{iθ}Aᴴ]]; along a circle, the unimodular eigenvalues of a symplectic pencil; it finds the global maximum and
    converges quadratically. Gradient u vᴴ / Re(e^{iθ}uᴴv) with σ_min's vectors there. Cost a few eigensolves of size
    2n. Raises `ValueError` for ε not above 0; other errors as `eigenvalues`.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon is {epsilon}: allowed are finite numbers above 0, in units of the matrix")
    flat, _ = _prepared(matrix, rescale=False)
    with torch.no_grad():
        found = [outermost_point(one, epsilon) for one in _as_numpy(flat)]
        value = torch.tensor([radius for radius, _ in found], dtype=torch.float64).to(flat.real)
        gradient = torch.tensor(np.stack([slope for _, slope in found]))
    return _with_gradient(matrix, value, gradient)


def kreiss_constant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (lower, upper) on K(A) = sup_{|z|>1} (|z| − 1)‖(zI − A)⁻¹‖, for transients: K ≤ sup_k ‖A^k‖ ≤ e n K.

    1 for contractions, ∞ where ρ(A) > 1 (Kreiss 1962; LeVeque, Trefethen 1984, BIT 24). Lower: the best point of a
    polar grid and three ascents from it, mostly K itself to several digits; gradient σ_min's. Upper: with t = 1/|z|,
    (|z| − 1)‖(z − A)⁻¹‖ ≤ (1 − t) Σ_k ‖A^k‖ t^k, whose largest value over cells of t is taken; what lies past the first
    powers is bounded by those once ‖A^m‖ ≤ 1, else by the sum of all (A^k)ᴴA^k. It lies between K and sup_k ‖A^k‖,
    unless the powers fade more slowly than 256 steps can tell. Where a bound is ∞ its gradient is 0. Errors as
    `eigenvalues`.
    """
    flat, _ = _prepared(matrix, rescale=False)
    with torch.no_grad():
        numbers = _as_numpy(flat)
        rounding = 8 * flat.shape[-1] * torch.finfo(flat.dtype).eps
        lower = [kreiss_below(one, rounding) for one in numbers]
        upper = [kreiss_above(one, rounding) for one in numbers]
    bounds = []
    for pairs in (lower, upper):
        value = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64).to(flat.real)
        bounds.append(_with_gradient(matrix, value, torch.tensor(np.stack([pair[1] for pair in pairs]))))
    return bounds[0], bounds[1]


def _prepared(matrix: Tensor, rescale: bool = True) -> tuple[Tensor, Tensor]:
    """Checked matrices ``(b, n, n)``, brought to order 1 by a power of two if asked, and that power, ``(b,)``."""
    fixed = checked(matrix).detach()
    check_finite(fixed)
    flat = fixed.reshape(-1, *fixed.shape[-2:])
    if not rescale:
        return flat, torch.ones_like(flat[:, 0, 0].real)
    largest = (torch.view_as_real(flat).flatten(-2) if flat.is_complex() else flat).abs().amax((-1, -2))
    limit = 120 if largest.dtype == torch.float32 else 1000  # a power and its reciprocal are both normal numbers
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent.clamp(-limit, limit))
    return flat / power[:, None, None], power


def _with_gradient(matrix: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Values ``(b,)`` in the matrix's batch shape, tied to it by their gradients ``(b, n, n)``."""
    gradient = gradient if matrix.is_complex() or not gradient.is_complex() else gradient.real
    gradient = gradient.to(matrix).reshape(matrix.shape)
    return _Envelope.apply(matrix, value.reshape(matrix.shape[:-2]).to(matrix.real), gradient)  # type: ignore[no-any-return, no-untyped-call]


def _as_numpy(flat: Tensor) -> Array:
    return flat.to("cpu", torch.complex128).numpy()


def _orthogonality(basis: Tensor) -> Tensor:
    """A bound on ‖U‖₂ from ‖UᴴU − I‖_F and its rounding."""
    size, eps = basis.shape[-1], torch.finfo(basis.dtype).eps
    defect: Tensor = torch.linalg.matrix_norm(
        basis.mH @ basis - torch.eye(size, dtype=basis.dtype, device=basis.device)
    )
    bound: Tensor = 1 + defect + 4 * size**1.5 * eps
    return bound.sqrt()


def _turn(angle: Tensor) -> Tensor:
    return torch.complex(angle.cos(), angle.sin())


def _support(matrix: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (b, n, n), (b, m)
    """h(θ), h′(θ) ``(b, m)`` and unit vectors x(θ) ``(b, m, n)`` of the numerical range's support function."""
    turned = _turn(angles)[..., None, None] * matrix.unsqueeze(1)
    values, vectors = torch.linalg.eigh((turned + turned.mH) / 2)
    vector = vectors[..., -1]
    quotient = torch.linalg.vecdot(vector, (turned @ vector.unsqueeze(-1)).squeeze(-1))
    return values[..., -1], -quotient.imag, vector


def _outermost_support(matrix: Tensor) -> tuple[Tensor, Tensor]:  # (b, n, n), complex
    """max h(θ) ``(b,)`` and its gradient ``(b, n, n)``."""
    step = 2 * math.pi / ANGLES
    grid = torch.arange(ANGLES, device=matrix.device, dtype=matrix.real.dtype) * step
    height, slope, _ = _support(matrix, grid.expand(len(matrix), ANGLES))
    following, after = height.roll(-1, -1), slope.roll(-1, -1)
    corner = (height.square() + following.square() - 2 * height * following * math.cos(step)).clamp_min(0).sqrt()
    bound = torch.maximum(corner / math.sin(step), torch.maximum(height, following))
    has_peak = (slope >= 0) & (after <= 0)
    cells = torch.where(has_peak, bound, -torch.inf).topk(CELLS, -1).indices
    low = grid[cells]
    peaks = _peak(matrix, low, low + step, slope.gather(-1, cells), after.gather(-1, cells))
    angles = torch.cat((peaks, grid[height.argmax(-1, keepdim=True)]), -1)
    values, _, vectors = _support(matrix, angles)
    best = values.argmax(-1, keepdim=True)
    vector = vectors.gather(-2, best.unsqueeze(-1).expand(-1, -1, matrix.shape[-1])).mT
    value = values.gather(-1, best).squeeze(-1).clamp_min(0)
    gradient = _turn(-angles.gather(-1, best)).unsqueeze(-1) * (vector @ vector.mH)
    return value, torch.where((value > 0)[:, None, None], gradient, 0.0)


def _peak(matrix: Tensor, low: Tensor, high: Tensor, rising: Tensor, falling: Tensor) -> Tensor:  # (b, m) each
    """Where h′ changes from positive to negative between `low` and `high`: regula falsi, Illinois variant."""
    middle, moved = low, torch.zeros_like(low)
    for _ in range(SECANTS):
        share = rising / torch.where(rising == falling, 1.0, rising - falling)
        middle = low + (high - low) * share.clamp(0, 1)
        _, slope, _ = _support(matrix, middle)
        side = torch.where(slope > 0, 1.0, -1.0)
        before, again = side > 0, side == moved
        # an end that stays twice counts half, so that both ends move
        rising, falling = (
            torch.where(before, slope, torch.where(again, rising / 2, rising)),
            torch.where(before, torch.where(again, falling / 2, falling), slope),
        )
        low, high, moved = torch.where(before, middle, low), torch.where(before, high, middle), side
    return middle
