"""Eigenvalues of dense matrices, differentiable to every order, in forward and reverse mode and under `vmap`.

Convention: Ā = ∂L/∂Re A + i ∂L/∂Im A, as torch's. For eigenvalues λ_i with cotangents ḡ_i, right vectors v_i and left
ones y_iᴴ v_i = 1, Ā = Σ ḡ_i y_i v_iᴴ. In a cluster, eigenvalues that rounding cannot tell apart, each ḡ_i is replaced
by the cluster's mean.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from specreg.eigen.pairs import check_finite, eigenpairs, eigvals, kernel_for, power_scaled, power_unscaled
from specreg.eigen.refine import complex_vectors, partners

VANISHING = 64.0  # a coefficient of the fit below this · eps of the largest term counts as 0
EXACT = 8.0  # a remainder below this · eps of what was taken off is rounding
CLUSTER_FIT = 1e-6  # how closely cotangents must be linear in λ for a cluster to count as more than its mean


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
    return _cluster_mean(values, clusters)


def conditioned_eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`eigenvalues` and the `condition_numbers` beside them, each ``(*batch, n)``, by one decomposition."""
    values, _, _, condition, _ = _Decomposition.apply(checked(matrix), 1)  # type: ignore[no-untyped-call]
    return values, condition


def condition_numbers(matrix: Tensor) -> Tensor:
    """κ_i = ‖v_i‖‖y_i‖/|y_iᴴ v_i| ≥ 1 of each eigenvalue, real ``(*batch, n)``, detached, in their order.

    κ_i is the Frobenius norm of the eigenvalue's own gradient. It is cut off at 1/eps, which stands for a defective
    eigenvalue. Errors as `eigenvalues`.
    """
    matrix = checked(matrix).detach()
    return eigenpairs(matrix).condition


def checked(matrix: Tensor) -> Tensor:
    """The matrix, or an error if it is not square or of a dtype that no eigensolver takes."""
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"eigenvalues need square matrices (*batch, n, n), n ≥ 1, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise ValueError(
            f"eigenvalues need float32, float64, complex64 or complex128, got {matrix.dtype}: convert first"
        )
    return matrix


def is_tracked(matrix: Tensor) -> bool:
    """Whether anything may differentiate through what is made of `matrix`."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(matrix)
    if wrapped or (torch.is_grad_enabled() and matrix.requires_grad):
        return True
    return unpack_dual(matrix).tangent is not None


def _values(matrix: Tensor) -> Tensor:
    check_finite(matrix.detach())
    flat = matrix.detach().reshape(-1, *matrix.shape[-2:])
    scaled, exponent = power_scaled(flat)
    return power_unscaled(eigvals(scaled), exponent).reshape(matrix.shape[:-1])


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
            d_values = _cluster_mean(inner.diagonal(dim1=-2, dim2=-1), clusters)
            d_right, d_left = v @ change, -y @ change.mH
            if not right.is_complex():
                d_right, d_left = _real_parts(values, d_right, 1), _real_parts(values, d_left, 2)
            return d_values, d_right, d_left, None, None

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
    kernel = kernel_for(matrix)
    if kernel is not None and not torch.is_grad_enabled() and _is_plain(cotangent):
        given = (cotangent, matrix, values, right, left, condition, clusters, degree)
        return kernel.gradient(*given)  # type: ignore[no-any-return]
    scale = _Scale.apply(matrix)  # type: ignore[no-untyped-call]
    constant, slope, negligible = _LinearPart.apply(cotangent, matrix, scale, values, condition, clusters, degree)  # type: ignore[no-untyped-call]
    rest = _Dropped.apply(cotangent - constant - slope * (values / scale[..., 0]).conj(), negligible)  # type: ignore[no-untyped-call]
    rest = _cluster_mean(rest, clusters)
    if matrix.is_complex():
        product = left * rest[..., None, :] @ right.mH
    elif right.is_complex():
        product = _real_product(rest, left, right)
    else:
        product = _paired_product(rest, values, left, right)
    if not torch.is_grad_enabled() and _is_plain(slope) and not (slope.any() or constant.any()):
        return product
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    constant, slope, unit = constant[..., None], slope[..., None], (matrix / scale).mH.contiguous()
    if not matrix.is_complex():
        constant, slope = constant.real, slope.real
    return torch.addcmul(torch.addcmul(product, slope, unit), constant, eye)


def _is_plain(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return not (functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


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


class _Constant(Function):
    """What is computed here counts as constant, in every mode of differentiation and under every kind of `vmap`."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        outputs = cls.apply(*(_batched(*each, info.batch_size) for each in zip(arguments, in_dims, strict=True)))  # type: ignore[no-untyped-call]
        return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
        ctx.outputs = len(output) if isinstance(output, tuple) else 1
        ctx.inputs = len(inputs)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        return None if ctx.outputs == 1 else (None,) * ctx.outputs

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return (None,) * ctx.inputs


def _batched(argument: Any, dim: int | None, size: int) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)


class _Scale(_Constant):
    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return _matrix_scale(matrix)


class _LinearPart(_Constant):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _linear_part(*arguments)


class _Dropped(Function):
    """0 in the place of what is negligible, with the derivative of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, negligible: Tensor) -> Tensor:
        return tensor.masked_fill(negligible != 0, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None


def _matrix_scale(matrix: Tensor) -> Tensor:
    """The largest entry of each matrix, 1 for zero matrices, ``(*batch, 1, 1)``."""
    largest = (torch.view_as_real(matrix).abs().amax(-1) if matrix.is_complex() else matrix.abs()).amax((-1, -2), True)
    return torch.where(largest == 0, 1.0, largest)


def _linear_part(
    cotangent: Tensor,
    matrix: Tensor,
    scale: Tensor,
    values: Tensor,
    condition: Tensor,
    clusters: Tensor,
    degree: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """c₀, c₁ ``(*batch, 1)`` of a fit ḡ ≈ c₀ + c₁ λ̄/scale, and 1 where its remainder is rounding; all constants.

    The error of Σ ḡ_i y_i v_iᴴ is about eps Σ κ_i²|ḡ_i|. The fit, of the slope over all values and
    through their mean weighted by κ², is used where taking it off makes that less, its own rounding counted, and is 0
    elsewhere. Clusters ask for a close fit, because the linear part
    moves their members by more than the mean.
    """
    eps = torch.finfo(condition.dtype).eps
    cotangent = cotangent * 1  # lazily conjugated tensors have no batching rule for their parts
    size = torch.maximum(cotangent.real.abs(), cotangent.imag.abs()).amax(-1, True)
    divisor = torch.where(size == 0, 1.0, size)
    values = values / scale[..., 0]
    parts = torch.stack([values.real, -values.imag, cotangent.real / divisor, cotangent.imag / divisor], -2)
    weight = (condition / condition.amax(-1, True)).square()[..., None, :]
    mean = (parts * weight).sum(-1, True) / weight.sum(-1, True)
    centred = parts - parts.mean(-1, True)
    gram = centred @ centred.mT
    variance = gram[..., 0, 0] + gram[..., 1, 1]
    flat = variance <= (eps * eps) * _squares(parts[..., :2, :]).sum(-1)
    slope = torch.complex(gram[..., 0, 2] + gram[..., 1, 3], gram[..., 0, 3] - gram[..., 1, 2])
    slope = torch.where(flat, 0.0, slope / torch.where(flat, 1.0, variance))[..., None] * degree
    mean_value, mean_unit = (torch.complex(mean[..., k, :], mean[..., k + 1, :]) for k in (0, 2))
    reach = slope.abs() * _squares(parts[..., :2, :]).amax(-1, True).sqrt()
    slope = torch.where(reach <= VANISHING * eps, 0.0, slope)  # units are at most of modulus √2
    constant = mean_unit - slope * mean_value
    # a constant that is rounding would stay beside small λ, which may be the worst conditioned
    constant = torch.where(constant.abs() <= VANISHING * eps * (1 + reach), 0.0, constant)
    use, negligible = _use_of_fit(parts, constant, slope, matrix / scale, condition, clusters)
    return constant * use * size, slope * use * size, negligible * use


def _use_of_fit(
    parts: Tensor, constant: Tensor, slope: Tensor, matrix: Tensor, condition: Tensor, clusters: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether the fit is better than none ``(*batch, 1)``, and where its remainder is rounding: 0 or 1."""
    eps = torch.finfo(condition.dtype).eps
    value_size, unit_size = _squares(parts[..., :2, :]).sqrt(), _squares(parts[..., 2:, :]).sqrt()
    fit = constant + slope * torch.complex(parts[..., 0, :], parts[..., 1, :])
    rest = _squares(torch.stack([parts[..., 2, :] - fit.real, parts[..., 3, :] - fit.imag], -2)).sqrt()
    constant_size, slope_size = constant.abs(), slope.abs()
    taken = unit_size + constant_size + slope_size * value_size
    negligible = rest <= EXACT * eps * taken
    rest = torch.where(negligible, 0.0, rest)
    largest = condition.amax(-1, True)
    relative = condition / largest
    norm = torch.linalg.vector_norm(matrix, dim=(-1, -2))[..., None]
    fixed = (constant_size * matrix.shape[-1] ** 0.5 + slope_size * norm) / largest.square()
    # in units of κ_max², which itself may be too large a number
    error = (relative.square() * rest + torch.where(negligible, 0.0, relative * taken / largest)).sum(-1, True) + fixed
    better = error < (relative.square() * unit_size).sum(-1, True) / 2
    single = (_cluster_size(clusters) == 1).all(-1, True)
    use = better & (single | (rest <= CLUSTER_FIT).all(-1, True))
    return use.to(rest.dtype), negligible.to(rest.dtype)


def _squares(parts: Tensor) -> Tensor:
    """|z|² from real and imaginary parts ``(*batch, 2, n)``."""
    return parts[..., 0, :].square() + parts[..., 1, :].square()


def _cluster_size(clusters: Tensor) -> Tensor:
    index = clusters.long()
    return torch.zeros_like(clusters).scatter_add(-1, index, torch.ones_like(clusters)).gather(-1, index)


def _cluster_mean(tensor: Tensor, clusters: Tensor) -> Tensor:
    """Each entry ``(*batch, n)`` replaced by the mean over its cluster."""
    index = clusters.long()
    total = torch.zeros_like(tensor).scatter_add(-1, index, tensor)
    return total.gather(-1, index) / _cluster_size(clusters)


def _reciprocals(values: Tensor, clusters: Tensor) -> Tensor:
    """D_ij = 1/(λ_j − λ_i), 0 within a cluster."""
    together = clusters[..., :, None] == clusters[..., None, :]
    difference = values[..., None, :] - values[..., :, None]
    return torch.where(together, 0.0, 1 / torch.where(together, 1.0, difference))
