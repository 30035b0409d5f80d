"""Spectral radius and abscissa of dense matrices at about the price of the eigenvalues alone.

Only the eigenvalue that is asked for needs vectors: inverse iteration from one LU
factorisation gives both (Ipsen 1997).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

from specreg.eigen.dense import checked, eigenvalues, is_tracked
from specreg.eigen.pairs import LARGEST_BATCHED_LU, SEPARATION, check_finite, eigvals, power_scaled, power_unscaled

LARGEST_RESIDUAL = 64.0  # a residual above this · √n · eps · ‖A‖_F shows that inverse iteration has not converged
TIE = 64.0  # sizes within this · eps · ρ of the largest count as equal


def spectral_radius(matrix: Tensor) -> Tensor:
    """ρ(A) = max |λ| of square matrices ``(*batch, n, n)``, real ``(*batch)``.

    Gradient ḡ (λ/|λ|) y vᴴ of a dominant λ with left and right vectors yᴴv = 1, and 0 where ρ is 0. Where the largest
    modulus is shared it is that of one of them, a subgradient; where λ cannot be told from its neighbours, that of
    their mean in the place of λ. Differentiable any number of times; errors as `eigenvalues`.
    """
    return _extreme(matrix, _Radius, _modulus)


def spectral_abscissa(matrix: Tensor) -> Tensor:
    """α(A) = max Re λ of square matrices ``(*batch, n, n)``, real ``(*batch)``.

    Gradient ḡ y vᴴ of a rightmost λ, otherwise as `spectral_radius`.
    """
    return _extreme(matrix, _Abscissa, _real_part)


def _extreme(matrix: Tensor, function: type[_Extreme], measure: Callable[[Tensor], Tensor]) -> Tensor:
    matrix = checked(matrix)
    in_transform = torch._C._functorch.is_functorch_wrapped_tensor(matrix) or unpack_dual(matrix).tangent is not None
    if in_transform or matrix.device.type != "cpu":
        return _through_all(matrix, measure)
    if not is_tracked(matrix):
        return measure(eigenvalues(matrix)).amax(-1)
    check_finite(matrix)
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return function.apply(flat).reshape(matrix.shape[:-2])  # type: ignore[no-any-return, no-untyped-call]


def _through_all(matrix: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """The extreme by way of all eigenvalues with their vectors, which has every derivative."""
    values = eigenvalues(matrix)
    sizes = measure(values)
    return sizes.gather(-1, _first_largest(sizes, values)).squeeze(-1)


def _first_largest(sizes: Tensor, values: Tensor) -> Tensor:
    """Index of the first of the largest entries ``(*batch, 1)``, those equal but for rounding counted as equal.

    Otherwise it would depend on the company that a matrix is in which of two eigenvalues ±λ is taken.
    """
    scale = values.abs().amax(-1, True)
    near = sizes >= sizes.amax(-1, True) - TIE * torch.finfo(sizes.dtype).eps * scale
    return near.to(torch.uint8).argmax(-1, keepdim=True)


def _modulus(values: Tensor) -> Tensor:
    return values.abs()


def _real_part(values: Tensor) -> Tensor:
    return values.real


class _Extreme(Function):
    """max of a measure of the eigenvalues of ``(b, n, n)``; subclasses name the measure and its derivative."""

    measure: Callable[[Tensor], Tensor]

    @classmethod
    def weight(cls, values: Tensor) -> Tensor:
        """∂measure/∂Re λ + i ∂measure/∂Im λ, ``(b)``."""
        raise NotImplementedError

    @classmethod
    def forward(cls, ctx: Any, matrix: Tensor) -> Tensor:
        scaled, exponent = power_scaled(matrix)
        values = eigvals(scaled)
        ctx.save_for_backward(matrix, values)
        return power_unscaled(cls.measure(values).amax(-1, keepdim=True), exponent).squeeze(-1)

    @classmethod
    def backward(cls, ctx: Any, cotangent: Tensor) -> Tensor:
        matrix, values = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated in turn
            return _gradient_through_all(matrix, cls.measure, cotangent, True)
        chosen = _first_largest(cls.measure(values), values)
        right, left, found = vectors_of(power_scaled(matrix)[0], values, chosen)
        factor = cotangent * cls.weight(values.gather(-1, chosen).squeeze(-1))
        gradient = _outer(left * factor[:, None], right, matrix)
        lost = (~found).nonzero()[:, 0]
        if len(lost):
            gradient[lost] = _gradient_through_all(matrix[lost], cls.measure, cotangent[lost], False)
        return gradient


class _Radius(_Extreme):
    measure = staticmethod(_modulus)

    @classmethod
    def weight(cls, values: Tensor) -> Tensor:
        return values.sgn()


class _Abscissa(_Extreme):
    measure = staticmethod(_real_part)

    @classmethod
    def weight(cls, values: Tensor) -> Tensor:
        return torch.ones_like(values)


def _gradient_through_all(
    matrix: Tensor, measure: Callable[[Tensor], Tensor], cotangent: Tensor, create_graph: bool
) -> Tensor:
    with torch.enable_grad():
        if not create_graph:
            matrix = matrix.detach().requires_grad_()
        extreme = _through_all(matrix, measure)
        return torch.autograd.grad(extreme, matrix, cotangent, create_graph=create_graph)[0]


def _outer(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """y vᴴ, or its real part for real matrices."""
    if like.is_complex():
        return left[:, :, None] * right.conj()[:, None, :]
    real = left.real[:, :, None] * right.real[:, None, :]
    return real.addcmul_(left.imag[:, :, None], right.imag[:, None, :])


def vectors_of(matrix: Tensor, values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right and left vectors ``(b, n)`` of the chosen eigenvalues, yᴴv = 1, and whether they can be trusted ``(b)``."""
    eps = torch.finfo(matrix.dtype).eps
    value = values.gather(-1, chosen)
    distance = (values - value).abs().scatter_(-1, chosen, torch.inf)
    norm = torch.linalg.vector_norm(matrix, dim=(-1, -2))
    right, left = (torch.zeros_like(values) for _ in range(2))
    real = (value[:, 0].imag == 0) & (not matrix.is_complex())
    for chosen_ones, shift in ((real, value.real if not matrix.is_complex() else value), (~real, value)):
        index = chosen_ones.nonzero()[:, 0]
        if len(index):
            found = _inverse_iteration(matrix[index], shift[index], norm[index])
            right[index], left[index] = (part.to(values.dtype) for part in found)
    product = (left.conj() * right).sum(-1, keepdim=True)
    condition = product.abs().reciprocal()[:, 0]
    residual = torch.linalg.vector_norm((matrix.to(values.dtype) @ right[..., None])[..., 0] - value * right, dim=-1)
    small = residual <= LARGEST_RESIDUAL * matrix.shape[-1] ** 0.5 * eps * norm
    trusted = small & (SEPARATION * eps * norm * condition < distance.amin(-1))  # False at a NaN
    return right, left / product.conj(), trusted


def _inverse_iteration(matrix: Tensor, value: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Unit right and left vectors ``(k, n)`` of one eigenvalue of each of ``(k, n, n)``."""
    size = matrix.shape[-1]
    shifted = matrix.to(torch.promote_types(matrix.dtype, value.dtype), copy=True)
    # a shift beside the eigenvalue, else a pivot could be exactly 0
    shifted.diagonal(dim1=-2, dim2=-1).sub_(value + torch.finfo(matrix.dtype).eps * norm[:, None])
    step = torch.arange(1, size + 1, dtype=norm.dtype)
    start = torch.cos(step * step).to(shifted.dtype)[:, None]  # in no direction that a structured matrix singles out
    pieces = [shifted] if size <= LARGEST_BATCHED_LU or torch.get_num_threads() < 2 else shifted.split(1)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for piece in pieces:
        factors, pivots, _ = torch.linalg.lu_factor_ex(piece)
        for vectors, adjoint in zip(sides, (False, True), strict=True):
            vector = start.expand(len(piece), size, 1)
            for _ in range(2):
                vector = torch.linalg.lu_solve(factors, pivots, vector, adjoint=adjoint)
                vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
            vectors.append(vector[..., 0])
    return torch.cat(sides[0]), torch.cat(sides[1])
