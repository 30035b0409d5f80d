"""The most extreme eigenvalues of dense matrices: all values without vectors, then inverse iteration for the wanted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specreg.eigen.pairs import eigvals
from specreg.estimators.search import Found
from specreg.estimators.subspace import Array, End, random_vector

SHIFT = 8.0  # eps of the radius by which inverse iteration stands off the eigenvalue
STEPS = 2


def dense_ends(matrices: Tensor, end: End, count: int, generator: torch.Generator) -> tuple[list[Found], list[Found]]:
    """Right and left pairs of finite matrices (b, n, n), one of each for each matrix."""
    spectra = eigvals(matrices).to(torch.complex128).cpu().numpy()
    pairs = [_ends(matrix, values, end, count, generator) for matrix, values in zip(matrices, spectra, strict=True)]
    return [right for right, _ in pairs], [left for _, left in pairs]


def _ends(matrix: Tensor, values: Array, end: End, count: int, generator: torch.Generator) -> tuple[Found, Found]:
    values = values[end.order(values)]
    wanted, radius = values[:count], float(np.abs(values).max())
    near = 100 * torch.finfo(matrix.dtype).eps * radius
    right: list[Tensor] = []
    left: list[Tensor] = []
    for index, value in enumerate(wanted):
        if index and not matrix.is_complex() and value.imag and value == wanted[index - 1].conjugate():
            right.append(right[-1].conj())
            left.append(left[-1].conj())
            continue
        copies = [other for other in range(index) if abs(wanted[other] - value) <= near]
        found = _inverse_iterations(matrix, value, radius, [(right[o], left[o]) for o in copies], generator)
        right.append(found[0])
        left.append(found[1])
    partner = values[count] if count < len(values) else None
    torn = not matrix.is_complex() and wanted[-1].imag != 0 and partner == wanted[-1].conjugate()
    split = bool(torn and end.score(np.array([partner]))[0] >= end.score(wanted)[-1])
    return _found(wanted, right, values, split), _found(wanted.conj(), left, values.conj(), split)


def _shifted(matrix: Tensor, value: complex, radius: float) -> tuple[Tensor, Tensor]:
    """The LU factors of A − λI, the shift a little off the eigenvalue, in real arithmetic where both are real."""
    eps = torch.finfo(matrix.dtype).eps
    shift = value + SHIFT * eps * (radius or 1.0)
    if value.imag and not matrix.is_complex():
        matrix = matrix.to(torch.complex64 if matrix.dtype == torch.float32 else torch.complex128)
    shifted = matrix.clone()
    shifted.diagonal().sub_(shift if matrix.is_complex() else shift.real)
    factors, pivots = torch.linalg.lu_factor(shifted)
    smallest = eps * eps * (radius or 1.0)  # a triangular matrix has its eigenvalues as pivots
    diagonal = factors.diagonal()
    diagonal.copy_(torch.where(diagonal == 0, smallest, diagonal))
    return factors, pivots


def _inverse_iterations(
    matrix: Tensor, value: complex, radius: float, copies: list[tuple[Tensor, Tensor]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A right and a left vector of an eigenvalue, beside those that are known; singular vectors where LU overflows."""
    factors = _shifted(matrix, value, radius)
    right = _inverse_iteration(factors, [other for other, _ in copies], False, generator)
    left = _inverse_iteration(factors, [other for _, other in copies], True, generator)
    if bool(torch.isfinite(torch.view_as_real(right + left)).all()):
        return right, left
    shifted = matrix.to(right.dtype).clone()  # a long Jordan block: the inverse is beyond the number range
    shifted.diagonal().sub_(value)
    outer, _, inner = torch.linalg.svd(shifted)
    place = -1 - len(copies)
    return inner[place].conj(), outer[:, place]


def _inverse_iteration(
    factors: tuple[Tensor, Tensor], copies: list[Tensor], adjoint: bool, generator: torch.Generator
) -> Tensor:
    """A unit eigenvector, complex, orthogonal to those found for copies of the eigenvalue."""
    vector = random_vector(len(factors[0]), factors[0], generator)
    for _ in range(STEPS):
        vector = torch.linalg.lu_solve(*factors, vector.unsqueeze(-1), adjoint=adjoint).squeeze(-1)
        vector = vector / vector.abs().max()  # its norm may overflow
        for other in copies:
            basis = other if vector.is_complex() else other.real
            vector = vector - basis * torch.vdot(basis, vector)
        vector = vector / torch.linalg.vector_norm(vector)
    return vector if vector.is_complex() else torch.complex(vector, torch.zeros_like(vector))


def _found(values: Array, vectors: list[Tensor], spectrum: Array, split: bool) -> Found:
    return Found(
        values=values,
        vectors=torch.stack(vectors, -1),
        products=None,
        radius=float(np.abs(spectrum).max()),
        clear=np.ones(len(values), dtype=bool),
        spectrum=spectrum,
        orthogonality=0.0,
        matvecs=0,
        split=split,
    )
