"""Eigenvalues of dense matrices, differentiable to every order, in forward and reverse mode and under `vmap`.

Convention: Ā = ∂L/∂Re A + i ∂L/∂Im A, as torch's. For eigenvalues λ_i with cotangents ḡ_i, right vectors v_i and left
ones y_iᴴ v_i = 1, Ā = Σ ḡ_i y_i v_iᴴ. In a cluster, eigenvalues that rounding cannot tell apart, each ḡ_i is replaced
by the cluster's mean.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from specreg.eigen.linear_part import Dropped, LinearPart, Scale, cluster_mean, linear_part, matrix_scale
from specreg.eigen.pairs import (
    check_finite,
    eigenpairs,
    eigvals,
    in_pieces,
    kernel_for,
    power_scaled,
    power_unscaled,
    resolved,
)
from specreg.eigen.refine import RealForm, complex_vectors, partners

DTYPES = frozenset((torch.float32, torch.float64, torch.complex64, torch.complex128))


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues λ of square matrices ``(*batch, n, n)``, complex ``(*batch, n)``, in no fixed order.

    Gradient Ā = Σ ḡ_i y_i v_iᴴ with refined left and right vectors: for a simple eigenvalue its relative error is a few
    κ·eps. Where eigenvalues cannot be told apart (Jordan blocks, repeated and nearly repeated values) each gets the
    gradient of its cluster's mean, P_Cᴴ/m, which always exists. A part of ḡ that is linear in λ̄ is taken off first:
    Σ Re λ has gradient I and Σ Re λ² has 2Aᴴ, whatever the eigenvectors. Homogeneity: Re Σ Ā̄∘A = Re Σ ḡ̄ λ.
    Differentiable any number of times; derivatives of the vectors take eigenvalues of one cluster for equal.

    Raises `ValueError` for a matrix that is not square, for a dtype other than float32, float64, complex64 and
    complex128, and for an entry that is NaN or infinite, with the index of the batch element.
    """
    matrix = checked(matrix)
    kernel = kernel_for(matrix)
    if kernel is not None and not _in_transform(matrix):
        return _Launched.apply(matrix, kernel)  # type: ignore[no-any-return, no-untyped-call]
    if not is_tracked(matrix):
        return _values(matrix)
    return _Decomposition.apply(matrix, 1)[0]  # type: ignore[no-any-return, no-untyped-call]


def cluster_means(matrix: Tensor) -> Tensor:
    """Eigenvalues with each replaced by the mean of its cluster, complex ``(*batch, n)``.

    A cluster holds the eigenvalues that rounding cannot tell apart: |λ_i − λ_j| ≤ 8 eps ‖B‖_F min(κ_i, κ_j), B the
    balanced matrix, and what these chain together. The mean of m such values is accurate to about eps‖P_C‖, though
    each has an error of eps^(1/m), and smooth, with gradient P_Cᴴ/m, P_C the spectral projector. Single eigenvalues are
    as `eigenvalues` gives them; errors likewise.
    """
    values, _, _, _, clusters = _Decomposition.apply(checked(matrix), 0)  # type: ignore[no-untyped-call]
    return cluster_mean(values, clusters)


def conditioned_eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`eigenvalues` and the `condition_numbers` beside them, each ``(*batch, n)``, by one decomposition."""
    values, _, _, condition, _ = _Decomposition.apply(checked(matrix), 1)  # type: ignore[no-untyped-call]
    return values, condition


def condition_numbers(matrix: Tensor) -> Tensor:
    """κ_i = ‖v_i‖‖y_i‖/|y_iᴴ v_i| ≥ 1 of each eigenvalue, real ``(*batch, n)``, detached, in their order.

    κ_i is the Frobenius norm of the eigenvalue's own gradient. Of a semisimple eigenvalue that occurs several times it
    is ‖P_C‖₂, P_C its spectral projector, so that it is 1 for every normal matrix. It is cut off at 1/eps, which stands
    for a defective eigenvalue. Errors as `eigenvalues`.
    """
    matrix = checked(matrix).detach()
    return eigenpairs(matrix).condition


def checked(matrix: Tensor) -> Tensor:
    """The matrix, or an error if it is not square or of a dtype that no eigensolver takes."""
    shape = matrix.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"eigenvalues need square matrices (*batch, n, n), n ≥ 1, got shape {tuple(shape)}")
    if matrix.dtype not in DTYPES:
        raise ValueError(
            f"eigenvalues need float32, float64, complex64 or complex128, got {matrix.dtype}: convert first"
        )
    return matrix


def is_tracked(matrix: Tensor) -> bool:
    """Whether anything may differentiate through what is made of `matrix`."""
    return (torch.is_grad_enabled() and matrix.requires_grad) or _in_transform(matrix)


def _in_transform(matrix: Tensor) -> bool:
    """Whether it is one of `torch.func` or of forward mode."""
    return torch._C._functorch.is_functorch_wrapped_tensor(matrix) or unpack_dual(matrix).tangent is not None


def _values(matrix: Tensor) -> Tensor:
    check_finite(matrix.detach())
    flat = matrix.detach().reshape(-1, *matrix.shape[-2:])
    scaled, exponent = power_scaled(flat)
    return power_unscaled(eigvals(scaled), exponent).reshape(matrix.shape[:-1])


def decomposition(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, right and left vectors v_i and y_i, y_iᴴ v_i = 1, as columns, κ, and the first member of each cluster.

    All but κ and clusters are differentiable; columns of a cluster are bases of its invariant subspaces. Errors as
    `eigenvalues`.
    """
    values, right, left, condition, clusters = _Decomposition.apply(checked(matrix), 1)  # type: ignore[no-untyped-call]
    return values, *complex_vectors(values, right, left), condition, clusters


class _Launched(Function):
    """Values from a kernel that may still be at work; what it flagged is looked at in the backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, kernel: ModuleType) -> Tensor:
        values: Tensor
        values, launched = kernel.launch(matrix)
        if ctx.needs_input_grad[0]:
            ctx.kernel, ctx.launched = kernel, launched
            ctx.save_for_backward(matrix, values)
        return values

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (matrix, values), launched = ctx.saved_tensors, ctx.launched
        if torch.is_grad_enabled():  # for a derivative of the gradient
            again = _Decomposition.apply(matrix, 1)[0]  # type: ignore[no-untyped-call]
            order = matched(again, values.detach())
            return torch.autograd.grad(again, matrix, cotangent.gather(-1, order), create_graph=True)[0], None
        gradient = launched.gradient(cotangent, values)
        if not launched.any_flagged():
            return gradient, None
        pairs = resolved(launched.matrix.reshape(-1, *matrix.shape[-2:]), launched.finished(values))
        order = matched(pairs.values, values.reshape(pairs.values.shape)).reshape(cotangent.shape)
        parts = (pairs.values, pairs.right, pairs.left, pairs.condition)
        return ctx.kernel.gradient(cotangent.gather(-1, order), matrix, *parts, pairs.clusters), None


def matched(values: Tensor, found: Tensor) -> Tensor:
    """Index of each of `values` among `found`, the same up to rounding and to the order in a batch element."""
    order = torch.arange(values.shape[-1], device=values.device).expand(values.shape).clone()
    for element in (values != found).any(-1).nonzero().tolist():
        index = tuple(element)
        distance = (values[index][:, None] - found[index]).detach().abs()
        order[index] = torch.as_tensor(linear_sum_assignment(distance.cpu().numpy())[1]).to(order)
    return order


class _Decomposition(Function):
    """Values, right and left vectors, all differentiable; κ and clusters, which are not.

    dλ_i = y_iᴴ dA v_i (its mean over a cluster), dV = V[(YᴴdAV)∘D], dY = −Y[(YᴴdAV)∘D]ᴴ with D_ij = 1/(λ_j − λ_i), 0
    within a cluster. That choice of gauge is free: what comes of V and Y here, V f(Λ) Yᴴ, does not depend on it, at
    any order.
    """

    @staticmethod
    def forward(matrix: Tensor, degree: int) -> tuple[Tensor, ...]:
        pairs = eigenpairs(matrix)
        clusters = cast(Tensor, pairs.clusters).to(pairs.condition)  # forward mode takes no integers
        return pairs.values, pairs.right, pairs.left, pairs.condition, clusters

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, ...]) -> None:
        matrix, ctx.degree = inputs
        ctx.mark_non_differentiable(*output[3:])
        ctx.save_for_backward(matrix, *output)
        ctx.save_for_forward(matrix, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], matrix: Tensor, degree: int) -> tuple[Any, Any]:
        dim = in_dims[0]
        outputs = _Decomposition.apply(matrix if dim is None else matrix.movedim(dim, 0), degree)  # type: ignore[no-untyped-call]
        return outputs, (None if dim is None else 0,) * len(outputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        _, values, right, left, _, clusters = ctx.saved_tensors
        if tangent is None:
            return None, None, None, None, None
        with _set_fwd_grad_enabled(True):  # else the derivative of this, in forward mode, would be lost
            v, y = complex_vectors(values, right, left)
            inner = y.mH @ tangent.to(v.dtype) @ v
            change = inner * _reciprocals(values, clusters)
            d_values = cluster_mean(inner.diagonal(dim1=-2, dim2=-1), clusters)
            d_right, d_left = v @ change, -y @ change.mH
            if not right.is_complex():
                d_right, d_left = _real_parts(values, d_right, 1), _real_parts(values, d_left, 2)
            return d_values, _laid_out(d_right, right), _laid_out(d_left, left), None, None

    @staticmethod
    def backward(
        ctx: Any, g_values: Tensor | None, g_right: Tensor | None, g_left: Tensor | None, *_: None
    ) -> tuple[Tensor | None, None]:
        matrix, values, right, left, condition, clusters = ctx.saved_tensors
        gradient = None
        if g_values is not None:
            gradient = _gradient(g_values, matrix, values, right, left, condition, clusters, ctx.degree)
        if g_right is not None or g_left is not None:
            v, y = complex_vectors(values, right, left)
            inner = torch.zeros_like(v)
            if g_right is not None:
                inner = inner + v.mH @ (g_right if right.is_complex() else _from_real_parts(values, g_right, 1))
            if g_left is not None:
                inner = inner - (y.mH @ (g_left if left.is_complex() else _from_real_parts(values, g_left, 2))).mH
            full = y @ (inner * _reciprocals(values, clusters).conj()) @ v.mH
            full = full if matrix.is_complex() else full.real
            gradient = full if gradient is None else gradient + full
        return gradient, None


def _laid_out(tangent: Tensor, vectors: Tensor) -> Tensor:
    """The tangent in the layout of its vectors, as forward mode asks for: columns may be the contiguous ones."""
    return tangent.contiguous() if vectors.is_contiguous() else tangent.mT.contiguous().mT


def _real_parts(values: Tensor, vectors: Tensor, factor: int) -> Tensor:
    """Re and Im, times `factor`, in the place of a pair of conjugate columns; real columns as they are."""
    sign = values.imag.sign()[..., None, :]
    parts = torch.where(sign < 0, -vectors.imag, vectors.real)
    return parts * torch.where(sign == 0, 1.0, float(factor)).to(parts.dtype)


def _from_real_parts(values: Tensor, cotangent: Tensor, factor: int) -> Tensor:
    """The transpose of `_real_parts`."""
    sign = values.imag.sign()[..., None, :]
    cotangent = cotangent * torch.where(sign == 0, 1.0, float(factor)).to(cotangent.dtype)
    return torch.where(sign < 0, 0.0, cotangent) - 1j * torch.where(sign < 0, cotangent, 0.0)


def _gradient(
    cotangent: Tensor,  # (*batch, n)
    matrix: Tensor,
    values: Tensor,
    right: Tensor,
    left: Tensor,
    condition: Tensor,
    clusters: Tensor,
    degree: int,
) -> Tensor:
    """Σ ḡ_i y_i v_iᴴ, ḡ averaged over clusters, with the part that is linear in λ̄ given as c₀ I + c₁ Aᴴ."""
    plain = not torch.is_grad_enabled() and _is_plain(cotangent)
    kernel = kernel_for(matrix)
    if kernel is not None and plain:
        on_gpu: Tensor = kernel.gradient(cotangent, matrix, values, right, left, condition, clusters, degree)
        return on_gpu
    if plain and matrix.device.type == "cpu":
        solve, start = partial(_put_gradient, degree=degree), matrix.dim() - 2
        result = torch.empty(matrix.shape, dtype=matrix.dtype)
        tensors = (result, cotangent, matrix, values, right, left, condition, clusters)
        in_pieces(solve, *(part.reshape(-1, *part.shape[start:]) for part in tensors), large=True)
        return result
    scale = Scale.apply(matrix)  # type: ignore[no-untyped-call]
    constant, slope, negligible = LinearPart.apply(cotangent, matrix, scale, values, condition, clusters, degree)  # type: ignore[no-untyped-call]
    rest = Dropped.apply(cotangent - constant - slope * (values / scale[..., 0]).conj(), negligible)  # type: ignore[no-untyped-call]
    product = _product(cluster_mean(rest, clusters), matrix, values, left, right)
    return _plus_linear(product, constant, slope, matrix / scale)


def _is_plain(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return not (functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


def _put_gradient(
    product: Tensor,  # (b, n, n)
    cotangent: Tensor,
    matrix: Tensor,
    values: Tensor,
    right: Tensor,
    left: Tensor,
    condition: Tensor,
    clusters: Tensor,
    degree: int,
) -> None:
    """`_gradient` on the CPU, nothing to be differentiated further, into memory of its own: no c₀ I + c₁ Aᴴ where 0."""
    scale = matrix_scale(matrix)
    constant, slope, negligible = linear_part(cotangent, matrix, scale, values, condition, clusters, degree)
    rest = (cotangent - constant - slope * (values / scale[..., 0]).conj()).masked_fill_(negligible != 0, 0)
    if (clusters != torch.arange(matrix.shape[-1])).any():
        rest = cluster_mean(rest, clusters)
    in_pieces(_put_product, product, rest, values, left, right)
    fitted = ((constant != 0) | (slope != 0)).nonzero()[:, 0]
    if len(fitted):
        unit = matrix[fitted] / scale[fitted]
        product[fitted] = _plus_linear(product[fitted], constant[fitted], slope[fitted], unit)


def _put_product(product: Tensor, cotangent: Tensor, values: Tensor, left: Tensor, right: Tensor) -> None:
    """`_product` of a batch ``(b, n, n)`` into memory of its own."""
    if right.is_complex():
        product.copy_(_product(cotangent, product, values, left, right))
        return
    form, rows = RealForm.of(values), right.mT.contiguous()
    real, imag = torch.view_as_real(cotangent).mul(0.5).unbind(-1)
    real = real + real.gather(-1, form.partner)
    imag = imag - imag.gather(-1, form.partner)
    turned = form.swapped(rows).mul_(imag[:, :, None]).addcmul_(rows, real[:, :, None])
    torch.bmm(left, turned, out=product)


def _plus_linear(product: Tensor, constant: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """`product` + c₀ I + c₁ Uᴴ, its real part for real U."""
    eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    constant, slope = constant[..., None], slope[..., None]
    if not unit.is_complex():
        constant, slope = constant.real, slope.real
    return torch.addcmul(torch.addcmul(product, slope, unit.mH.contiguous()), constant, eye)


def _product(cotangent: Tensor, matrix: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Σ ḡ_i y_i v_iᴴ, its real part for real matrices."""
    if matrix.is_complex():
        return left * cotangent[..., None, :] @ right.mH
    if right.is_complex():
        return _real_product(cotangent, left, right)
    return _paired_product(cotangent, values, left, right)


def _real_product(cotangent: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Re Σ ḡ_i y_i v_iᴴ: with the parts side by side one real product, half of the complex one."""
    sides = [torch.view_as_real(part).reshape(*part.shape[:-1], -1) for part in (left * cotangent[..., None, :], right)]
    return sides[0] @ sides[1].mT


def _paired_product(cotangent: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same from vectors in real form, a quarter of the complex product."""
    partner, _ = partners(values)
    real, imag = cotangent.real[..., None, :], cotangent.imag[..., None, :]
    other_real, other_imag = (part.gather(-1, partner.expand(part.shape)) for part in (real, imag))
    swapped = right.gather(-1, partner.expand(right.shape))
    turned = torch.addcmul(right * ((real + other_real) / 2), swapped, (imag - other_imag) / 2)
    return left @ turned.mT


def _reciprocals(values: Tensor, clusters: Tensor) -> Tensor:
    """D_ij = 1/(λ_j − λ_i), 0 within a cluster."""
    together = clusters[..., :, None] == clusters[..., None, :]
    difference = values[..., None, :] - values[..., :, None]
    return torch.where(together, 0.0, 1 / torch.where(together, 1.0, difference))
