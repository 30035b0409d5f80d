"""Eigenvalues of a smaller or scaled matrix, with κ as the operator that it stands for has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specreg.eigen.dense import decomposition

Lengths = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From eigenvalues ``(*batch, m)`` and vectors ``(*batch, m, m)``, zᴴu = 1, to ‖v‖‖y‖ and |yᴴv|, each (*batch, m)."""


def conditioned_by(matrix: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor]:
    """Eigenvalues of `matrix` and κ = ‖v‖‖y‖/|yᴴv|, detached, v and y what `lengths` makes of right and left vectors.

    One decomposition for both. Eigenvalues that cannot be told apart keep the κ of `matrix` itself, since a cluster has
    no vectors of its own; where yᴴv is 0, κ is 1. It is at most 1/eps.
    """
    values, right, left, condition, clusters = decomposition(matrix)
    with torch.no_grad():
        product, overlap = lengths(values.detach(), right, left)
        ratio = torch.where(overlap > 0, product / torch.where(overlap > 0, overlap, 1.0), 1.0)
        return values, capped(torch.where(_shared(clusters), condition, ratio))


def capped(condition: Tensor) -> Tensor:
    """κ between 1 and 1/eps, which stands for a defective eigenvalue."""
    return condition.detach().clamp(1, 1 / torch.finfo(condition.dtype).eps)


def _shared(clusters: Tensor) -> Tensor:
    """Which eigenvalues are in a cluster with others."""
    return (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)).sum(-1) > 1
