"""Diagonal matrices with a low-rank correction: the transitions of RWKV-7 and of S4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specreg.eigen.clusters import RESOLUTION
from specreg.eigen.dense import conditioned_eigenvalues, eigenvalues
from specreg.eigen.pairs import check_finite
from specreg.operators.base import StructuredOperator
from specreg.operators.chain import dense_window
from specreg.operators.extended import legs_words, secular_roots
from specreg.operators.solved import capped, conditioned_by, shared_norms
from specreg.spectrum import polar

LEGS_WORDS = 6  # float64 words of each parameter: 96 digits, of which 64 states need 65
TRUSTED_ERROR = 1e-9  # estimated error, relative to the eigenvalue, up to which the float64 solve is left as it is
SMALLEST_SHARE = 1e-6  # of ‖A‖: smaller eigenvalues are taken relative to this

Solve = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""From matrices S ``(m, n, n)`` and the scaling of D ``(m, n)`` to fields ``(m, n)``."""


@dataclass(frozen=True, eq=False)
class DiagonalPlusRankOne(StructuredOperator):
    """exp(c) (diag(w) + a bᵀ) with w = exp(log_decay), the transition of RWKV-7.

    The eigenvalues solve the secular equation 1 + Σ_i a_i b_i/(w_i − λ) = 0, so they depend on a and b through a∘b
    alone: the matrix is scaled to |a_i| = |b_i| first. Where a∘b has one sign, as in RWKV-7, it is symmetric then, with
    real, perfectly conditioned eigenvalues; other matrices go to the dense solve. Peng et al. 2025, arXiv 2503.14456.
    """

    log_decay: Tensor  # (*batch, n)
    left: Tensor  # (*batch, n), a
    right: Tensor  # (*batch, n), b
    log_factor: Tensor  # (*batch)

    @property
    def shape(self) -> torch.Size:
        fields = (self.log_decay, self.left, self.right, self.log_factor.unsqueeze(-1))
        batch = torch.broadcast_shapes(*(field.shape for field in fields))
        return torch.Size((*batch, batch[-1]))

    def dense(self) -> Tensor:
        matrix = torch.diag_embed(self.log_decay.exp()) + self.left.unsqueeze(-1) * self.right.unsqueeze(-2)
        return matrix * self.log_factor.exp()[..., None, None]

    def polar(self) -> tuple[Tensor, Tensor]:
        log_scale = self._log_size().unsqueeze(-1)
        log_modulus, phase = polar(_Scaled.of(self.log_decay, self.left, self.right, log_scale).eigenvalues())
        return log_modulus + log_scale + self.log_factor.unsqueeze(-1), phase

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor]:
        log_scale = self._log_size().unsqueeze(-1)
        scaled = _Scaled.of(self.log_decay, self.left, self.right, log_scale)
        values, condition = scaled.conditioned()
        log_modulus, phase = polar(values)
        return log_modulus + log_scale + self.log_factor.unsqueeze(-1), phase, condition

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        return torch.ones(self.shape[-1], dtype=torch.long, device=self.left.device)

    def mm(self, matrix: Tensor) -> Tensor:
        dtype = torch.promote_types(self.left.dtype, matrix.dtype)
        matrix = matrix.to(dtype)
        written = self.left.unsqueeze(-1) * (self.right.to(dtype).unsqueeze(-2) @ matrix)
        return (self.log_decay.exp().unsqueeze(-1) * matrix + written) * self.log_factor.exp()[..., None, None]

    def adjoint(self) -> DiagonalPlusRankOne:
        return replace(self, left=self.right.conj(), right=self.left.conj())

    def log_scale(self) -> Tensor:
        """log of a bound of the norm: the larger of max w and ‖a‖‖b‖, times the factor."""
        return self.log_factor + self._log_size()

    def scaled(self, log_scale: Tensor) -> DiagonalPlusRankOne:
        return replace(self, log_factor=self.log_factor + log_scale)

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        """Dense products: the rank of the correction grows by one a step."""
        return dense_window(self, width, stride)

    @classmethod
    def example(cls) -> DiagonalPlusRankOne:
        """Removals of different size in each step, as RWKV-7 has, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_decay, left, gate = torch.randn(3, 2, 7, 3, 4, dtype=torch.float64, generator=draw)
        log_factor = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw)
        return cls(-log_decay.exp(), -left, left * gate.sigmoid(), log_factor)

    def _log_size(self) -> Tensor:
        norms = torch.linalg.vector_norm(self.left, dim=-1) * torch.linalg.vector_norm(self.right, dim=-1)
        largest = torch.maximum(self.log_decay.amax(-1), norms.log()).detach()
        return torch.where(largest == -torch.inf, 0.0, largest)


@dataclass(frozen=True, eq=False)
class DiagonalPlusLowRank(StructuredOperator):
    """exp(c) times a power of S4's discretised matrix (I − ½Δ A)⁻¹ (I + ½Δ A), with A = diag(Λ) − P Qᴴ.

    Eigenvalues a of A by `continuous_eigenvalues`, then λ = (1 + ½Δa)/(1 − ½Δa): never from the discretised matrix.
    All n states are held; where a model keeps one of each conjugate pair, write both out, because P Qᴴ couples them.

    A far from normal asks for more digits than float64 holds of Λ, P and Q: `tails` are the words that follow the first
    of each (constants). `legs` gives them for HiPPO-LegS; without them its eigenvalues are, truly, other ones from 24
    states on. Products use the first words. Gu et al. 2021, arXiv 2111.00396.
    """

    poles: Tensor  # (*batch, n) complex, Λ
    left: Tensor  # (*batch, n, r) complex, P
    right: Tensor  # (*batch, n, r) complex, Q
    log_step: Tensor  # (*batch), log Δ
    log_factor: Tensor  # (*batch)
    tails: Tensor | None = None  # (*batch, n, 1 + 2r, words) complex, further words of Λ, P, Q
    power: int = 1

    @classmethod
    def legs(cls, size: int, log_step: Tensor) -> DiagonalPlusLowRank:  # (*batch)
        """HiPPO-LegS, whose continuous eigenvalues are −1 … −size, with one step for each batch element."""
        poles, left = (torch.from_numpy(words).to(log_step.device) for words in legs_words(size, LEGS_WORDS))
        batch, dtype = log_step.shape, torch.promote_types(log_step.dtype, torch.complex64)
        words = torch.stack((poles, left, left), 1).expand(*batch, size, 3, LEGS_WORDS)
        heads = words[..., 0].to(dtype)
        # a head in single precision leaves its own remainder to the tails
        rest = torch.cat(((words[..., 0] - heads).unsqueeze(-1), words[..., 1:]), -1)
        return cls(
            heads[..., 0], heads[..., 1, None], heads[..., 2, None], log_step, torch.zeros_like(log_step), tails=rest
        )

    @property
    def shape(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.poles.shape[:-1], self.left.shape[:-2], self.log_step.shape)
        return torch.Size((*batch, self.poles.shape[-1], self.poles.shape[-1]))

    def dense(self) -> Tensor:
        identity = torch.eye(self.poles.shape[-1], dtype=self.poles.dtype, device=self.poles.device)
        return self.mm(identity.expand(self.shape))

    def continuous(self) -> Tensor:
        """A, ``(*batch, n, n)``, from the first words."""
        return torch.diag_embed(self.poles) - self.left @ self.right.mH

    def continuous_eigenvalues(self) -> Tensor:
        """Eigenvalues of A, complex ``(*batch, n)``.

        By a dense solve where float64 suffices (estimated relative error below 1e-9), else, for rank 1, by the secular
        equation 1 + Σ P_i Q̄_i/(a − Λ_i) = 0 in as many digits as it needs (about 2 s for 64 states; equal matrices are
        solved once). Ranks above 1, and poles that coincide or have weight 0, always use the dense solve, whose error
        is κ·eps·‖A‖. The extended solve has first derivatives only.
        """
        return self._continuous_eigenvalues()[0]

    def _continuous_eigenvalues(self) -> tuple[Tensor, Tensor]:
        """And their κ, which the step from A to its discretised matrix leaves as it is."""
        matrix = self.continuous()
        dense, condition = conditioned_eigenvalues(matrix)
        if self.left.shape[-1] != 1 or self.poles.shape[-1] == 1:
            return dense, condition
        doubtful = _doubtful(matrix.detach(), dense.detach(), condition)
        if not bool(doubtful.any()):
            return dense, condition
        tails = self.left.new_zeros(*self.left.shape, 3, 1)[..., 0, :, :] if self.tails is None else self.tails
        fields = (self.poles, self.left[..., 0], self.right[..., 0].conj())
        batch = dense.shape
        chosen = [field.expand(batch)[doubtful] for field in fields]
        tails = tails.expand(*batch, *tails.shape[-2:])[doubtful]
        roots, sharper, found = _SecularRoots.apply(*chosen, tails, dense.detach()[doubtful])  # type: ignore[no-untyped-call]
        index = doubtful.nonzero()[found].unbind(-1)
        return dense.index_put(index, roots[found]), condition.index_put(index, sharper[found])

    def polar(self) -> tuple[Tensor, Tensor]:
        """log|λ| from ½ log1p(2Δ Re a/|1 − ½Δa|²), exact for slow decays, and arg λ from the two factors."""
        return self.conditioned()[:2]

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor]:
        values, condition = self._continuous_eigenvalues()
        half = values * (0.5 * self.log_step.exp()).unsqueeze(-1)
        (above, turn), (below, back) = polar(1 + half), polar(1 - half)
        excess = 4 * half.real / torch.where(half == 1, 1, 1 - half).abs().square()
        slow = excess.abs() < 0.5
        log_modulus = torch.where(slow, 0.5 * torch.where(slow, excess, 0.0).log1p(), above - below)
        log_modulus = self.power * log_modulus + self.log_factor.unsqueeze(-1)
        return log_modulus, self.power * (turn - back), condition.expand_as(log_modulus)

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        return torch.ones(self.poles.shape[-1], dtype=torch.long, device=self.poles.device)

    def mm(self, matrix: Tensor) -> Tensor:
        """By the matrix inversion lemma, once for each power: (I − ½ΔA)⁻¹ (I + ½ΔA) = 2 (I − ½ΔA)⁻¹ − I."""
        matrix = matrix.to(torch.promote_types(self.poles.dtype, matrix.dtype))
        half = 0.5 * self.log_step.exp()[..., None, None]
        scale = 1 / (1 - half * self.poles.unsqueeze(-1))
        right = self.right.mH
        core = torch.eye(right.shape[-2], dtype=scale.dtype, device=scale.device) + half * right @ (scale * self.left)
        for _ in range(self.power):
            solved = scale * matrix
            solved = solved - half * (scale * self.left) @ torch.linalg.solve(core, right @ solved)
            matrix = 2 * solved - matrix
        return matrix * self.log_factor.exp()[..., None, None]

    def adjoint(self) -> DiagonalPlusLowRank:
        tails = self.tails
        if tails is not None:
            poles, left, right = tails.split((1, self.left.shape[-1], self.left.shape[-1]), -2)
            tails = torch.cat((poles.conj(), right, left), -2)
        return replace(self, poles=self.poles.conj(), left=self.right, right=self.left, tails=tails)

    def log_scale(self) -> Tensor:
        """log of the factor: the discretised matrix of a stable system is of order 1, and no eigensolve is needed."""
        return self.log_factor.expand(self.shape[:-2])

    def scaled(self, log_scale: Tensor) -> DiagonalPlusLowRank:
        return replace(self, log_factor=self.log_factor + log_scale)

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        """A power with the eigenvalues' powers where the system does not vary, else dense products."""
        if len(self.shape) >= 4 and self.shape[1] == 1 and width > 0 < stride:
            return replace(self, power=self.power * width, log_factor=self.log_factor * width)
        return dense_window(self, width, stride)

    @classmethod
    def example(cls) -> DiagonalPlusLowRank:
        """Stable and not far from normal, batch (2, 6, 1), n = 3, rank 1, complex, float64."""
        draw = torch.Generator().manual_seed(0)
        poles = torch.randn(2, 6, 1, 3, dtype=torch.complex128, generator=draw)
        left, right = 0.4 * torch.randn(2, 2, 6, 1, 3, 1, dtype=torch.complex128, generator=draw)
        log_step = 0.3 * torch.randn(2, 6, 1, dtype=torch.float64, generator=draw)
        return cls(poles - poles.real.abs() - 1, left, left + 0.3 * right, log_step, torch.zeros_like(log_step))


class _SecularRoots(torch.autograd.Function):
    """Roots of 1 + Σ p_i q_i/(λ − Λ_i), one row a matrix, κ, and which rows have them; rows alike are solved once."""

    @staticmethod
    def forward(
        ctx: Any, poles: Tensor, left: Tensor, right: Tensor, tails: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # (m, n), (m, n), (m, n), (m, n, 3, w), (m, n)
        words = torch.cat((torch.stack((poles, left, right), -1).unsqueeze(-1), tails), -1).to(torch.complex128)
        words[:, :, 2, 1:] = words[:, :, 2, 1:].conj()  # `right` comes conjugated, its tails do not
        keys, rows = torch.unique(torch.view_as_real(words.resolve_conj()), dim=0, return_inverse=True)
        first = torch.stack([(rows == row).nonzero()[0, 0] for row in range(len(keys))])
        starts = start[first].to(torch.complex128).cpu().numpy()
        solved = [
            secular_roots(w[:, 0], w[:, 1], w[:, 2], s) for w, s in zip(words[first].cpu().numpy(), starts, strict=True)
        ]
        found = torch.tensor([roots is not None for roots in solved], device=poles.device)
        values, by_poles, by_weights = (
            _stacked(solved, name, shape, poles)
            for name, shape in (
                ("values", start.shape[1:]),
                ("by_poles", 2 * start.shape[1:]),
                ("by_weights", 2 * start.shape[1:]),
            )
        )
        ctx.save_for_backward(by_poles, by_weights, rows, left, right)
        condition = _condition_of_roots(by_poles[rows], left, right)
        ctx.mark_non_differentiable(condition, found)
        return values[rows].to(poles.dtype), condition, found[rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_poles, by_weights, rows, left, right = ctx.saved_tensors
        wide = cotangent.to(torch.complex128).unsqueeze(-2)
        of_poles = (wide @ by_poles[rows].conj()).squeeze(-2)
        of_weights = (wide @ by_weights[rows].conj()).squeeze(-2)
        gradients = (of_poles, of_weights * right.conj(), of_weights * left.conj())
        return (*(_narrowed(gradient, left) for gradient in gradients), None, None)


def _condition_of_roots(by_poles: Tensor, left: Tensor, right: Tensor) -> Tensor:  # (m, n, n), (m, n), (m, n)
    """κ of v_i = p_i/(λ − Λ_i) and ȳ_i = q_i/(λ − Λ_i): |v_i y_i|/|yᴴv| is |∂λ/∂Λ_i|, which no cancellation has met."""
    ratio = (left.abs() / right.abs()).to(torch.float64).unsqueeze(-1)
    size = by_poles.abs()
    condition = ((size @ ratio) * (size @ (1 / ratio))).sqrt().squeeze(-1)
    return condition.clamp(1, torch.finfo(left.dtype).max).to(left.real.dtype)


def _stacked(solved: list[Any], name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """A field of each row's roots; zeros where a row has none."""
    rows = [np.zeros(shape, np.complex128) if roots is None else getattr(roots, name) for roots in solved]
    return torch.from_numpy(np.stack(rows)).to(like.device)


def _narrowed(gradient: Tensor, like: Tensor) -> Tensor:
    """In the precision of `like`, at most its largest number: derivatives of LegS with 64 states are of order 1e46."""
    if gradient.dtype == like.dtype:
        return gradient
    largest = torch.finfo(like.dtype).max
    clamped: Tensor = torch.view_as_complex(torch.view_as_real(gradient).clamp(-largest, largest))
    return clamped.to(like.dtype)


@torch.no_grad()
def _doubtful(matrix: Tensor, values: Tensor, condition: Tensor) -> Tensor:
    """Which matrices of a batch have an eigenvalue whose error κ·eps·‖A‖ in float64 is above `TRUSTED_ERROR`."""
    wide = matrix.to(torch.complex128)
    if matrix.dtype != wide.dtype:
        values, condition = conditioned_eigenvalues(wide)
    size = torch.linalg.matrix_norm(wide).unsqueeze(-1)
    error = torch.finfo(torch.float64).eps * condition * size
    trusted: Tensor = error <= TRUSTED_ERROR * torch.maximum(values.abs(), SMALLEST_SHARE * size)
    return ~trusted.all(-1)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """S = D⁻¹ A D with |a_i| = |b_i| for A = (diag(w) + a bᵀ)/s, D constant and diagonal: no gradient goes through it.

    The vectors of A are D times the right ones of S and D⁻¹ times the left ones.
    """

    matrix: Tensor  # (*batch, n, n), S
    scaling: Tensor  # (*batch, n), of D
    symmetric: Tensor  # (*batch), bool: a∘b has one sign

    @classmethod
    def of(cls, log_decay: Tensor, left: Tensor, right: Tensor, log_scale: Tensor) -> _Scaled:
        left, right = torch.broadcast_tensors(left, right)
        left, right = left * (-log_scale / 2).exp(), right * (-log_scale / 2).exp()
        tiny = torch.finfo(left.dtype).eps ** 2
        ratio = left.detach().abs().clamp_min(tiny) / right.detach().abs().clamp_min(tiny)
        scaling = ratio.clamp(tiny, 1 / tiny).sqrt()
        left, right = left / scaling, right * scaling
        matrix = torch.diag_embed((log_decay - log_scale).exp()) + left.unsqueeze(-1) * right.unsqueeze(-2)
        check_finite(matrix)
        if matrix.is_complex():
            symmetric = torch.zeros((), dtype=torch.bool, device=matrix.device)
        else:
            product = left.detach() * right.detach()
            symmetric = (product > 0).all(-1) | (product < 0).all(-1)
        return cls(matrix, scaling.expand(matrix.shape[:-1]), symmetric.expand(matrix.shape[:-2]))

    def eigenvalues(self) -> Tensor:
        """Complex ``(*batch, n)``."""
        (values,) = self._solved(lambda s, _: (torch.linalg.eigvalsh(s),), lambda s, _: (eigenvalues(s),))
        return values

    def conditioned(self) -> tuple[Tensor, Tensor]:
        """Complex eigenvalues and κ of A, each ``(*batch, n)``."""
        values, condition = self._solved(_symmetric, _general)
        return values, condition.real

    def _solved(self, symmetric: Solve, general: Solve) -> tuple[Tensor, ...]:
        """What each solve gives of its matrices, put together; complex."""
        if not bool(self.symmetric.any()):
            return general(self.matrix, self.scaling)
        parts = [
            (mask, solve) for mask, solve in ((self.symmetric, symmetric), (~self.symmetric, general)) if mask.any()
        ]
        found = [(mask, solve(self.matrix[mask], self.scaling[mask])) for mask, solve in parts]
        dtype = torch.promote_types(self.matrix.dtype, torch.complex64)
        whole = [torch.zeros(self.matrix.shape[:-1], dtype=dtype, device=self.matrix.device) for _ in found[0][1]]
        for mask, results in found:
            whole = [field.index_put((mask,), part.to(dtype)) for field, part in zip(whole, results, strict=True)]
        return tuple(whole)


def _symmetric(matrix: Tensor, scaling: Tensor) -> tuple[Tensor, Tensor]:  # (m, n, n), (m, n)
    """Eigenvalues of a symmetric S and κ of D S D⁻¹."""
    values, vectors = torch.linalg.eigh(matrix)
    vectors, scaling = vectors.detach(), scaling.unsqueeze(-1)
    return values, capped(shared_norms(vectors * scaling, vectors / scaling, _repeated(matrix, values)))


def _repeated(matrix: Tensor, values: Tensor) -> Tensor:
    """Index of the first of those that rounding cannot tell from each of the ascending eigenvalues of S, ``(m, n)``."""
    values = values.detach()
    limit = RESOLUTION * torch.finfo(values.dtype).eps * torch.linalg.matrix_norm(matrix.detach())
    apart = torch.nn.functional.pad(values.diff(dim=-1) > limit.unsqueeze(-1), (1, 0), value=True)
    index = torch.arange(values.shape[-1], device=values.device)
    return torch.where(apart, index, 0).cummax(-1).values


def _general(matrix: Tensor, scaling: Tensor) -> tuple[Tensor, Tensor]:  # (*batch, n, n), (*batch, n)
    """Eigenvalues of S and κ of D S D⁻¹."""
    by = scaling.unsqueeze(-1)
    return conditioned_by(
        matrix, lambda right, left: (right * by, left / by), lambda values: torch.ones_like(values.real)
    )
