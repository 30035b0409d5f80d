"""Eigenvalues that cannot be told apart, and the gradient of their mean.

The single eigenvalues of a cluster have no derivative worth having: near a Jordan block of size m a change of eps moves
them by eps^(1/m). Their mean is smooth, with gradient P_Cᴴ/m, P_C the spectral projector of the cluster. It comes from
the Schur form with the cluster moved to the front and one Sylvester equation (Bai, Demmel and McKenney 1993; Golub and
Van Loan, Matrix Computations, 7.6), never from a basis of eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

from specreg.eigen.inverse_iteration import nearest_pairs
from specreg.eigen.precise import residual

Matrix = NDArray[np.float64] | NDArray[np.complex128]
Complex = NDArray[np.complex128]
Real = NDArray[np.float64]
Index = NDArray[np.int64]

RESOLUTION = 8.0  # eigenvalues within this · eps · ‖B‖_F · κ of one another are one cluster
MOST_CORRECTIONS = 30  # each at least halves the last, mostly it leaves a thousandth
STALLED = 1e-8  # relative change of a vector above which the last correction was none
HARDLY = 1.25  # times the limit of κ·eps, up to which κ may be too large by what its neighbours do to it
ALIKE = 16.0  # the values of one Jordan block, split by rounding, have κ within this of one another
LARGEST_RESOLVED = 128  # rows up to which eigenvalues are told apart in more than double precision
LARGEST_CHUNK = 2**21  # entries of triangular systems solved at once


@dataclass(frozen=True)
class Clustered:
    """The spectrum of one matrix, cluster by cluster; vectors of a real matrix in the real form of `Pairs`."""

    values: Complex  # (n,), of a real matrix conjugates side by side, the one above the real axis first
    right: Matrix  # (n, n), columns: unit eigenvectors, or an orthonormal basis of a cluster's invariant subspace
    left: Matrix  # (n, n), columns y with yᴴ A = λ yᴴ (or a basis of the left subspace), YᴴX = I within each cluster
    condition: Real  # (n,), κ at most 1/eps: ‖P_C‖₂ if semisimple, else of each eigenvalue as if alone
    clusters: Index  # (n,), index of the cluster's first member


@dataclass(frozen=True)
class _Schur:
    matrix: Matrix  # (n, n), B, balanced
    scale: Real  # (n,), A[perm][:, perm] = diag(scale) B diag(scale)⁻¹
    permutation: Index  # (n,)
    triangle: Complex  # (n, n), T with B = Q T Qᴴ
    basis: Complex  # (n, n), Q
    real: tuple[Real, Real] | None  # T and Q of the real Schur form, of a real matrix
    lower: NDArray[np.bool_]  # (n,), the lower ones of pairs of conjugates, each behind the upper one

    @property
    def values(self) -> Complex:
        return np.diagonal(self.triangle)

    def right(self, vectors: Complex) -> Complex:
        """Right vectors of A from those of B."""
        result = np.empty_like(vectors)
        result[self.permutation] = vectors * self.scale[:, None]
        return result

    def left(self, vectors: Complex) -> Complex:
        """Left vectors of A from those of B."""
        result = np.empty_like(vectors)
        result[self.permutation] = vectors / self.scale[:, None]
        return result


def clustered(matrix: Matrix, eps: float) -> Clustered:
    """Eigenvalues, clusters and bases of one finite square matrix with entries of order 1 at most.

    `eps` is the precision of the matrix's own entries, at which eigenvalues are told apart; all is computed in double.
    """
    schur = _schur(matrix)
    if schur is None:
        return _one_cluster(matrix)
    values, lower = schur.values.copy(), schur.lower
    vectors = _triangular_vectors(schur.triangle)
    alone = 1 / np.maximum(np.abs(np.sum(vectors[1].conj() * vectors[0], 0)), eps)
    alone[lower] = alone[np.flatnonzero(lower) - 1]
    norm = float(np.linalg.norm(schur.matrix))
    unit = RESOLUTION * eps * norm
    clusters = joined(values, alone, norm, eps)
    single = _is_single(clusters)
    right, left = (schur.basis @ part for part in vectors)
    condition = _condition(schur.right(right), schur.left(left))
    stalled = _refine(schur, values, right, left, np.flatnonzero(single & ~lower))
    refined = single.copy()
    refined[stalled] = False
    doubtful = _contested(values, clusters, alone, unit) | (single & ~refined)
    if doubtful.any() and len(values) <= LARGEST_RESOLVED:
        found, apart = _told_apart(schur, values, right, left, alone, doubtful & ~lower, unit)
        refined |= found
        clusters = joined(values, alone, norm, eps, apart)
        single = _is_single(clusters)
        _refine(schur, values, right, left, np.flatnonzero(single & ~refined & ~lower))
    for first in np.unique(clusters[~single & ~lower]):
        members = np.flatnonzero(clusters == first)
        right[:, members], left[:, members] = x, y = _subspaces(schur, members)
        if is_semisimple(schur.matrix, x, y, unit):
            condition[members] = projector_norm(schur.right(x), schur.left(y))
    right, left = schur.right(right), schur.left(left)
    _normalise(right, left, single)
    condition[single] = np.linalg.norm(left[:, single], axis=0)
    condition = np.clip(condition, 1, 1 / eps)
    if schur.real is None:
        return Clustered(values, right, left, condition, clusters)
    return _real_form(Clustered(values, right, left, condition, clusters), np.flatnonzero(lower))


def _is_single(clusters: Index) -> NDArray[np.bool_]:
    return np.asarray(np.bincount(clusters, minlength=len(clusters))[clusters] == 1)


def _contested(values: Complex, clusters: Index, condition: Real, unit: float) -> NDArray[np.bool_]:
    """Members of clusters whose κ differ as those of no single Jordan block, or that are hardly near enough to be in.

    An eigenvalue is off by κ·eps‖B‖, and where that reaches a neighbour, so are κ and place of the neighbour: they may
    only look near. A cluster of all, whose κ spread most by themselves, goes by the second rule alone.
    """
    least, most = np.full(len(clusters), np.inf), np.zeros(len(clusters))
    np.minimum.at(least, clusters, condition)
    np.maximum.at(most, clusters, condition)
    unlike = (most > ALIKE * least)[clusters] & (clusters != 0).any()
    return np.asarray((unlike | (unit * condition <= HARDLY * _gaps(values))) & ~_is_single(clusters))


def _gaps(values: Complex) -> Real:
    distance = np.abs(values[:, None] - values[None, :])
    np.fill_diagonal(distance, np.inf)
    return np.asarray(distance.min(1))


def _told_apart(
    schur: _Schur,
    values: Complex,
    right: Complex,
    left: Complex,
    condition: Real,
    doubtful: NDArray[np.bool_],
    unit: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Put the pairs that inverse iteration finds from `doubtful` ones in their place; which these are, and which stand
    further apart than κ times `unit`, which is 8 eps ‖B‖_F, from all values that are where an eigenvalue is.

    Values not further apart than `unit` stay: of a Jordan block in plain sight no more is to be known.
    """
    gap = _gaps(values)
    chosen, result = np.flatnonzero(doubtful & (gap > unit)), np.zeros(len(values), dtype=bool)
    if not len(chosen):
        return result, result
    found = nearest_pairs(schur.matrix, values[chosen], gap[chosen] / 2)  # so far no two can come to the same
    kept = chosen[found.settled]
    right[:, kept], left[:, kept] = found.right[:, found.settled], found.left[:, found.settled]
    values[kept], condition[kept] = found.values[found.settled], np.linalg.norm(left[:, kept], axis=0)
    second = np.flatnonzero(schur.lower)
    values[second], condition[second] = values[second - 1].conj(), condition[second - 1]
    result[kept], lost = True, np.isin(np.arange(len(values)), chosen[~found.settled])
    result[second], lost[second] = result[second - 1], lost[second - 1]
    distance = np.abs(values[:, None] - values[None, :])
    np.fill_diagonal(distance, np.inf)
    distance[:, lost] = np.inf
    return result, result & (unit * condition < distance.min(1))


def _real_form(found: Clustered, second: Index) -> Clustered:
    """Real vectors: Re v, Im v and 2 Re y, 2 Im y of a pair; a cluster that holds its conjugates has real bases.

    `second` are the lower ones of the pairs, each behind its conjugate.
    """
    values, condition, clusters = found.values.copy(), found.condition.copy(), found.clusters
    alone = np.ones(len(values), dtype=bool)
    alone[second], alone[second - 1] = False, False
    values[alone] = values[alone].real
    values[second], condition[second] = values[second - 1].conj(), condition[second - 1]
    phase = np.take_along_axis(found.right, np.abs(found.right).argmax(0)[None], 0)[0]
    phase = np.where(alone, (phase / np.abs(phase)).conj(), 1)  # a real vector, found up to a factor
    right, left = (found.right * phase).real, (found.left * phase).real
    second = second[clusters[second] != clusters[second - 1]]
    right[:, second] = found.right[:, second - 1].imag
    left[:, second - 1], left[:, second] = 2 * left[:, second - 1], 2 * found.left[:, second - 1].imag
    return Clustered(values, right, left, condition, clusters)


def joined(values: Complex, condition: Real, norm: float, eps: float, apart: NDArray[np.bool_] | None = None) -> Index:
    """Cluster of each eigenvalue: those within 8 eps ‖B‖_F min(κ_i, κ_j) of one another, and what these chain together.

    The smaller κ counts: the larger would let one ill-conditioned eigenvalue swallow its well-conditioned neighbours.
    Where values coincide κ cannot be measured; a Jordan block of their number m, rounded, has eps^(1/m − 1)/m.
    What is known to stand `apart` is joined to nothing.
    """
    distance = np.abs(values[:, None] - values[None, :])
    together = (distance <= RESOLUTION * eps * norm).sum(1)
    limit = np.where(together > 1, eps ** (1 / together - 1) / together, np.inf)
    capped = np.where(condition >= 0.01 / eps, np.minimum(condition, limit), condition)
    near = distance <= RESOLUTION * eps * norm * np.maximum(np.minimum(capped[:, None], capped[None, :]), 1)
    if apart is not None:
        near[apart], near[:, apart] = False, False
        np.fill_diagonal(near, True)
    labels = np.arange(len(values))
    while True:
        smallest = np.where(near, labels[None, :], len(values)).min(1)
        if (smallest == labels).all():
            return labels
        labels = smallest


def _schur(matrix: Matrix) -> _Schur | None:
    """Balanced complex Schur form; None if the QR iteration does not converge.

    A real matrix goes through the real form, so that its complex eigenvalues come as exact conjugates.
    """
    n = len(matrix)
    lower = np.zeros(n, dtype=bool)
    if np.iscomplexobj(matrix):
        balanced, low, high, exchanged, _ = lapack.zgebal(matrix, scale=1, permute=1)
        triangle, _, _, basis, _, failed = lapack.zgees(_never, balanced, lwork=64 * n)
        real = None
    else:
        balanced, low, high, exchanged, _ = lapack.dgebal(matrix, scale=1, permute=1)
        triangle, _, _, _, basis, _, failed = lapack.dgees(_never, balanced, lwork=64 * n)
        real = triangle, basis
        lower[1:] = np.diagonal(triangle, -1) != 0
        triangle, basis = _complex_schur(triangle, basis, np.flatnonzero(lower))
    if failed:
        return None
    permutation, scale = _balancing(exchanged, low, high)
    return _Schur(balanced, scale, permutation, triangle, basis, real, lower)


def _complex_schur(triangle: Real, basis: Real, second: Index) -> tuple[Complex, Complex]:
    """The complex form from the real one, whose 2×2 blocks LAPACK leaves as [[a, b], [c, a]] with bc < 0."""
    first = second - 1
    turn = np.eye(len(triangle), dtype=np.complex128)
    above = triangle[first, second]
    imag = np.sqrt(np.abs(above)) * np.sqrt(np.abs(triangle[second, first]))
    length = np.hypot(above, imag)
    turn[first, first], turn[second, first] = above / length, 1j * imag / length
    turn[first, second], turn[second, second] = 1j * imag / length, above / length
    values = np.diagonal(triangle).astype(np.complex128)
    values[first] += 1j * imag
    values[second] -= 1j * imag
    result = np.triu(turn.conj().T @ triangle @ turn, 1)
    np.fill_diagonal(result, values)
    return result, basis @ turn


def _never(*_: complex) -> bool:
    return False


def _balancing(exchanged: Real, low: int, high: int) -> tuple[Index, Real]:
    """The permutation and the powers of two that LAPACK's balancing found, from its record of exchanges."""
    n = len(exchanged)
    scale = np.ones(n)
    scale[low : high + 1] = exchanged[low : high + 1]
    permutation = np.arange(n)
    for position in [*range(n - 1, high, -1), *range(low)]:
        other = int(exchanged[position]) - 1
        permutation[[position, other]] = permutation[[other, position]]
    return permutation, scale


def _triangular_vectors(triangle: Complex) -> tuple[Complex, Complex]:
    """Unit right and left eigenvectors of a triangular matrix, by substitution."""
    _, left, right, _ = lapack.zgeev(triangle)
    return right, left


def _condition(right: Complex, left: Complex) -> Real:
    product = np.abs(np.sum(left.conj() * right, 0))
    size = np.linalg.norm(right, axis=0) * np.linalg.norm(left, axis=0)
    ratio: Real = np.divide(size, product, out=np.full(len(product), np.inf), where=product > 0)
    return ratio


def _normalise(right: Complex, left: Complex, single: NDArray[np.bool_]) -> None:
    """Scale single vectors to ‖x‖ = 1 and yᴴx = 1."""
    right[:, single] /= np.linalg.norm(right[:, single], axis=0)
    left[:, single] /= np.sum(left[:, single] * right[:, single].conj(), 0)


def _subspaces(schur: _Schur, members: Index) -> tuple[Complex, Complex]:
    """Bases X and Y of a cluster's right and left invariant subspaces of B, YᴴX = I.

    With the cluster first in T, T₁₁R − RT₂₂ = T₁₂ gives X = Q₁ and Yᴴ = [I R]Qᴴ.
    """
    n, size = len(schur.triangle), len(members)
    if size == n:
        return np.eye(n, dtype=np.complex128), np.eye(n, dtype=np.complex128)
    chosen = np.zeros(n, dtype=np.int32)
    chosen[members] = 1
    if schur.real is not None and _closed(schur.lower, members):
        triangle, basis = lapack.dtrsen(chosen, *schur.real, job="N")[:2]
        sylvester = lapack.dtrsyl
    else:
        triangle, basis = lapack.ztrsen(chosen, schur.triangle, schur.basis, job="N")[:2]
        sylvester = lapack.ztrsyl
    solution, factor, _ = sylvester(triangle[:size, :size], triangle[size:, size:], triangle[:size, size:], isgn=-1)
    return basis[:, :size], basis[:, :size] + basis[:, size:] @ (solution / factor).conj().T


def is_semisimple(matrix: Matrix, right: Matrix, left: Matrix, unit: float) -> bool:
    """Whether the matrix is a multiple of I on a cluster's subspace, up to perturbations of norm `unit`.

    X orthonormal, YᴴX = I: a perturbation of A by E changes YᴴAX by YᴴEX, at most ‖Y‖₂‖E‖.
    """
    inner = left.conj().T @ matrix @ right
    departure = np.linalg.norm(inner - np.trace(inner) / len(inner) * np.eye(len(inner)))
    return bool(departure <= unit * np.linalg.norm(left, 2))


def projector_norm(right: Matrix, left: Matrix) -> float:
    """‖XYᴴ‖₂, the condition number of a semisimple eigenvalue, whatever the bases (Chatelin 1993, ch. 4)."""
    x, y = (np.asarray(np.linalg.qr(basis, mode="r")) for basis in (right, left))
    return float(np.linalg.norm(x @ y.conj().T, 2))


def _closed(lower: NDArray[np.bool_], members: Index) -> bool:
    """Whether a cluster holds the conjugates of its members."""
    upper = np.append(lower[1:], False)
    return bool(
        np.isin(members[lower[members]] - 1, members).all() and np.isin(members[upper[members]] + 1, members).all()
    )


def _one_cluster(matrix: Matrix) -> Clustered:
    """The whole spectrum as one cluster: its mean tr A/n and gradient I/n need no eigenvalues."""
    n = len(matrix)
    eye: Matrix = np.eye(n, dtype=np.complex128) if np.iscomplexobj(matrix) else np.eye(n)
    mean = np.full(n, np.trace(matrix) / n, dtype=np.complex128)
    return Clustered(mean, eye, eye, np.full(n, 1 / np.finfo(np.float64).eps), np.zeros(n, dtype=np.int64))


def _refine(schur: _Schur, values: Complex, right: Complex, left: Complex, kept: Index) -> Index:
    """Bring the single eigenvalues `kept` and their vectors to working accuracy, in place; which of them it failed for.

    Residuals in twice the precision, corrections by substitution in T − λ_i I with row and column i struck out, which
    leaves the vector's own direction alone. Near neighbours make the system ill-conditioned but not the correction:
    as T itself is off by rounding, each brings a vector nearer by a factor of about gap/(eps ‖B‖ κ), κ the neighbour's.
    """
    if not len(kept):
        return kept
    matrix = torch.from_numpy(schur.matrix).contiguous()
    adjoint = matrix.mH.resolve_conj()
    eps = np.finfo(np.float64).eps
    before, stalled = np.full(len(kept), np.inf), [kept[:0]]
    for _ in range(MOST_CORRECTIONS):
        x, y = _unit(right[:, kept]), left[:, kept]
        y = y / np.sum(y * x.conj(), 0)
        r = residual(matrix, torch.from_numpy(x), torch.from_numpy(values[kept])).numpy()
        s = residual(adjoint, torch.from_numpy(y), torch.from_numpy(values[kept].conj())).numpy()
        shift = np.sum(y.conj() * r, 0)  # what λ is off by has no part in the vectors
        dx, dy = _corrections(schur, values, kept, r - x * shift, s - y * np.sum(x.conj() * s, 0))
        moved = np.maximum(np.linalg.norm(dx, axis=0), np.linalg.norm(dy, axis=0) / np.linalg.norm(y, axis=0))
        better = moved < before / 2
        update = np.where(better, 1.0, 0.0)
        right[:, kept], left[:, kept] = x + update * dx, y + update * dy
        values[kept] += update * shift
        unfinished = better & (moved > eps)
        stalled.append(kept[~(moved <= np.minimum(np.linalg.norm(y, axis=0) * eps, STALLED)) & ~unfinished])
        kept, before = kept[unfinished], moved[unfinished]
        if not len(kept):
            break
    return np.concatenate((*stalled, kept))


def _unit(vectors: Complex) -> Complex:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=0))


def _corrections(schur: _Schur, values: Complex, kept: Index, right: Complex, left: Complex) -> tuple[Complex, Complex]:
    """−(reduced resolvent) times the residuals of the right and the left vectors `kept`."""
    n = len(values)
    rotated = [torch.from_numpy(-(schur.basis.conj().T @ part)) for part in (right, left)]
    triangle, diagonal = torch.from_numpy(schur.triangle), torch.from_numpy(schur.values.copy())
    smallest = np.finfo(np.float64).eps * max(float(np.linalg.norm(schur.matrix)), np.finfo(np.float64).tiny)
    result = [np.empty((n, len(kept)), dtype=np.complex128) for _ in range(2)]
    width = max(1, LARGEST_CHUNK // (n * n))
    for start in range(0, len(kept), width):
        index = torch.from_numpy(kept[start : start + width])
        row = torch.arange(len(index))
        systems = triangle.repeat(len(index), 1, 1)
        shifted = diagonal - diagonal[index, None]
        shifted[shifted.abs() < smallest] = smallest
        systems.diagonal(dim1=-2, dim2=-1).copy_(shifted)
        systems[row, index, :], systems[row, :, index] = 0, 0
        systems[row, index, index] = 1
        for side, upper in ((0, True), (1, False)):
            system = systems if upper else systems.mH.resolve_conj()
            known = rotated[side][:, start : start + width].mT.clone()
            known[row, index] = 0
            solved = torch.linalg.solve_triangular(system, known[..., None], upper=upper)[..., 0]
            result[side][:, start : start + width] = solved.mT.numpy()
    return schur.basis @ result[0], schur.basis @ result[1]
