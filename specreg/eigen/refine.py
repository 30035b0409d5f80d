"""Newton steps on a whole basis of right and left eigenvectors at once, batched.

A real matrix keeps its basis real: of a pair λ, λ̄ the columns Re v and Im v of the right vector v stand where v and v̄
would, and the inverse of that matrix has the rows 2 Re w and −2 Im w of the left one, so that every product is real.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quotients:
    """What dividing by λ_j − λ_i needs, and how far each λ is from the next."""

    factors: tuple[Tensor, ...]  # of (b, n, n)
    gap: Tensor  # (b, n), |λ_i − λ_j| of the nearest j


@dataclass(frozen=True)
class ComplexForm:
    """Λ and the maps built on it, for vectors as they are."""

    values: Tensor  # (b, n), complex

    def right_residual(self, matrix: Tensor, right: Tensor) -> Tensor:
        """A V − V Λ."""
        return (matrix @ right).addcmul_(right, self.values[:, None, :], value=-1)

    def left_residual(self, matrix: Tensor, left: Tensor) -> Tensor:
        """W A − Λ W."""
        return (left @ matrix).addcmul_(left, self.values[:, :, None], value=-1)

    def quotients(self) -> Quotients:
        """D_ij = 1/(λ_j − λ_i), 0 where that is no number."""
        difference = self.values[:, None, :] - self.values[:, :, None]
        distance = torch.hypot(difference.real, difference.imag)
        distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        reciprocal = difference.reciprocal_().masked_fill_((distance == 0) | (distance == torch.inf), 0)
        return Quotients((reciprocal,), distance.amin(-1))

    def divide(self, matrix: Tensor, quotients: Quotients) -> Tensor:
        """X with XΛ − ΛX = M off the diagonal and 0 on it."""
        return matrix * quotients.factors[0]

    def diagonal(self, matrix: Tensor) -> Tensor:
        """The diagonal of M = W … V, complex ``(b, n)``."""
        return matrix.diagonal(dim1=-2, dim2=-1)

    def right_norms(self, right: Tensor) -> Tensor:
        """‖v_i‖, ``(b, n)``."""
        return torch.view_as_real(right).square().sum((-3, -1)).sqrt_()

    def left_norms(self, left: Tensor) -> Tensor:
        """‖w_i‖, ``(b, n)``."""
        return torch.view_as_real(left).square().sum((-2, -1)).sqrt_()

    def normalised(self, right: Tensor, left: Tensor) -> Tensor:
        """The left vectors as columns y_i = w_iᴴ, with y_iᴴ v_i = 1."""
        left = left.mH.resolve_conj().contiguous()
        return left * (right.conj() * left).sum(-2, keepdim=True).reciprocal()

    def replaced(self, values: Tensor) -> ComplexForm:
        return ComplexForm(values)

    def part(self, index: Tensor) -> ComplexForm:
        """Of some batch elements."""
        return ComplexForm(self.values[index])


@dataclass(frozen=True)
class RealForm:
    """Λ and the maps built on it, for real matrices and vectors held as real and imaginary parts."""

    values: Tensor  # (b, n), complex, pairs side by side
    real: Tensor  # (b, n)
    imag: Tensor  # (b, n)
    partner: Tensor  # (b, n), index of the conjugate, itself for a real value
    row: Tensor  # (b · n), index of the partner's row among the rows of all matrices
    paired: Tensor  # (b, n), 1 for members of a pair, else 0

    @staticmethod
    def of(values: Tensor) -> RealForm:
        """The form of values in LAPACK's order: the one above the real axis comes before its conjugate."""
        batch, size = values.shape
        real, imag = values.real.contiguous(), values.imag.contiguous()
        sign = imag.sign()
        every = torch.arange(batch * size, device=values.device).view(batch, size) + sign.long()
        first = torch.arange(0, batch * size, size, device=values.device)[:, None]
        return RealForm(values, real, imag, every - first, every.view(-1), sign.abs_())

    def swapped(self, matrix: Tensor) -> Tensor:
        """The columns with partners exchanged."""
        return matrix.gather(-1, self.partner[:, None, :].expand_as(matrix))

    def swapped_rows(self, matrix: Tensor) -> Tensor:
        """The rows with partners exchanged."""
        return matrix.reshape(-1, matrix.shape[-1]).index_select(0, self.row).view_as(matrix)

    def right_residual(self, matrix: Tensor, right: Tensor) -> Tensor:
        """A V − V Λ, of the block-diagonal Λ with [[x, y], [−y, x]] for a pair x ± iy."""
        result = (matrix @ right).addcmul_(right, self.real[:, None, :], value=-1)
        return result.addcmul_(self.swapped(right), self.imag[:, None, :])

    def left_residual(self, matrix: Tensor, left: Tensor) -> Tensor:
        """W A − Λ W."""
        result = (left @ matrix).addcmul_(left, self.real[:, :, None], value=-1)
        return result.addcmul_(self.swapped_rows(left), self.imag[:, :, None], value=-1)

    def quotients(self) -> Quotients:
        """The four factors of `divide`.

        With g = 1/(λ_j − λ_i) and h = 1/(λ_j − λ̄_i) they are ½ of Re(g + h), Re(g − h), −Im(g + h) and Im(g − h).
        Within a pair the part of M that commutes with Λ is no XΛ − ΛX and is left out: g and h are 0 there.
        """
        row, column = self.imag[:, :, None], self.imag[:, None, :]
        real, below, above = self.real[:, None, :] - self.real[:, :, None], row - column, row + column
        square = real * real
        near, far = torch.addcmul(square, below, below), torch.addcmul(square, above, above)
        near.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        far.scatter_(-1, self.partner[:, :, None], torch.inf)
        gap = near.amin(-1).sqrt_()
        if not gap.all():
            near, far = (part.masked_fill_(part == 0, torch.inf) for part in (near, far))
        near, far = near.reciprocal_().mul_(0.5), far.reciprocal_().mul_(0.5)
        g_real, h_real, g_imag, h_imag = real * near, real.mul_(far), below.mul_(near), above.mul_(far)
        return Quotients((g_real + h_real, g_real.sub_(h_real), h_imag - g_imag, h_imag.add_(g_imag)), gap)

    def divide(self, matrix: Tensor, quotients: Quotients) -> Tensor:
        """X with XΛ − ΛX = M off the diagonal and 0 on it, both in the complex basis.

        M ↦ X is a sum of the four maps that exchange the partners of neither, both, the columns or the rows.
        """
        neither, both, columns, rows = quotients.factors
        swapped = self.swapped(matrix)
        result = (neither * matrix).addcmul_(both, self.swapped_rows(swapped))
        return result.addcmul_(columns, swapped).addcmul_(rows, self.swapped_rows(matrix))

    def diagonal(self, matrix: Tensor) -> Tensor:
        """The diagonal of M = W … V in the complex basis, ``(b, n)``."""
        beside = matrix.gather(-1, self.partner[:, :, None]).squeeze(-1)
        return torch.complex(*self._pair_sums(matrix.diagonal(dim1=-2, dim2=-1), beside))

    def _pair_sums(self, diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        """The complex diagonal of M from M_ii and M_ij, j the partner of i: real and imaginary part."""
        other, beside_other = (part.gather(-1, self.partner) for part in (diagonal, beside))
        return (diagonal + other).mul_(0.5), (beside - beside_other).mul_(0.5)

    def right_norms(self, right: Tensor) -> Tensor:
        """‖v_i‖, ``(b, n)``."""
        return self._pair_norms((right * right).sum(-2))

    def left_norms(self, left: Tensor) -> Tensor:
        """‖w_i‖, ``(b, n)``."""
        # rows hold twice the parts of a complex w
        return self._pair_norms((left * left).sum(-1)) * (1 - 0.5 * self.paired)

    def _pair_norms(self, squares: Tensor) -> Tensor:
        return torch.addcmul(squares, squares.gather(-1, self.partner), self.paired).sqrt_()

    def normalised(self, right: Tensor, left: Tensor) -> Tensor:
        """The left vectors as columns, with y_iᴴ v_i = 1: a turn and a stretch of each pair."""
        left = left.mT.contiguous()
        swapped = self.swapped(left)
        real, imag = self._pair_sums((left * right).sum(-2), (swapped * right).sum(-2))
        square = real * real + imag * imag
        return (left * (real / square)[:, None, :]).addcmul_(swapped, (imag / square)[:, None, :])

    def replaced(self, values: Tensor) -> RealForm:
        return replace(self, values=values, real=values.real.contiguous(), imag=values.imag.contiguous())

    def part(self, index: Tensor) -> RealForm:
        """Of some batch elements."""
        return RealForm.of(self.values[index])


Form = ComplexForm | RealForm


def packed(values: Tensor, vectors: Tensor, real: bool) -> tuple[Form, Tensor]:
    """The form of a batch of eigenvalues as LAPACK orders them, and its vectors in that form."""
    if not real:
        return ComplexForm(values), vectors
    form = RealForm.of(values)
    every = 2 * torch.arange(values.shape[-1], device=values.device) - (form.imag < 0).long()  # of Re v₁ Im v₁ Re v₂ …
    parts = torch.view_as_real(vectors).flatten(-2)
    return form, parts.gather(-1, every[:, None, :].expand_as(vectors))


@dataclass(frozen=True)
class Basis:
    """Right vectors (columns of V, near length 1) and left ones (rows of W ≈ V⁻¹) of a batch."""

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
    gap: Tensor  # (b, n), before the step


def newton(basis: Basis, right_residual: Tensor, left_residual: Tensor) -> Step:
    """One step on all vectors, each side from its own residual.

    With R = AV − VΛ, L = WA − ΛW and D_ij = 1/(λ_j − λ_i) off the diagonal: V + V[(WR)∘D], W − [(LV)∘D]W and
    λ_i + w_i r_i. One residual for both sides would leave the error of W as an inverse of V.
    """
    form, right, left = basis.form, basis.right, basis.left
    quotients = form.quotients()
    right_error = left @ right_residual
    values = form.values + form.diagonal(right_error)
    right_step = right @ form.divide(right_error, quotients)
    left_step = form.divide(left_residual @ right, quotients) @ left
    condition = form.left_norms(left)
    moved = torch.maximum(form.right_norms(right_step), form.left_norms(left_step) / condition)
    after = Basis(form.replaced(values), right_step.add_(right), torch.sub(left, left_step, out=left_step))
    return Step(after, moved, condition, quotients.gap)


def step(matrix: Tensor, basis: Basis) -> Step:
    """A Newton step with residuals in working precision."""
    form = basis.form
    return newton(basis, form.right_residual(matrix, basis.right), form.left_residual(matrix, basis.left))


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
