"""Lanczos with thick restarts and full reorthogonalisation, for operators that are their own adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specreg.estimators.base import number_type, own_stream
from specreg.estimators.certificate import certified, quotients
from specreg.estimators.krylov import Krylov, first_vectors, per_element, stacked
from specreg.estimators.search import Found, Search, answer
from specreg.estimators.subspace import Projection, Symmetric
from specreg.operators import LinearOperator
from specreg.operators.matrix_free import SelfAdjoint
from specreg.spectrum import Extremes
from specreg.system import LinearSystem


@dataclass(frozen=True)
class Lanczos(Krylov):
    """The most extreme eigenvalues of a symmetric or Hermitian operator, real, each once for each time it occurs.

    Thick restarts (Wu, Simon 2000, SIAM J. Matrix Anal. Appl. 22) with full reorthogonalisation, so that no value is
    returned twice that occurs once. The gradient is xᴴ(dA)x, by one reverse pass through one product, once. `converged`
    means that the residual, recomputed from the products that built the basis, is within `tolerance`, and that no other
    Ritz value can be as extreme. There is one search, not two as in `Arnoldi`: for several values a second random
    vector counts what may have been missed beyond the last of them, copies and simple ones alike; one value alone is
    iterated on until a simple one 1000 tolerances away has been seen, both up to `copy_risk`.

    ``lanczos(operator, generator, start)``: takes a `SelfAdjoint` operator, such as `Hessian`, and raises `TypeError`
    for any other; `ValueError` as `Arnoldi` does, for ``which="largest_imaginary"``, and for an operator whose products
    turn out not to be symmetric.
    """

    projection: ClassVar[type[Projection]] = Symmetric
    keep_products: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.which == "largest_imaginary":
            raise ValueError(
                "which='largest_imaginary': the eigenvalues that Lanczos finds are real; allowed are the others"
            )

    def __call__(
        self,
        source: LinearSystem | LinearOperator,
        generator: torch.Generator | None = None,
        start: Extremes | None = None,
    ) -> Extremes:
        if not isinstance(source, SelfAdjoint):
            raise TypeError(
                f"Lanczos takes a SelfAdjoint operator, got {type(source).__name__}: use Arnoldi, or "
                "SelfAdjointMatrixFree(lambda v: matrix @ v, size) if it is symmetric"
            )
        dtype, device = number_type(source)
        aim = self.aim(source.shape[-1], dtype, self.max_matvecs)
        draw = own_stream(generator)
        batch = source.shape[:-2]
        with torch.no_grad():
            known = None if start is None else start.right
            firsts, share = first_vectors(batch, source.shape[-1], dtype, device, draw, known)
            found = answer(source, [Search(aim, first, share, draw) for first in firsts])
        return _extremes(source, found, aim.tolerance)


def _extremes(operator: SelfAdjoint, found: Sequence[Found], tolerance: float) -> Extremes:
    batch, dtype = operator.shape[:-2], operator.dtype
    vectors = _of_type(stacked(found, batch), dtype)
    images = _of_type(torch.stack([one.products for one in found if one.products is not None]), dtype).view_as(vectors)
    fresh, used = _differentiable_images(operator, vectors)
    images = images if fresh is None else fresh
    radius = per_element([one.radius or 1.0 for one in found], vectors).view(batch)
    relative = images.detach() / radius[..., None, None]
    orthogonal = [one.clear & (one.orthogonality <= 1e-3 * tolerance**0.5) for one in found]
    return certified(
        quotients(images, vectors, vectors)[0].real,
        vectors,
        vectors,
        relative,
        relative,
        radius=radius,
        assured=per_element(orthogonal, vectors).view(*batch, -1).bool(),
        tolerance=tolerance,
        num_matvecs=max(one.matvecs for one in found) + used,
    )


def _of_type(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return vectors if dtype.is_complex else vectors.real


def _differentiable_images(operator: SelfAdjoint, vectors: Tensor) -> tuple[Tensor | None, int]:
    """A times the vectors (*batch, n, k) with a graph, or None if nothing asks for a gradient; and the products."""
    if not torch.is_grad_enabled():
        return None, 0
    first = operator.mv(vectors[..., 0])
    if not first.requires_grad:
        return None, 1
    others = [operator.mv(vector) for vector in vectors[..., 1:].unbind(-1)]
    return torch.stack([first, *others], -1), vectors.shape[-1]
