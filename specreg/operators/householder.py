"""Householder-like transitions of the delta rule: decayed identities with one or several rank-one corrections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specreg.eigen.dense import conditioned_eigenvalues, eigenvalues
from specreg.operators.base import StructuredOperator, check_window, expanded, windowed_sign, windowed_sum
from specreg.operators.chain import dense_window
from specreg.operators.solved import conditioned_by
from specreg.spectrum import polar

ROUNDING = 64.0  # 1 − μ below this · eps of the largest is 0: an eigenvalue that the factors leave alone


@dataclass(frozen=True, eq=False)
class RankOneUpdate(StructuredOperator):
    """±exp(a) (I − β k kᴴ), the transition of DeltaNet and Gated DeltaNet.

    Eigenvalues ±exp(a), n − 1 times, and ±exp(a)(1 − β‖k‖²): log-modulus −inf with gradient 0 where β‖k‖² is 1.
    Yang et al. 2024, arXiv 2406.06484 and 2412.06464; negative eigenvalues (β up to 2): Grazzi et al. 2024, 2411.12537.
    """

    log_factor: Tensor  # (*batch), log of the modulus of the decay
    beta: Tensor  # (*batch), strength of the write
    key: Tensor  # (*batch, n)
    sign: Tensor | None = None  # (*batch), ±1, of the decay; None: positive

    normal: ClassVar[bool] = True

    @property
    def shape(self) -> torch.Size:
        return self.product().shape

    def product(self) -> HouseholderProduct:
        """The same as a product of one factor."""
        return HouseholderProduct(self.log_factor, self.beta.unsqueeze(-1), self.key.unsqueeze(-2), sign=self.sign)

    def dense(self) -> Tensor:
        return self.product().dense()

    def polar(self) -> tuple[Tensor, Tensor]:
        return self.product().polar()

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        return self.product().multiplicity()

    def mm(self, matrix: Tensor) -> Tensor:
        return self.product().mm(matrix)

    def adjoint(self) -> RankOneUpdate:
        return self

    def log_scale(self) -> Tensor:
        """log of the norm: max(1, |1 − β‖k‖²|) times the decay."""
        return self.product().log_scale()

    def scaled(self, log_scale: Tensor) -> RankOneUpdate:
        log_factor = self.log_factor + log_scale
        return replace(self, log_factor=log_factor, sign=expanded(self.sign, log_factor))

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        return self.product().window(width, stride)

    @classmethod
    def example(cls) -> RankOneUpdate:
        """Decays of both signs, β‖k‖² on both sides of 1, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_factor, beta = torch.randn(2, 2, 7, 3, dtype=torch.float64, generator=draw)
        key = torch.randn(2, 7, 3, 4, dtype=torch.float64, generator=draw)
        sign = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw).sign()
        return cls(log_factor, beta.sigmoid(), key, sign=sign)


@dataclass(frozen=True, eq=False)
class HouseholderProduct(StructuredOperator):
    """±exp(a) (I − β_m k_m k_mᴴ) … (I − β_1 k_1 k_1ᴴ): the last factor is applied last, the transition of DeltaProduct.

    With the rows k_j of K, L = strictly lower part of G = K̄ Kᵀ and B = diag(β), the product is I − Kᵀ (I + BL)⁻¹ B K̄
    (compact WY form; Bischof & Van Loan 1987). Its eigenvalues are 1, n − m times, and the m of I − (I + BL)⁻¹ B G; for
    m ≥ n they are those of the n×n product. An eigenvalue of 0 has log-modulus −inf with gradient 0.
    Siems et al. 2025, arXiv 2502.10297.
    """

    log_factor: Tensor  # (*batch), log of the modulus of the decay
    beta: Tensor  # (*batch, m)
    keys: Tensor  # (*batch, m, n)
    sign: Tensor | None = None  # (*batch), ±1, of the decay; None: positive

    @property
    def shape(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.log_factor.shape, self.beta.shape[:-1], self.keys.shape[:-2])
        return torch.Size((*batch, self.keys.shape[-1], self.keys.shape[-1]))

    def dense(self) -> Tensor:
        return self._factor()[..., None, None] * self._unscaled()

    def polar(self) -> tuple[Tensor, Tensor]:
        return self._outer_polar(*self._inner_polar())

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor]:
        """κ is 1 for what the factors leave alone and for a single factor, for others that of the whole product."""
        factors, size = self.keys.shape[-2:]
        if factors == 1:
            log_modulus, phase = self.polar()
            return log_modulus, phase, torch.ones_like(log_modulus.detach())
        if factors >= size:
            values, condition = conditioned_eigenvalues(self._unscaled())
        else:
            values, condition = conditioned_by(self._reduced(), self._vectors, _overlap)
            condition = torch.nn.functional.pad(condition, (1, 0), value=1.0)
        log_modulus, phase = self._outer_polar(*polar(values))
        return log_modulus, phase, condition.expand_as(log_modulus)

    def _outer_polar(self, log_modulus: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """With the eigenvalue that the factors leave alone, and the decay."""
        if self.keys.shape[-2] < self.keys.shape[-1]:
            one = torch.zeros_like(log_modulus[..., :1])
            log_modulus, phase = torch.cat((one, log_modulus), -1), torch.cat((one, phase), -1)
        if self.sign is not None:
            turned = torch.where(phase > 0, phase - torch.pi, phase + torch.pi)
            phase = torch.where(self.sign.unsqueeze(-1) < 0, turned, phase)
        log_modulus = log_modulus + self.log_factor.unsqueeze(-1)
        return log_modulus, phase.expand_as(log_modulus)

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        factors, size = self.keys.shape[-2:]
        counts = [1] * size if factors >= size else [size - factors] + [1] * factors
        return torch.tensor(counts, device=self.keys.device)

    def mm(self, matrix: Tensor) -> Tensor:
        return self._factor()[..., None, None] * self._reflected(matrix)

    def adjoint(self) -> HouseholderProduct:
        return replace(self, beta=self.beta.flip(-1), keys=self.keys.flip(-2))

    def log_scale(self) -> Tensor:
        """log of a bound of the norm: the decay times Π max(1, |1 − β_j‖k_j‖²|)."""
        growth = (1 - self.beta * _squared_norm(self.keys)).abs().clamp_min(1).log().sum(-1)
        return self.log_factor + growth

    def scaled(self, log_scale: Tensor) -> HouseholderProduct:
        log_factor = self.log_factor + log_scale
        return replace(self, log_factor=log_factor, sign=expanded(self.sign, log_factor))

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        """The products as one with width · m factors, on a view of the keys; dense where those are more than n.

        Dense ones are built from pieces of n factors each.
        """
        check_window(self.shape, width, stride)
        factors, size = self.keys.shape[-2:]
        piece = max(1, size // factors)
        if width <= piece:
            return self._joined(width, stride)
        return dense_window(self, width, stride, piece=piece)

    @classmethod
    def example(cls) -> HouseholderProduct:
        """Products of two, decays of both signs, batch (2, 7, 3), n = 5, float64."""
        draw = torch.Generator().manual_seed(0)
        log_factor = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw)
        beta = torch.randn(2, 7, 3, 2, dtype=torch.float64, generator=draw).sigmoid()
        keys = torch.randn(2, 7, 3, 2, 5, dtype=torch.float64, generator=draw)
        sign = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw).sign()
        return cls(log_factor, beta, keys, sign=sign)

    def _joined(self, width: int, stride: int) -> HouseholderProduct:
        """`width` steps in a row as one product; a constant one is repeated."""
        *batch, size, _ = self.shape
        if batch[1] == 1:
            logs, beta = self.log_factor * width, self.beta.repeat(*[1] * len(batch), width)
            sign = None if self.sign is None else self.sign**width
            return HouseholderProduct(logs, beta, self.keys.repeat(*[1] * len(batch), width, 1), sign=sign)
        factors = self.keys.shape[-2]
        logs = windowed_sum(self.log_factor.expand(batch), width, stride)
        sign = None if self.sign is None else windowed_sign(self.sign.expand(batch), width, stride)
        beta = self.beta.expand(*batch, factors).unfold(1, width, stride).movedim(-1, -2).flatten(-2)
        keys = self.keys.expand(*batch, factors, size).unfold(1, width, stride).movedim(-1, -3).flatten(-3, -2)
        return HouseholderProduct(logs, beta, keys, sign=sign)

    def _inner_polar(self) -> tuple[Tensor, Tensor]:
        """log-modulus and phase of the eigenvalues that the factors change, with the decay left out."""
        factors, size = self.keys.shape[-2:]
        if factors == 1:
            return _polar_of_complement((self.beta * _squared_norm(self.keys)).expand(*self.shape[:-2], 1))
        if factors >= size:
            return polar(eigenvalues(self._unscaled()))
        return polar(eigenvalues(self._reduced()))

    def _reduced(self) -> Tensor:
        """I − (I + BL)⁻¹ B G, ``(*batch, m, m)``."""
        gram, identity = self._gram(), torch.eye(self.keys.shape[-2], dtype=self.keys.dtype, device=self.keys.device)
        return identity - solve_reflections(gram, self.beta, gram)

    def _vectors(self, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """v = Kᵀu and y = Kᵀ Tᴴ z, T = (I + BL)⁻¹ B: yᴴv = zᴴ T G u = 1 − μ."""
        gram, keys = self._gram().to(right.dtype), self.keys.mT.to(right.dtype)
        inner = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand(gram.shape)
        return keys @ right, keys @ (solve_reflections(gram, self.beta, inner).mH @ left)

    def _reflected(self, matrix: Tensor) -> Tensor:  # (*batch, n, r)
        dtype = torch.promote_types(self.keys.dtype, matrix.dtype)
        keys, matrix = self.keys.to(dtype), matrix.to(dtype)
        return matrix - keys.mT @ solve_reflections(self._gram().to(dtype), self.beta, keys.conj() @ matrix)

    def _gram(self) -> Tensor:
        return self.keys.conj() @ self.keys.mT

    def _unscaled(self) -> Tensor:
        return self._reflected(torch.eye(self.keys.shape[-1], dtype=self.keys.dtype, device=self.keys.device))

    def _factor(self) -> Tensor:
        return self.log_factor.exp() if self.sign is None else self.sign * self.log_factor.exp()


def solve_reflections(gram: Tensor, beta: Tensor, right: Tensor) -> Tensor:  # (*b, m, m), (*b, m), (*b, m, r)
    """(I + BL)⁻¹ B times `right`, with B = diag(β) and L the strictly lower part of the keys' Gram matrix."""
    scale = beta.to(right.dtype).unsqueeze(-1)
    if gram.shape[-1] == 1:
        return scale * right
    solved: Tensor = torch.linalg.solve_triangular(
        (scale * gram).tril(-1), scale * right, upper=False, unitriangular=True
    )
    return solved


def _overlap(values: Tensor) -> Tensor:
    """|1 − μ|, 0 where it is lost in rounding."""
    overlap = (1 - values).abs()
    rounding = ROUNDING * torch.finfo(overlap.dtype).eps * overlap.amax(-1, keepdim=True)
    return torch.where(overlap > rounding, overlap, 0.0)


def _squared_norm(vectors: Tensor) -> Tensor:
    return (vectors.conj() * vectors).real.sum(-1) if vectors.is_complex() else vectors.square().sum(-1)


def _polar_of_complement(share: Tensor) -> tuple[Tensor, Tensor]:
    """log-modulus and phase of 1 − share: near share = 0 without cancellation, at share = 1 without a NaN gradient."""
    small = share < 0.5
    near = torch.log1p(-torch.where(small, share, 0.0))
    rest = 1 - torch.where(small, 2.0, share)
    far = torch.where(rest == 0, -torch.inf, torch.where(rest == 0, 1.0, rest).abs().log())
    return torch.where(small, near, far), (share > 1).to(share) * torch.pi
