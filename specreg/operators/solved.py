"""Eigenvalues of a smaller or scaled matrix, with κ as the operator that it stands for has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.eigen.clusters import RESOLUTION, is_semisimple, projector_norm
from specreg.eigen.dense import decomposition
from specreg.eigen.linear_part import Constant

Vectors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From right and left vectors u, z ``(*batch, m, m)``, zᴴu = 1, to v and y ``(*batch, n, m)`` of the operator."""

Overlap = Callable[[Tensor], Tensor]
"""From eigenvalues ``(*batch, m)`` to |yᴴv| of those vectors, 0 where it is lost in rounding."""


def conditioned_by(matrix: Tensor, vectors: Vectors, overlap: Overlap) -> tuple[Tensor, Tensor]:
    """Eigenvalues of `matrix` and κ = ‖v‖‖y‖/|yᴴv|, detached, v and y what `vectors` makes of right and left vectors.

    One decomposition for both. Of a semisimple eigenvalue found several times, with bases V and Y, κ is ‖VYᴴ‖₂/|yᴴv|,
    the norm of its spectral projector. Others that cannot be told apart keep the κ of `matrix` itself, since they have
    no vectors of their own; where yᴴv is 0, κ is 1. It is at most 1/eps.
    """
    values, right, left, condition, clusters = decomposition(matrix)
    with torch.no_grad():
        product, known = _Products.apply(matrix, right, left, *vectors(right, left), clusters)  # type: ignore[no-untyped-call]
        size = overlap(values.detach())
        ratio = torch.where(size > 0, product / torch.where(size > 0, size, 1.0), 1.0)
        return values, capped(torch.where(known > 0, ratio, condition))


class _Products(Constant):
    """‖v‖‖y‖, or ‖VYᴴ‖₂ of a semisimple cluster's, and 1 where it is known: 0 for members of other clusters."""

    @staticmethod
    def forward(
        matrix: Tensor, right: Tensor, left: Tensor, v: Tensor, y: Tensor, clusters: Tensor
    ) -> tuple[Tensor, Tensor]:
        product = torch.linalg.vector_norm(v, dim=-2) * torch.linalg.vector_norm(y, dim=-2)
        shared = _shared(clusters)
        known = (~shared).to(product)
        for element in shared.any(-1).nonzero().tolist():
            index = tuple(element)
            for cluster in clusters[index][shared[index]].unique():
                members = clusters[index] == cluster
                if _is_semisimple(matrix[index], right[index][:, members], left[index][:, members]):
                    product[index][members] = projector_norm(_array(v[index][:, members]), _array(y[index][:, members]))
                    known[index][members] = 1
        return product, known


def capped(condition: Tensor) -> Tensor:
    """κ between 1 and 1/eps, which stands for a defective eigenvalue."""
    return condition.detach().clamp(1, 1 / torch.finfo(condition.dtype).eps)


def shared_norms(right: Tensor, left: Tensor, clusters: Tensor) -> Tensor:  # (m, n, n), (m, n, n), (m, n)
    """‖V_C Y_Cᴴ‖₂ of the columns of each one's cluster; clusters are numbered by their first members."""
    result: Tensor = torch.linalg.vector_norm(right, dim=-2) * torch.linalg.vector_norm(left, dim=-2)
    shared = _shared(clusters)
    for first in clusters[shared].unique():
        chosen = (shared & (clusters == first)).any(-1).nonzero()[:, 0]
        members = (clusters[chosen] == first).unsqueeze(-2)
        projector = torch.where(members, right[chosen], 0.0) @ left[chosen].mH
        norm = torch.linalg.matrix_norm(projector, 2).unsqueeze(-1)
        result[chosen] = torch.where(members.squeeze(-2), norm, result[chosen])
    return result


def _shared(clusters: Tensor) -> Tensor:
    """Which eigenvalues are in a cluster with others."""
    return (clusters.unsqueeze(-1) == clusters.unsqueeze(-2)).sum(-1) > 1


def _is_semisimple(matrix: Tensor, right: Tensor, left: Tensor) -> bool:
    """Whether a matrix is a multiple of I on a cluster's subspace, up to its rounding."""
    unit = RESOLUTION * torch.finfo(matrix.dtype).eps * float(torch.linalg.matrix_norm(matrix.detach()))
    basis, triangle = np.linalg.qr(_array(right))
    return is_semisimple(_array(matrix), basis, _array(left) @ triangle.conj().T, unit)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().resolve_conj().cpu().numpy()
