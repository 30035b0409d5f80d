"""Square matrices without structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.eigen.dense import conditioned_eigenvalues, eigenvalues
from specreg.operators.base import StructuredOperator
from specreg.spectrum import polar


@dataclass(frozen=True, eq=False)
class Dense(StructuredOperator):
    """A batch of square matrices without structure, real or complex: a recurrent weight, a Jacobian.

    Eigenvalues and their gradients are those of `specreg.eigen.eigenvalues`: finite for every finite matrix, each
    element of the batch by itself. Where eigenvalues cannot be told apart (a shift, a Jordan block, the identity) each
    gets the gradient of the mean of its cluster.

    Raises `ValueError` for a matrix that is not square and, when eigenvalues are asked for, for an entry that is NaN
    or infinite, with the index of the batch element.
    """

    matrix: Tensor  # (*batch, n, n)

    def __post_init__(self) -> None:
        if self.matrix.dim() < 2 or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise ValueError(f"Dense takes square matrices (*batch, n, n), got shape {tuple(self.matrix.shape)}")

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def dense(self) -> Tensor:
        return self.matrix

    def eigenvalues(self) -> Tensor:
        return eigenvalues(self.matrix)

    def polar(self) -> tuple[Tensor, Tensor]:
        return polar(self.eigenvalues())  # one solve for both

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor]:
        values, condition = conditioned_eigenvalues(self.matrix)
        return (*polar(values), condition)

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        return torch.ones(self.matrix.shape[-1], dtype=torch.long, device=self.matrix.device)

    def mm(self, matrix: Tensor) -> Tensor:
        dtype = torch.promote_types(self.matrix.dtype, matrix.dtype)
        return self.matrix.to(dtype) @ matrix.to(dtype)

    def adjoint(self) -> Dense:
        return Dense(self.matrix.mH)

    def log_scale(self) -> Tensor:
        """log of the largest entry, −inf with gradient 0 for a matrix of zeros; no eigensolve is needed."""
        largest = self.matrix.abs().amax((-1, -2))
        return torch.where(largest > 0, torch.where(largest > 0, largest, 1.0).log(), -torch.inf)

    def scaled(self, log_scale: Tensor) -> Dense:
        return Dense(self.matrix * log_scale.exp()[..., None, None])

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        """The products with their magnitudes apart as logs, which a power of 1e30 needs."""
        from specreg.operators.chain import dense_window  # a chain is made of matrices

        return dense_window(self, width, stride)

    @classmethod
    def example(cls) -> Dense:
        """Real matrices with real and complex eigenvalues, batch (2, 7, 3), n = 4, float64."""
        return cls(torch.randn(2, 7, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
