"""Newton steps on a whole basis of right and left eigenvectors at once, batched.

Vectors are rows here: v_iᵀ and w_i, the rows of W = V⁻¹. A real matrix keeps its basis real: of a pair λ, λ̄ the rows
Re v and Im v of the right vector v stand where v and v̄ would, and the inverse of that matrix has the columns 2 Re w and
−2 Im w of the left one, so that every product is real.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specreg.eigen.precise import DIGITS, norm_exponent, rounded, split

FEW = 12  # bits of A and W split off where the rest of V is small enough for short products


@dataclass(frozen=True)
class Quotients:
    """What dividing by λ_i − λ_j needs, and by how much that amplifies what it divides."""

    factors: tuple[Tensor, ...]  # of (b, n, n)
    amplification: Tensor  # (b, n), (Σ_j κ_j²/|λ_i − λ_j|²)^½
    closeness: Tensor  # (b,), the largest κ_i/|λ_i − λ_j|, infinite where two λ are equal


@dataclass(frozen=True)
class ComplexForm:
    """Λ and the maps built on it, for vectors as they are."""

    values: Tensor  # (b, n), complex

    def swapped(self, rows: Tensor) -> Tensor:
        """What `subtract` needs beside U: nothing more."""
        return rows

    @property
    def parts(self) -> Tensor:
        """Λ as `subtract` takes it."""
        return self.values

    def subtract(self, result: Tensor, rows: Tensor, swapped: Tensor, parts: Tensor) -> Tensor:
        """`result` − ΛU, in place, of a Λ in `parts`."""
        return result.addcmul_(rows, parts[:, :, None], value=-1)

    def quotients(self, condition: Tensor, dtype: torch.dtype) -> Quotients:
        """1/(λ_i − λ_j), 0 on the diagonal, NaN where two λ are equal."""
        difference = (self.values[:, :, None] - self.values[:, None, :]).to(dtype)
        near = torch.view_as_real(difference).square().sum(-1)
        near.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        amplification, closeness = _amplification(near.reciprocal_(), condition)
        return Quotients((difference.conj() * near,), amplification, closeness)

    def divide(self, matrix: Tensor, quotients: Quotients) -> Tensor:
        """X with ΛX − XΛ = M off the diagonal and 0 on it."""
        return matrix * quotients.factors[0]

    def moved(self, matrix: Tensor) -> ComplexForm:
        """The form of Λ + diag M."""
        return ComplexForm(self.values + matrix.diagonal(dim1=-2, dim2=-1))

    def right_norms(self, rows: Tensor) -> Tensor:
        """‖v_i‖, ``(b, n)``."""
        return torch.linalg.vector_norm(rows, dim=-1)  # type: ignore[no-any-return]

    def left_norms(self, rows: Tensor) -> Tensor:
        """‖w_i‖, ``(b, n)``."""
        return self.right_norms(rows)

    def part(self, index: Tensor) -> ComplexForm:
        """Of some batch elements."""
        return ComplexForm(self.values[index])


@dataclass(frozen=True)
class RealForm:
    """Λ and the maps built on it, for real matrices and vectors held as real and imaginary parts."""

    values: Tensor  # (b, n), complex, pairs side by side
    parts: Tensor  # (2, b, n), real and imaginary
    partner: Tensor  # (b, n), index of the conjugate, itself for a real value
    row: Tensor  # (b · n), index of the partner's row among the rows of all matrices
    paired: Tensor  # (b, n), 1 for members of a pair, else 0

    @staticmethod
    def of(values: Tensor) -> RealForm:
        """The form of values in LAPACK's order: the one above the real axis comes before its conjugate."""
        batch, size = values.shape
        parts = torch.view_as_real(values).movedim(-1, 0).contiguous()
        sign = parts[1].sign()
        partner = torch.arange(size, device=values.device) + sign.long()
        first = torch.arange(0, batch * size, size, device=values.device)[:, None]
        return RealForm(values, parts, partner, (partner + first).view(-1), sign.abs_())

    def swapped(self, matrix: Tensor) -> Tensor:
        """The rows with partners exchanged."""
        return matrix.view(-1, matrix.shape[-1]).index_select(0, self.row).view_as(matrix)

    def subtract(self, result: Tensor, rows: Tensor, swapped: Tensor, parts: Tensor) -> Tensor:
        """`result` − ΛU in place, of the block-diagonal Λ with [[x, −y], [y, x]] for a pair x ± iy in `parts`."""
        real, imag = parts[:, :, :, None].unbind()
        return result.addcmul_(rows, real, value=-1).addcmul_(swapped, imag)

    def quotients(self, condition: Tensor, dtype: torch.dtype) -> Quotients:
        """Re(λ_i − λ_j), Im(λ_i − λ_j), Im(λ_i − λ̄_j), 1/|λ_i − λ_j|² and 1/|λ_i − λ̄_j|².

        Within a pair the part of M that commutes with Λ is no ΛX − XΛ and is left out: the last two are 0 there.
        """
        (real, row), (other_real, column) = self.parts[:, :, :, None].unbind(), self.parts[:, :, None, :].unbind()
        real, below, above = ((real - other_real).to(dtype), (row - column).to(dtype), (row + column).to(dtype))
        square = real * real
        near, far = torch.addcmul(square, below, below), torch.addcmul(square, above, above, out=square)
        near.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        far.scatter_(-1, self.partner[:, :, None], torch.inf)
        amplification, closeness = _amplification(near.reciprocal_(), condition)
        return Quotients((real, below, above, near, far.reciprocal_()), amplification, closeness)

    def divide(self, matrix: Tensor, quotients: Quotients) -> Tensor:
        """X with ΛX − XΛ = M off the diagonal and 0 on it, both in the complex basis.

        M ↦ X is a sum of four maps that exchange the partners of neither, both, the columns or the rows, with factors
        ½ of Re(g + h), Re(g − h), −Im(g − h) and Im(g + h), g = 1/(λ_i − λ_j) and h = 1/(λ_i − λ̄_j).
        """
        real, below, above, near, far = quotients.factors
        columns = matrix.gather(-1, self.partner[:, None, :].expand_as(matrix))
        rows, both = self.swapped(matrix), self.swapped(columns)
        result = torch.add(matrix, both).mul_(real).addcmul_(rows - columns, below).mul_(near)
        other = torch.sub(matrix, both, out=both).mul_(real).addcmul_(rows.add_(columns), above)
        return result.addcmul_(other, far).mul_(0.5)

    def moved(self, matrix: Tensor) -> RealForm:
        """The form of Λ + the diagonal of M in the complex basis."""
        beside = matrix.gather(-1, self.partner[:, :, None]).squeeze(-1)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        other, beside_other = (part.gather(-1, self.partner) for part in (diagonal, beside))
        parts = torch.add(self.parts, torch.stack((diagonal + other, beside_other - beside)), alpha=0.5)
        return replace(self, values=torch.complex(parts[0], parts[1]), parts=parts)

    def right_norms(self, rows: Tensor) -> Tensor:
        """‖v_i‖, ``(b, n)``."""
        squares = torch.linalg.vector_norm(rows, dim=-1).square_()
        return torch.addcmul(squares, squares.gather(-1, self.partner), self.paired.to(squares.dtype)).sqrt_()

    def left_norms(self, rows: Tensor) -> Tensor:
        """‖w_i‖, ``(b, n)``."""
        # rows hold twice the parts of a complex w
        return self.right_norms(rows) * (1 - 0.5 * self.paired)

    def part(self, index: Tensor) -> RealForm:
        """Of some batch elements."""
        return RealForm.of(self.values[index])


Form = ComplexForm | RealForm


def _amplification(squares: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Both such numbers of `Quotients` from 1/|λ_i − λ_j|²."""
    weighted = squares * condition.square()[:, :, None].to(squares.dtype)
    return weighted.sum(-2).sqrt_(), weighted.amax((-1, -2)).sqrt_()


def packed(values: Tensor, vectors: Tensor, rows: Tensor) -> Form:
    """The form of a batch of eigenvalues as LAPACK orders them; puts its vectors (columns) in that form into `rows`."""
    if rows.is_complex():
        rows.copy_(vectors.mT)
        return ComplexForm(values)
    form = RealForm.of(values)
    parts, second = torch.view_as_real(vectors.mT), (form.parts[1] < 0).to(rows.dtype)[:, :, None]
    torch.mul(parts[..., 0], 1 - second, out=rows).addcmul_(parts[..., 1], second, value=-1)
    return form


@dataclass(frozen=True)
class Basis:
    """Right vectors (rows v_iᵀ of Vᵀ, near length 1) and left ones (rows of W ≈ V⁻¹) of a batch."""

    form: Form
    right: Tensor  # (b, n, n), in the form's layout
    left: Tensor  # (b, n, n), in the form's layout

    def part(self, index: Tensor) -> Basis:
        """Of some batch elements."""
        return Basis(self.form.part(index), self.right[index], self.left[index])


@dataclass(frozen=True)
class Step:
    """What a Newton step gives and how far it had to go."""

    basis: Basis
    moved: Tensor  # (b, n), relative change of the vectors, the larger of both sides
    condition: Tensor  # (b, n), κ_i before the step
    closeness: Tensor  # (b,), the largest κ_i over a distance to another eigenvalue, before the step
    noise: Tensor  # (b, n), how many κ·eps residuals in working precision would leave in a vector
    norm: Tensor  # (b, 1), ‖A‖_F


def newton(matrix: Tensor, basis: Basis, dtype: torch.dtype) -> Step:
    """One step on all vectors, from A V − V Λ and W V − I in more than working precision.

    With R = AV − VΛ, X_ij = (WR)_ij/(λ_j − λ_i) off the diagonal and 0 on it: V + VX, W − (WV − I + X)W and
    λ_i + w_i r_i, in the memory of the basis given. Products of what is small are taken in `dtype`: if that is shorter
    than A's, the noise of working precision is divided by 2^12, else by the root of its eps. In the first case V is
    rounded before to what can be multiplied exactly: the step takes that off again with the rest.
    """
    form, right, left = basis.form, basis.right, basis.left
    norm = torch.linalg.vector_norm(matrix, dim=(-1, -2))[:, None]
    condition = form.left_norms(left)
    quotients = form.quotients(condition, dtype)
    digits = DIGITS[norm.dtype]
    short = dtype != right.dtype
    bits = FEW if short else (digits - 1) // 2
    high, low = (rounded(right, digits - 1 - bits), None) if short else split(right, None, digits - 1 - bits)
    short_right, short_left = right.to(dtype), left.to(dtype)
    inner = _residual(matrix, norm_exponent(norm), form, high, low, bits).to(dtype) @ short_left.mT  # (WR)ᵀ
    change = form.divide(inner, quotients)
    right_step = change @ short_right
    # twice κ, as of pairs W holds 2 Re w
    left_step = (_defect(left, norm_exponent(2 * condition), high, low, bits).to(dtype).add_(change)).mT @ short_left
    moved = torch.maximum(form.right_norms(right_step), form.left_norms(left_step) / condition).to(norm.dtype)
    noise = quotients.amplification * norm / (matrix.shape[-1] * condition)
    after = Basis(form.moved(inner), right.add_(right_step), left.sub_(left_step))
    return Step(after, moved, condition, quotients.closeness, noise, norm)


def _residual(matrix: Tensor, exponent: Tensor, form: Form, high: Tensor, low: Tensor | None, bits: int) -> Tensor:
    """(A V − V Λ)ᵀ of Vᵀ = high + low.

    The products of leading parts, and their sums, are exact; what follows is so much smaller.
    """
    leading, trailing = split(matrix, exponent[:, :, None], bits)
    leading_parts, trailing_parts = split(form.parts, exponent, bits)
    swapped = form.swapped(high)
    result = form.subtract(high @ leading.mT, high, swapped, leading_parts).baddbmm_(high, trailing.mT)
    form.subtract(result, high, swapped, trailing_parts)
    return result if low is None else result.add_(form.subtract(low @ matrix.mT, low, form.swapped(low), form.parts))


def _defect(left: Tensor, exponent: Tensor, high: Tensor, low: Tensor | None, bits: int) -> Tensor:
    """(W V − I)ᵀ of Vᵀ = high + low."""
    leading, trailing = split(left, exponent[:, :, None], bits)
    result = high @ leading.mT
    result.diagonal(dim1=-2, dim2=-1).sub_(1)
    result.baddbmm_(high, trailing.mT)
    return result if low is None else result.add_(low @ left.mT)


def partners(values: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each conjugate, itself for a real value, and the sign of the imaginary part, ``(*batch, 1, n)``."""
    sign = values.imag.sign()[..., None, :]
    return torch.arange(values.shape[-1], device=values.device) + sign.long(), sign


def complex_vectors(values: Tensor, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Columns v_i and y_i, from the real form if they come in it."""
    if right.is_complex():
        return right, left
    partner, sign = partners(values)
    halved = left * torch.where(sign == 0, 1.0, 0.5).to(left.dtype)
    return _paired(right, partner, sign), _paired(halved, partner, sign)


def _paired(parts: Tensor, partner: Tensor, sign: Tensor) -> Tensor:
    """Re ± i Im in the place of Re and Im."""
    swapped = parts.gather(-1, partner.expand(parts.shape))
    # not by torch.complex, whose own derivative fails under vmap where it meets a lazy conjugate
    return torch.where(sign < 0, swapped, parts) + 1j * (sign * torch.where(sign < 0, parts, swapped))
