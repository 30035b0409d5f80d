"""Residuals of eigenvectors to about twice working precision, from products of float64 matrices alone.

A matrix is cut into slices short enough that the products of two slices, and the sums within them, are exact
(Ozaki, Ogita, Oishi and Rump 2012); what is left is a sum of few terms, taken with compensation (Ogita, Rump and Oishi
2005). No wider number type is needed, so it runs the same on every processor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIGITS = {torch.float64: 53, torch.float32: 24}
SPLITTER = 2.0**27 + 1  # halves the 53 bits of a float64


def residual(matrix: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    """A x_i − λ_i x_i for the columns of ``(b, n, k)`` complex or real vectors, complex or real values ``(b, k)``.

    All float64 or complex128. Absolute error about 2⁻¹⁰⁰ ‖A‖‖x_i‖ before the result is rounded.
    """
    complex_result = vectors.is_complex() or values.is_complex() or matrix.is_complex()
    if not complex_result:
        return _real_residual(matrix, [(vectors, values)], vectors)
    size = matrix.shape[-1]
    real, imag = _parts(vectors)
    x, y = _parts(values)
    if matrix.is_complex():
        a, b = _parts(matrix)
        matrix = torch.cat([torch.cat([a, -b], -1), torch.cat([b, a], -1)], -2)
        stacked, turned = torch.cat([real, imag], -2), torch.cat([-imag, real], -2)
        result = _real_residual(matrix, [(stacked, x), (turned, y)], stacked)
        return torch.complex(result[..., :size, :], result[..., size:, :])
    real_part = _real_residual(matrix, [(real, x), (-imag, y)], real)
    return torch.complex(real_part, _real_residual(matrix, [(imag, x), (real, y)], imag))


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent, exactly."""
    return torch.ldexp(torch.ones_like(exponent, dtype=dtype), exponent)


def norm_exponent(norm: Tensor) -> Tensor:
    """The least e with norm < 2^e."""
    return torch.frexp(norm).exponent


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """The leading `bits` bits below 1, where all entries must be, in place."""
    shift = 1.5 * 2.0 ** (DIGITS[tensor.real.dtype] - 1 - bits)
    (torch.view_as_real(tensor) if tensor.is_complex() else tensor).add_(shift).sub_(shift)
    return tensor


def split(tensor: Tensor, exponent: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """The leading `bits` bits below 2^exponent (1 if None), where all entries must be, and the rest, exactly.

    Leading parts are multiples of one unit. Products of two, and sums of them, are exact as long as they stay below the
    product of both powers and both `bits` together are less than a number's digits. Of complex tensors both parts are
    split.
    """
    real = tensor.real.dtype
    shift = 1.5 * 2.0 ** (DIGITS[real] - 1 - bits)
    anchor = shift if exponent is None else shift * power_of_two(exponent, real)
    if not tensor.is_complex():
        leading = (tensor + anchor).sub_(anchor)
        return leading, tensor - leading
    if isinstance(anchor, Tensor):
        anchor = anchor[..., None]
    leading = torch.view_as_complex((torch.view_as_real(tensor) + anchor).sub_(anchor))
    return leading, tensor - leading


def _parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return (tensor.real, tensor.imag) if tensor.is_complex() else (tensor, torch.zeros_like(tensor))


def _real_residual(matrix: Tensor, subtracted: list[tuple[Tensor, Tensor]], vectors: Tensor) -> Tensor:
    """A V − Σ U_k diag(d_k)."""
    terms = _product_terms(matrix, vectors)
    for left, right in subtracted:
        high, low = _exact_product(left, right[..., None, :].expand_as(left))
        terms += [-high, -low]
    return _compensated_sum(terms)


def _product_terms(left: Tensor, right: Tensor) -> list[Tensor]:
    bits = (53 - math.ceil(math.log2(max(left.shape[-1], 2)))) // 2
    a, b, c = _slices(left, -1, bits)
    x, y, z = _slices(right, -2, bits)
    return [a @ x, a @ y, b @ x, b @ (y + z) + (a @ z + c @ right)]


def _slices(matrix: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two slices of `bits` bits, relative to the largest entry along `dim`, and the rest; they sum exactly."""
    rest, slices = matrix, []
    for _ in range(2):
        exponent = torch.frexp(rest.abs().amax(dim, keepdim=True)).exponent
        anchor = 1.5 * power_of_two(exponent + (52 - bits), rest.dtype)
        slices.append((rest + anchor) - anchor)
        rest = rest - slices[-1]
    return slices[0], slices[1], rest


def _exact_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left · right as an unevaluated sum (Dekker 1971)."""
    product = left * right
    (a, b), (c, d) = _halves(left), _halves(right)
    return product, ((a * c - product) + a * d + b * c) + b * d


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scaled = tensor * SPLITTER
    high = scaled - (scaled - tensor)
    return high, tensor - high


def _compensated_sum(terms: list[Tensor]) -> Tensor:
    total, error = terms[0], torch.zeros_like(terms[0])
    for term in terms[1:]:
        new = total + term
        back = new - total
        error = error + ((total - (new - back)) + (term - back))
        total = new
    return total + error
