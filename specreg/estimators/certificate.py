"""From Ritz pairs of both sides to eigenvalues with a gradient and a certificate."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from specreg.eigen.first_order import first_order_only
from specreg.estimators.search import Found
from specreg.estimators.subspace import Array
from specreg.operators import LinearOperator
from specreg.spectrum import Extremes

COPIES = 100.0  # values closer than this many tolerances are copies of one


class Uncertified(UserWarning):
    """A value was returned that may not be the wanted eigenvalue, or not to the tolerance."""


class TornPair(UserWarning):
    """The last of k values is one of two conjugates of a real operator: the other one is the (k + 1)th."""


class DenseInstead(UserWarning):
    """A dense solve replaced Krylov iterations that would have taken longer."""


class _FirstOrder(torch.autograd.Function):
    """The identity, whose derivative is not differentiated again: eigenvectors were held fixed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (value,) = ctx.saved_tensors
        return first_order_only(gradients[0], value)


def images(operator: LinearOperator, vectors: Tensor, real: bool) -> tuple[Tensor, int]:
    """A times each of the vectors (*batch, n, k), and how many products a batch element took.

    Of a real operator with real and imaginary part apart; the image of a conjugate is the conjugate.
    """
    found: list[Tensor] = []
    products = 0
    for index, vector in enumerate(vectors.unbind(-1)):
        if real and index and torch.equal(vector, vectors[..., index - 1].conj()) and bool(vector.imag.any()):
            found.append(found[-1].conj())
            continue
        image = operator.mv(vector.real if real else vector)
        products += 1
        if real and bool(vector.imag.any()):
            image = torch.complex(image, operator.mv(vector.imag))
            products += 1
        found.append(image.to(vector.dtype))
    return torch.stack(found, -1), products


def quotients(images: Tensor, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """yᴴA x/(yᴴx) of each pair of unit vectors (*batch, k), differentiable once in what A depends on.

    With the vectors held fixed its derivative is yᴴ(dA)x/(yᴴx), which is dλ for the exact vectors (Lancaster 1964,
    Numerische Mathematik 6). Where x is a worse eigenvector for this value than for xᴴA x, as at a defective eigenvalue
    or where x and y belong to different ones, it is xᴴA x instead. Second result: where it is yᴴA x/(yᴴx).
    """
    overlap = torch.linalg.vecdot(left, right, dim=-2)
    overlap = torch.where(overlap.abs() < torch.finfo(overlap.real.dtype).eps, 1.0, overlap)
    two_sided = torch.linalg.vecdot(left, images, dim=-2) / overlap
    one_sided = torch.linalg.vecdot(right, images, dim=-2)
    # ‖Ax − μx‖² = ‖Ax − ρx‖² + |μ − ρ|² for ρ = xᴴAx
    remainder = torch.linalg.vector_norm(images.detach() - right * one_sided.detach().unsqueeze(-2), dim=-2)
    rounding = torch.finfo(overlap.real.dtype).eps ** 0.5 * one_sided.detach().abs()
    together = (two_sided - one_sided).detach().abs() <= 3 * remainder + rounding
    value = torch.where(together, two_sided, one_sided)
    return _FirstOrder.apply(value) if value.requires_grad else value, together  # type: ignore[no-untyped-call]


def paired(right: Found, left: Found, tolerance: float) -> tuple[Tensor, Array]:
    """Left vectors (n, k) in the order of the right ones, and which pairs are certain to belong together.

    Vectors that belong to copies of one value are turned so that yᵢᴴxⱼ = 0 for i ≠ j. As (λ − μ)·yᴴx = yᴴ(A − μ)x, two
    values that differ by d have 1/|yᴴx| ≥ d/(r_x + r_y): the condition must not be as large as that for any other value
    that was seen.
    """
    values, others = right.values, left.values.conj()
    order = linear_sum_assignment(np.abs(values[:, None] - others[None, :]))[1]
    vectors = left.vectors[:, torch.from_numpy(order).to(left.vectors.device)].clone()
    near = COPIES * tolerance * max(right.radius, left.radius)
    for index in range(len(values)):
        group = np.flatnonzero(np.abs(values - values[index]) <= near)
        if len(group) > 1 and group[0] == index:
            vectors[:, group] = _biorthogonal(right.vectors[:, group], vectors[:, group])
    overlap = torch.linalg.vecdot(vectors, right.vectors, dim=0).abs().cpu().numpy()
    seen = np.concatenate([right.spectrum, left.spectrum.conj()])
    distance = np.abs(values[:, None] - seen[None, :])
    gap = np.where(distance > near, distance, np.inf).min(1)
    error = 2 * tolerance * right.radius
    sure = error <= 0.5 * gap * overlap
    sure &= np.abs(values - others[order]) <= error / np.maximum(overlap, 1e-300)
    sure &= right.clear & left.clear[order]
    return vectors, sure & (max(right.orthogonality, left.orthogonality) <= 1e-3 * tolerance**0.5)


def check_adjoint(right: Found, left: Found, tolerance: float) -> None:
    """Raise `ValueError` if ⟨w, A v⟩ ≠ ⟨Aᴴ w, v⟩ for the vectors that the two sides started from."""
    if right.sample is None or left.sample is None or not right.radius:
        return
    (v, image), (w, back) = right.sample, left.sample
    image, back = image / right.radius, back / right.radius
    forth, other = torch.vdot(w, image), torch.vdot(back, v)
    norms = torch.linalg.vector_norm(w) * torch.linalg.vector_norm(image)
    norms = norms + torch.linalg.vector_norm(back) * torch.linalg.vector_norm(v)
    if bool((forth - other).abs() > max(torch.finfo(v.dtype).eps ** 0.5, tolerance) * norms):
        raise ValueError(
            "the adjoint's products do not belong to the operator's: relative to the radius ⟨w, A v⟩ = "
            f"{forth.item():.6g} but ⟨Aᴴ w, v⟩ = {other.item():.6g}: give the conjugate transpose, and no randomness "
            "in either"
        )


def _biorthogonal(right: Tensor, left: Tensor) -> Tensor:
    gram = left.mH @ right
    if float(torch.linalg.svdvals(gram)[-1]) < torch.finfo(gram.real.dtype).eps ** 0.5:
        return left  # defective: no such basis
    turned: Tensor = left @ torch.linalg.inv(gram).mH
    return turned / torch.linalg.vector_norm(turned, dim=0)  # type: ignore[no-any-return]


def certified(
    values: Tensor,  # (*batch, k)
    right: Tensor,  # (*batch, n, k)
    left: Tensor,
    right_images: Tensor,
    left_images: Tensor,
    radius: Tensor,  # (*batch), what the images are divided by already
    assured: Tensor,  # (*batch, k), bool: everything but the residuals
    tolerance: float,
    num_matvecs: int,
) -> Extremes:
    """The extremes, with residuals recomputed from products; warns of those that are not certain."""
    relative = (values.detach().to(right.dtype) / radius.unsqueeze(-1)).unsqueeze(-2)
    right_residual = torch.linalg.vector_norm(right_images - right * relative, dim=-2)
    left_residual = torch.linalg.vector_norm(left_images - left * relative.conj(), dim=-2)
    residuals = torch.maximum(right_residual, left_residual)
    overlap = torch.linalg.vecdot(left, right, dim=-2).abs()
    converged = (residuals <= tolerance) & assured
    if not bool(converged.all()):
        _warn(converged, residuals, tolerance)
    return Extremes(values, residuals, 1 / overlap, converged, num_matvecs, right, left)


def _warn(converged: Tensor, residuals: Tensor, tolerance: float) -> None:
    worst = [f"{residual:.2g}" for residual in residuals[~converged].tolist()]
    shown = ", ".join(worst[:5]) + ", …" * (len(worst) > 5)
    small = bool((residuals[~converged] <= tolerance).any())
    reason = "; where it is within, another eigenvalue may be as extreme, or the two sides disagree" if small else ""
    warnings.warn(
        f"{len(worst)} of {converged.numel()} eigenvalues are not certified: residual {shown} with a tolerance of "
        f"{tolerance:.2g}{reason}. Allow more products (max_matvecs), a larger basis (krylov_dim) or tolerance",
        Uncertified,
        stacklevel=5,
    )


def warn_of_torn_pairs(found: Sequence[Found]) -> None:
    """Say so where the last value is one of two conjugates."""
    count = len(found[0].values)
    if any(one.split for one in found):
        warnings.warn(
            f"eigenvalue {count} of {count} is one of a conjugate pair of a real operator, the other one is left out: "
            f"ask for {count + 1} to have both",
            TornPair,
            stacklevel=4,
        )
