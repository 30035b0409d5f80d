"""Arnoldi with Krylov–Schur restarts on A and on Aᴴ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from specreg.estimators.base import Estimator, as_operator, number_type, own_stream
from specreg.estimators.certificate import (
    DenseInstead,
    certified,
    check_adjoint,
    images,
    paired,
    quotients,
    warn_of_torn_pairs,
)
from specreg.estimators.dense_ends import dense_ends
from specreg.estimators.search import Aim, Found, Search, answer, check_finite
from specreg.estimators.subspace import General, Projection, Which, end_of, random_vector
from specreg.operators import LinearOperator, StructuredOperator
from specreg.spectrum import Extremes
from specreg.system import LinearSystem

STIR = 5e-4  # random part of a warm start, so that a newcomer is seen
SMALLEST = 64  # a structured operator up to this size is solved densely without a try
DENSE_MATVECS = 1.0  # products, in units of n, that take as long as a dense solve of size n


@dataclass(frozen=True)
class Krylov(Estimator[Extremes]):
    """What `Arnoldi` and `Lanczos` are asked for; raises `ValueError` for a request that has no answer."""

    num_eigenvalues: int = 1
    which: Which = "largest_modulus"
    tolerance: float | None = None  # of the residuals, relative to the largest modulus; None: √eps of the type
    max_matvecs: int = 2000  # products, of both sides together
    krylov_dim: int | None = None  # vectors in a basis before a restart; None: 64, or 4 for each eigenvalue
    copy_risk: float = 1e-5  # allowed chance of missing an eigenvalue's copy or close twin; 1: take all for simple

    gives: ClassVar[type] = Extremes
    projection: ClassVar[type[Projection]]
    keep_products: ClassVar[bool] = False

    def __post_init__(self) -> None:
        end_of(self.which)
        for name, value, least in (
            ("num_eigenvalues", self.num_eigenvalues, 1),
            ("max_matvecs", self.max_matvecs, 1),
            ("krylov_dim", self.krylov_dim or self._dim(), self.num_eigenvalues + 3),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: allowed are integers from {least} on")
        if not 0 < self.copy_risk <= 1:
            raise ValueError(f"copy_risk={self.copy_risk}: allowed are probabilities in (0, 1]")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}: allowed are values in (0, 1), relative to the radius")

    def _dim(self) -> int:
        return self.krylov_dim or max(64, 4 * self.num_eigenvalues)

    def aim(self, size: int, dtype: torch.dtype, max_matvecs: int) -> Aim:
        """The request for an operator of this size and type."""
        if self.num_eigenvalues > size:
            raise ValueError(
                f"num_eigenvalues={self.num_eigenvalues} of an operator of size {size}: {size} is the most"
            )
        return Aim(
            count=self.num_eigenvalues,
            end=end_of(self.which),
            tolerance=reachable(self.tolerance, dtype),
            capacity=self._dim(),
            max_matvecs=max_matvecs,
            risk=self.copy_risk,
            projection=self.projection,
            keep_products=self.keep_products,
        )


def reachable(tolerance: float | None, dtype: torch.dtype) -> float:
    """The tolerance, √eps by default; `ValueError` for one that products in this type cannot meet."""
    eps = torch.finfo(dtype).eps
    if tolerance is not None and tolerance < 10 * eps:
        raise ValueError(
            f"tolerance={tolerance:.2g} is out of reach in {dtype}: give {10 * eps:.2g} or more, or a wider type"
        )
    return tolerance or eps**0.5


@dataclass(frozen=True)
class Arnoldi(Krylov):
    """The most extreme eigenvalues of any operator, from products with A and with Aᴴ, with a gradient of O(n) memory.

    Krylov–Schur restarts (Stewart 2001, SIAM J. Matrix Anal. Appl. 23) on both sides; the value is yᴴAx/(yᴴx) and its
    derivative yᴴ(dA)x/(yᴴx), by one reverse pass through one product, once. `converged` means that right and left
    residuals, recomputed, are within `tolerance`, that both sides found the same set, and that no other Ritz value can
    be as extreme, |θ| + r ≥ |λ_k|. Where further copies of a multiple eigenvalue would change the answer, a second
    random vector looks for them. What is not certain is returned with an `Uncertified` warning.

    ``arnoldi(source, generator, start)``: an operator, or a system, whose steps are a batch, masked ones left out;
    `start` is an earlier result for a nearby one. A structured operator without a gap goes to a dense solve, with a
    `DenseInstead` warning; up to n = 64 it does so silently. A `TornPair` warning says so if the k-th value is one of
    two conjugates. Batch elements are searched in step. Raises `ValueError` for products that are not finite, with the
    index of the batch element, for more eigenvalues than n, and for a tolerance below what the type can hold.
    """

    projection: ClassVar[type[Projection]] = General

    def __call__(
        self,
        source: LinearSystem | LinearOperator,
        generator: torch.Generator | None = None,
        start: Extremes | None = None,
    ) -> Extremes:
        operator = as_operator(source, "Arnoldi")
        dtype, device = number_type(operator)
        aim = self.aim(operator.shape[-1], dtype, max(self.max_matvecs // 2, 1))
        draw = own_stream(generator)
        with torch.no_grad():
            right, left = _both_sides(operator, aim, dtype, device, start, draw)
        return extremes(operator, right, left, aim, dtype)


def _both_sides(
    operator: LinearOperator,
    aim: Aim,
    dtype: torch.dtype,
    device: torch.device,
    start: Extremes | None,
    generator: torch.Generator,
) -> tuple[list[Found], list[Found]]:
    """Ritz pairs of A and of Aᴴ, one of each for each batch element."""
    size = operator.shape[-1]
    structured = operator if isinstance(operator, StructuredOperator) else None
    if structured is not None and size <= SMALLEST:
        return _dense(structured, aim)
    aim = replace(aim, dense_matvecs=float("inf") if structured is None else DENSE_MATVECS * size)
    batch = operator.shape[:-2]
    firsts, share = first_vectors(batch, size, dtype, device, generator, None if start is None else start.right)
    right = answer(operator, [Search(aim, first, share, generator) for first in firsts])
    if structured is not None and any(one.slow for one in right):
        warnings.warn(
            f"no gap after {max(one.matvecs for one in right)} products with an operator of size {size}: a dense solve "
            "is faster and replaces the iterations",
            DenseInstead,
            stacklevel=3,
        )
        return _dense(structured, aim, right)
    aim = replace(aim, end=aim.end.mirrored(), dense_matvecs=float("inf"))
    # not from the right vectors, near as they may be: what one side misses, the other shall find independently
    firsts, share = first_vectors(batch, size, dtype, device, generator, None if start is None else start.left)
    left = answer(operator.adjoint(), [Search(aim, first, share, generator) for first in firsts])
    return right, left


def first_vectors(
    batch: torch.Size,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    known: Tensor | None,  # (*batch, n, k)
) -> tuple[list[Tensor], float]:
    """One vector for each batch element: random, or the sum of known ones and `STIR` times a random one.

    Also the share of it that is random; raises `ValueError` for a start of another shape.
    """
    count = int(np.prod(batch))
    like = torch.empty(0, dtype=dtype, device=device)
    drawn = [random_vector(size, like, generator) for _ in range(count)]
    if known is None:
        return drawn, 1.0
    if known.shape[:-1] != (*batch, size):
        raise ValueError(
            f"start has vectors (*batch, n, k) of shape {tuple(known.shape)}, the operator needs {(*batch, size, 'k')}"
            ": give a result for an operator of its shape"
        )
    sums = known.sum(-1).reshape(count, size)
    sums = (sums if dtype.is_complex else sums.real).to(device, dtype)
    sums = sums / torch.linalg.vector_norm(sums, dim=-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    return [one + STIR * other for one, other in zip(sums, drawn, strict=True)], STIR


def _dense(operator: StructuredOperator, aim: Aim, tried: Sequence[Found] = ()) -> tuple[list[Found], list[Found]]:
    matrices = operator.dense().flatten(0, -3) if len(operator.shape) > 2 else operator.dense().unsqueeze(0)
    for index, matrix in enumerate(matrices):
        check_finite(matrix, index, operator.shape[:-2])
    right, left = dense_ends(matrices, aim.end, aim.count)
    spent = max((one.matvecs for one in tried), default=0)
    return [replace(one, matvecs=spent) for one in right], left


def stacked(found: Sequence[Found], batch: torch.Size) -> Tensor:
    """The vectors of all batch elements, (*batch, n, k)."""
    vectors = torch.stack([one.vectors for one in found])
    return vectors.view(*batch, *vectors.shape[1:])


def extremes(
    operator: LinearOperator, right: Sequence[Found], left: Sequence[Found], aim: Aim, dtype: torch.dtype
) -> Extremes:
    """Values with their gradient, certificates and warnings."""
    batch, real = operator.shape[:-2], not dtype.is_complex
    for one, other in zip(right, left, strict=True):
        check_adjoint(one, other, aim.tolerance)
    pairs = [paired(one, other, aim.tolerance) for one, other in zip(right, left, strict=True)]
    rights = stacked(right, batch)
    lefts = torch.stack([vectors for vectors, _ in pairs]).view_as(rights)
    right_images, used = images(operator, rights, real)
    with torch.no_grad():
        left_images, used_left = images(operator.adjoint(), lefts, real)
    # 0 of a zero operator is exact; squares of values beyond 1e±19 leave the range of float32
    radius = per_element([one.radius or 1.0 for one in right], rights).view(batch)
    relative = right_images.detach() / radius[..., None, None]
    relative_left = left_images / radius[..., None, None]
    values, together = quotients(right_images, rights, lefts)
    warn_of_torn_pairs(right)
    searched = max(one.matvecs + other.matvecs for one, other in zip(right, left, strict=True))
    return certified(
        values,
        rights,
        lefts,
        relative,
        relative_left,
        radius=radius,
        assured=per_element([sure for _, sure in pairs], rights).view(*batch, -1).bool() & together,
        tolerance=aim.tolerance,
        num_matvecs=searched + used + used_left,
    )


def per_element(values: Sequence[object], like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(values)).to(like.device, like.real.dtype)
