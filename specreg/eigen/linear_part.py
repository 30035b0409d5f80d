"""The part of a cotangent of eigenvalues that is linear in them, whose gradient needs no eigenvectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

VANISHING = 64.0  # a coefficient of the fit below this · eps of the largest term counts as 0
EXACT = 8.0  # a remainder below this · eps of what was taken off is rounding
CLUSTER_FIT = 1e-6  # how closely cotangents must be linear in λ for a cluster to count as more than its mean


class Constant(Function):
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


class Scale(Constant):
    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return matrix_scale(matrix)


class LinearPart(Constant):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return linear_part(*arguments)


class Dropped(Function):
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


def matrix_scale(matrix: Tensor) -> Tensor:
    """The largest entry of each matrix, 1 for zero matrices, ``(*batch, 1, 1)``."""
    largest = (torch.view_as_real(matrix).abs().amax(-1) if matrix.is_complex() else matrix.abs()).amax((-1, -2), True)
    return torch.where(largest == 0, 1.0, largest)


def linear_part(
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
    value, unit = (torch.complex(centred[..., k, :], centred[..., k + 1, :]) for k in (0, 2))
    variance = _squares(centred[..., :2, :]).sum(-1)
    flat = variance <= (eps * eps) * _squares(parts[..., :2, :]).sum(-1)
    slope = (value.conj() * unit).sum(-1)
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
    single = (clusters == torch.arange(clusters.shape[-1], device=clusters.device)).all(-1, True)
    use = better & (single | (rest <= CLUSTER_FIT).all(-1, True))
    return use.to(rest.dtype), negligible.to(rest.dtype)


def _squares(parts: Tensor) -> Tensor:
    """|z|² from real and imaginary parts ``(*batch, 2, n)``."""
    return parts[..., 0, :].square() + parts[..., 1, :].square()


def _cluster_size(clusters: Tensor) -> Tensor:
    index = clusters.long()
    return torch.zeros_like(clusters).scatter_add(-1, index, torch.ones_like(clusters)).gather(-1, index)


def cluster_mean(tensor: Tensor, clusters: Tensor) -> Tensor:
    """Each entry ``(*batch, n)`` replaced by the mean over its cluster."""
    index = clusters.long()
    total = torch.zeros_like(tensor).scatter_add(-1, index, tensor)
    return total.gather(-1, index) / _cluster_size(clusters)
