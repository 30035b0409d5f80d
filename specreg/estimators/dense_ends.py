"""The most extreme eigenvalues of dense matrices: all values without vectors, then the vectors of the wanted alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specreg.eigen.extremal import vectors_of as chosen_vectors
from specreg.eigen.pairs import eigvals
from specreg.estimators.search import Found
from specreg.estimators.subspace import Array, End


def dense_ends(matrices: Tensor, end: End, count: int) -> tuple[list[Found], list[Found]]:
    """Right and left pairs of finite matrices (b, n, n), one of each for each matrix; the vectors come from the CPU."""
    spectra = eigvals(matrices).cpu()
    pairs = [_ends(matrix, spectrum, end, count) for matrix, spectrum in zip(matrices.cpu(), spectra, strict=True)]
    return [_on(right, matrices.device) for right, _ in pairs], [_on(left, matrices.device) for _, left in pairs]


def _on(found: Found, device: torch.device) -> Found:
    return replace(found, vectors=found.vectors.to(device))


def _ends(matrix: Tensor, spectrum: Tensor, end: End, count: int) -> tuple[Found, Found]:
    values = spectrum.to(torch.complex128).numpy()
    order = end.order(values)
    values = values[order]
    wanted, real = values[:count], not matrix.is_complex()
    near = 100 * torch.finfo(matrix.dtype).eps * float(np.abs(values).max())
    pairs: list[tuple[Tensor, Tensor]] = []
    for index, value in enumerate(wanted):
        if index and real and value.imag and value == wanted[index - 1].conjugate():
            pairs.append((pairs[-1][0].conj(), pairs[-1][1].conj()))
            continue
        copies = np.flatnonzero(np.abs(values - value) <= near)
        found = _one(matrix, spectrum, int(order[index])) if len(copies) == 1 else None
        pairs.append(found or _singular(matrix, spectrum[order[index]], near, int((copies < index).sum())))
    partner = values[count] if count < len(values) else None
    torn = real and wanted[-1].imag != 0 and partner == wanted[-1].conjugate()
    split = bool(torn and end.score(np.array([partner]))[0] >= end.score(wanted)[-1])
    right, left = zip(*pairs, strict=True)
    return _found(wanted, right, values, split), _found(wanted.conj(), left, values.conj(), split)


def _one(matrix: Tensor, spectrum: Tensor, index: int) -> tuple[Tensor, Tensor] | None:
    """Unit right and left vectors of an eigenvalue by inverse iteration, None where they cannot be trusted."""
    right, left, trusted = chosen_vectors(matrix[None], spectrum[None], torch.tensor([[index]]))
    return (right[0], left[0] / torch.linalg.vector_norm(left)) if bool(trusted) else None


def _singular(matrix: Tensor, value: Tensor, near: float, place: int) -> tuple[Tensor, Tensor]:
    """Unit vectors that A − λ and its adjoint make smallest, orthogonal to those at earlier places for copies of λ.

    The first ones again where λ is defective and has no further ones.
    """
    shifted = matrix.to(value.dtype).clone()
    shifted.diagonal().sub_(value)
    outer, sizes, inner = torch.linalg.svd(shifted)
    index = -1 - place if float(sizes[-1 - place]) <= near else -1
    return inner[index].conj(), outer[:, index]


def _found(values: Array, vectors: tuple[Tensor, ...], spectrum: Array, split: bool) -> Found:
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
