"""Single eigenpairs of a matrix whose other eigenvalues float64 cannot tell apart, by inverse iteration in 31 digits.

A neighbour with κ_j·eps·‖B‖ near its distance leaves no correct digit in the vectors of an eigenvalue that is itself
well apart, and no correction by float64 factors converges then. Householder's reduction to Hessenberg form is done once
in double-double arithmetic; each shifted system is then solved in O(n²), all shifts at a time (Ipsen 1997, SIAM Review
39; Wilkinson, The Algebraic Eigenvalue Problem, 9.47 ff.; two-sided quotients: Ostrowski 1959).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specreg.eigen.double_double import Array, DoubleDouble, where

Matrix = NDArray[np.float64] | NDArray[np.complex128]
Complex = NDArray[np.complex128]
Real = NDArray[np.float64]

UNIT = 2.0**-104  # rounding of a double-double operation
SETTLED = 1e-14  # change of a vector by the last solve, which leaves much less
TREND = 1e-3  # change of a vector by the last solve, by which it is clear which eigenvalue it goes to
MOST_ITERATIONS = 8
SOLVES = 2  # with each factorisation
LARGEST_CHUNK = 2**19  # entries of shifted matrices held at once


@dataclass(frozen=True)
class Found:
    """What inverse iteration from some shifts came to."""

    values: Complex  # (k,)
    right: Complex  # (n, k), unit
    left: Complex  # (n, k), yᴴx = 1
    settled: NDArray[np.bool_]  # (k,)


def nearest_pairs(matrix: Matrix, shifts: Complex, reach: Real) -> Found:
    """Eigenpairs of ``(n, n)`` from the shifts ``(k,)``, each within its `reach` of where it started."""
    hessenberg, basis = _hessenberg(matrix)
    n, count = len(matrix), len(shifts)
    right, left = (np.zeros((n, count), dtype=np.complex128) for _ in range(2))
    found = Found(shifts.copy(), right, left, np.zeros(count, dtype=bool))
    real = (shifts.imag == 0) & np.isrealobj(matrix)  # then all stays real
    width = max(1, LARGEST_CHUNK // matrix.size)
    for group, starts in ((np.flatnonzero(real), shifts.real), (np.flatnonzero(~real), shifts)):
        for index in np.split(group, range(width, len(group), width)):
            found.values[index], x, y, found.settled[index] = _iterated(hessenberg, starts[index], reach[index])
            # of order n·eps is lost here, nothing beside κ·eps
            right[:, index], left[:, index] = basis @ x.T, basis @ y.T
    return found


def _hessenberg(matrix: Matrix) -> tuple[DoubleDouble, Array]:
    """H and, in float64, Q with matrix = Q H Qᴴ."""
    result, basis = DoubleDouble.of(matrix.copy()), np.eye(len(matrix), dtype=matrix.dtype)
    for column in range(len(matrix) - 2):
        vector = result[column + 1 :, column]
        if not np.abs(vector.high[1:]).any():
            continue
        length = (vector * vector.conj()).real.sum(0).root()
        first = vector.high[0]
        phase = first / abs(first) if first != 0 else first + 1
        # of modulus 1 to 16 digits only, which a reflection along whatever vector does not need
        target = DoubleDouble.of(np.asarray(phase)) * length
        vector = DoubleDouble(vector.high.copy(), vector.low.copy())
        vector[0] = vector[0] + target
        vector = vector / DoubleDouble.of(np.abs(vector.high).max())
        factor = DoubleDouble.of(np.asarray(2.0)) / (vector * vector.conj()).real.sum(0)
        scaled = vector * factor
        rows = result[column + 1 :, column:]
        product = (vector.conj()[:, None] * rows).sum(0)
        result[column + 1 :, column:] = rows - scaled[:, None] * product[None, :]
        columns = result[:, column + 1 :]
        product = (columns * vector[None, :]).sum(1)
        result[:, column + 1 :] = columns - product[:, None] * scaled.conj()[None, :]
        basis[:, column + 1 :] -= np.outer(basis[:, column + 1 :] @ vector.high, scaled.high.conj())
    return result.map(np.triu, -1), basis


def _iterated(hessenberg: DoubleDouble, start: Matrix, reach: Real) -> tuple[Matrix, Matrix, Matrix, NDArray[np.bool_]]:
    """Values, vectors as rows, and which of them settled."""
    count, n = len(start), len(hessenberg.high)
    values, settled = DoubleDouble.of(start.copy()), np.zeros(count, dtype=bool)
    shape = (count, n)
    right, left = (DoubleDouble.of(np.full(shape, n**-0.5, dtype=start.dtype)) for _ in range(2))
    running = np.arange(count)
    for _ in range(MOST_ITERATIONS if count else 0):
        factors = _Factors.of(hessenberg, values[running])
        x, y = right[running], left[running]
        for _ in range(SOLVES):
            before = x.high, y.high
            x, y = _unit(factors.solve(x)), _unit(factors.solve_adjoint(y))
        moved = np.maximum(*(_angle(a, b.high) for a, b in zip(before, (x, y), strict=True)))
        image = (hessenberg.map(np.expand_dims, 0) * x[:, None, :]).sum(2)
        overlap = (y.conj() * x).sum(1)
        quotient = (y.conj() * image).sum(1) / overlap
        right[running], left[running] = x, y
        inside = np.abs(quotient.high - start[running]) <= reach[running]
        values[running] = where(inside, quotient, values[running])
        settled[running] = inside & (moved <= SETTLED)
        strayed = ~inside & (moved <= TREND)
        running = running[~(settled[running] | strayed)]
        if not len(running):
            break
    overlap = (left.conj() * right).sum(1)
    left = left / overlap.conj()[:, None]
    return values.high, right.high, left.high, settled


def _unit(rows: DoubleDouble) -> DoubleDouble:
    rows = rows * DoubleDouble.of(1 / np.abs(rows.high).max(1, keepdims=True))
    return rows / (rows * rows.conj()).real.sum(1).root()[:, None]


def _angle(first: Complex, second: Complex) -> Real:
    """sin of the angle between unit rows."""
    along = np.sum(first.conj() * second, 1, keepdims=True)
    return np.asarray(np.linalg.norm(second - along * first, axis=1))


@dataclass(frozen=True)
class _Factors:
    """PLU of H − μ_k I, Hessenberg, for all k."""

    upper: DoubleDouble  # (k, n, n)
    reciprocals: DoubleDouble  # (n, k), of its diagonal
    multipliers: DoubleDouble  # (n, k), the last unused
    exchanged: NDArray[np.bool_]  # (n − 1, k)

    @staticmethod
    def of(hessenberg: DoubleDouble, shifts: DoubleDouble) -> _Factors:
        n, count = len(hessenberg.high), len(shifts.high)
        matrix = hessenberg.map(lambda part: np.repeat(part[None].astype(shifts.high.dtype), count, 0))
        diagonal = np.arange(n)
        matrix[:, diagonal, diagonal] = matrix[:, diagonal, diagonal] - shifts[:, None]
        smallest = UNIT * float(np.linalg.norm(hessenberg.high))
        multipliers, reciprocals = (DoubleDouble.of(np.zeros((n, count), dtype=shifts.high.dtype)) for _ in range(2))
        one = DoubleDouble.of(np.asarray(1.0))
        exchanged = np.zeros((n - 1, count), dtype=bool)
        for row in range(n - 1):
            above, below = matrix[:, row, row:], matrix[:, row + 1, row:]
            swap = np.abs(below.high[:, 0]) > np.abs(above.high[:, 0])
            above, below = where(swap[:, None], below, above), where(swap[:, None], above, below)
            above = _away_from_zero(above, smallest)
            reciprocals[row] = one / above[:, 0]
            factor = below[:, 0] * reciprocals[row]
            matrix[:, row, row:], exchanged[row], multipliers[row] = above, swap, factor
            matrix[:, row + 1, row:] = below - factor[:, None] * above
        matrix[:, n - 1, n - 1 :] = _away_from_zero(matrix[:, n - 1, n - 1 :], smallest)
        reciprocals[n - 1] = one / matrix[:, n - 1, n - 1]
        return _Factors(matrix, reciprocals, multipliers, exchanged)

    def solve(self, rows: DoubleDouble) -> DoubleDouble:
        """(H − μ_k)⁻¹ of each row."""
        result = rows.map(np.copy)
        for row in range(len(self.exchanged)):
            swap = self.exchanged[row]
            a, b = result[:, row], result[:, row + 1]
            a, b = where(swap, b, a), where(swap, a, b)
            result[:, row], result[:, row + 1] = a, b - self.multipliers[row] * a
        for row in range(result.high.shape[1] - 1, -1, -1):
            entry = result[:, row] * self.reciprocals[row]
            result[:, row] = entry
            if row:
                result[:, :row] = result[:, :row] - self.upper[:, :row, row] * entry[:, None]
        return result

    def solve_adjoint(self, rows: DoubleDouble) -> DoubleDouble:
        """(H − μ_k)⁻ᴴ of each row."""
        result, n = rows.map(np.copy), rows.high.shape[1]
        for row in range(n):
            entry = result[:, row] * self.reciprocals[row].conj()
            result[:, row] = entry
            if row + 1 < n:
                result[:, row + 1 :] = result[:, row + 1 :] - self.upper[:, row, row + 1 :].conj() * entry[:, None]
        for row in range(n - 2, -1, -1):
            swap = self.exchanged[row]
            a, b = result[:, row] - self.multipliers[row].conj() * result[:, row + 1], result[:, row + 1]
            result[:, row], result[:, row + 1] = where(swap, b, a), where(swap, a, b)
        return result


def _away_from_zero(rows: DoubleDouble, smallest: float) -> DoubleDouble:
    """With the first entry of each row replaced where it is 0 up to rounding."""
    rows = rows.map(np.copy)
    tiny = np.abs(rows.high[:, 0]) < smallest
    rows.high[tiny, 0], rows.low[tiny, 0] = smallest, 0
    return rows
