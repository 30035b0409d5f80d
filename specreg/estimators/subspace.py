"""Orthonormal bases that grow by products, and what an operator looks like in them.

Small matrices live on the CPU in double precision whatever the operator's type; vectors stay on its device.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

Which = Literal["largest_modulus", "largest_real", "smallest_real", "largest_imaginary"]
Array = NDArray[Any]
BREAKDOWN = 10.0  # a remainder below this many eps of the product is rounding
SETTLED = 0.03  # residual, relative to the distance from an eigenvalue, of a Ritz vector with next to no part in it
SAMPLES = 129  # points on the line beyond which an eigenvalue must not have been missed


@dataclass(frozen=True)
class End:
    """One end of a spectrum, as a score that grows towards it: |θ|, or Re(rotation·θ)."""

    rotation: complex | None = None  # None: the modulus
    upper: float = 1.0  # of two conjugates with one score the first has an imaginary part of this sign

    def score(self, values: Array) -> Array:
        scores: Array = np.abs(values) if self.rotation is None else (self.rotation * values).real
        return scores

    def order(self, values: Array) -> Array:
        """Indices from the most extreme on."""
        order: Array = np.lexsort((-self.upper * values.imag, -self.score(values)))
        return order

    def mirrored(self) -> End:
        """The same end of the conjugate transpose, whose eigenvalues are the conjugates."""
        return End(None if self.rotation is None else self.rotation.conjugate(), -self.upper)


ENDS = {
    "largest_modulus": End(),
    "largest_real": End(1.0 + 0j),
    "smallest_real": End(-1.0 + 0j),
    "largest_imaginary": End(-1j),
}


def end_of(which: str) -> End:
    """The end that a name stands for; `ValueError` with the nearest name for an unknown one."""
    if which not in ENDS:
        names = get_args(Which)
        nearest = difflib.get_close_matches(str(which), names, 1, 0.0)[0]
        raise ValueError(f"which={which!r}: allowed are {', '.join(names)}; the nearest is {nearest!r}")
    return ENDS[which]


class Projection(ABC):
    """How the small matrix VᴴAV is taken apart."""

    searches: ClassVar[int]  # from vectors drawn independently: what is missed has to escape them all

    @staticmethod
    @abstractmethod
    def check(matrix: Array, tolerance: float) -> None:
        """Raise `ValueError` if the matrix is not of the kind, beyond this much of its largest entry."""

    @staticmethod
    @abstractmethod
    def eigen(matrix: Array) -> tuple[Array, Array]:
        """Eigenvalues (m,), complex, and unit eigenvectors (m, m)."""

    @staticmethod
    @abstractmethod
    def leading(matrix: Array, end: End, count: int) -> Array:
        """An orthonormal basis (m, p) of the invariant subspace of the `count` most extreme eigenvalues.

        p is larger where conjugates would be torn apart.
        """

    @staticmethod
    @abstractmethod
    def boundary(end: End, score: float, radius: float) -> Array:
        """The points with this score, as far as the spectrum of an operator of this radius can reach."""

    @staticmethod
    @abstractmethod
    def hidden(end: End, values: Array, residuals: Array, count: int, score: float, error: float) -> tuple[int, float]:
        """Where to look for an eigenvalue of this score, or up to `error` less, beside those that Ritz values show.

        Of Ritz pairs (m,), the most extreme first, `count` of them wanted: in the complement of how many of the leading
        ones, and from which score on the operator would have an eigenvalue there.
        """


class General(Projection):
    """No symmetry: the Schur form, real where the matrix is real (Stewart 2001, SIAM J. Matrix Anal. Appl. 23)."""

    searches = 2  # for right and for left vectors

    @staticmethod
    def check(matrix: Array, tolerance: float) -> None:
        """Every square matrix will do."""

    @staticmethod
    def eigen(matrix: Array) -> tuple[Array, Array]:
        values, vectors = np.linalg.eig(matrix)
        return values.astype(complex), vectors

    @staticmethod
    def leading(matrix: Array, end: End, count: int) -> Array:
        real = not np.iscomplexobj(matrix)

        def score(value: complex) -> float:
            both = np.array([value, value.conjugate()] if real else [value])
            return float(end.score(both).max())

        scores = sorted((score(value) for value in np.linalg.eigvals(matrix).astype(complex)), reverse=True)
        # a cut between two scores would be hit by rounding: those of the second factorisation differ in the last digits
        cut = scores[count - 1] - 1e-10 * max(map(abs, scores))
        _, basis, kept = scipy.linalg.schur(
            matrix, output="real" if real else "complex", sort=lambda x, y=0.0: score(complex(x) + 1j * y) >= cut
        )
        return np.asarray(basis[:, :kept])

    @staticmethod
    def boundary(end: End, score: float, radius: float) -> Array:
        if end.rotation is None:
            return np.asarray(score * np.exp(2j * np.pi * np.arange(SAMPLES) / SAMPLES))
        return np.asarray((score + 2j * radius * np.linspace(-1, 1, SAMPLES)) / end.rotation)

    @staticmethod
    def hidden(end: End, values: Array, residuals: Array, count: int, score: float, error: float) -> tuple[int, float]:
        """In the complement of the pairs that such an eigenvector has next to no part in.

        It overlaps with a Ritz vector by r/|λ − θ| at most, up to the condition. In the complement its eigenvalue falls
        by r²/|λ − θ| for each, and by r where λ may be next to θ: the order of magnitude, A not being Hermitian. Of
        what is not settled, rounding or a near copy may have made a part a copy already: it stays in.
        """
        gaps = score - end.score(values)
        known = residuals <= SETTLED * gaps
        known[:count] = True
        settled = len(known) if known.all() else int(known.argmin())
        others = slice(count, settled)
        return settled, float(score - residuals[:count].sum() - (residuals[others] ** 2 / gaps[others]).sum())


class Symmetric(Projection):
    """A Hermitian matrix: real eigenvalues, orthonormal eigenvectors."""

    searches = 1

    @staticmethod
    def check(matrix: Array, tolerance: float) -> None:
        skew, largest = float(np.abs(matrix - matrix.conj().T).max()), float(np.abs(matrix).max())
        if skew > tolerance * largest:
            raise ValueError(
                f"the products of a self-adjoint operator are not symmetric, off by {skew / largest:.2g} of "
                "the largest: give a symmetric operator without randomness, or use Arnoldi on one that is not"
            )

    @staticmethod
    def eigen(matrix: Array) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh((matrix + matrix.conj().T) / 2)
        return values.astype(complex), vectors

    @staticmethod
    def leading(matrix: Array, end: End, count: int) -> Array:
        values, vectors = Symmetric.eigen(matrix)
        return np.asarray(vectors[:, end.order(values)[:count]])

    @staticmethod
    def boundary(end: End, score: float, radius: float) -> Array:
        return np.array([score, -score], complex) if end.rotation is None else np.array([score / end.rotation])

    @staticmethod
    def hidden(end: End, values: Array, residuals: Array, count: int, score: float, error: float) -> tuple[int, float]:
        """In the complement of all of them, by counting: no more than that is above σ = score − error.

        A has as many eigenvalues above σ as there are Ritz values, and as the Schur complement
        C + f fᴴ Σ rᵢ²/(σ − θᵢ) has, C the operator in the complement and f the residuals' direction (Haynsworth 1968,
        Linear Algebra and its Applications 1). The last term raises an eigenvalue by its norm at most.
        """
        sigma = score - error
        sides = (1.0, -1.0) if end.rotation is None else (end.rotation.real,)
        with np.errstate(divide="ignore", invalid="ignore"):
            raised = [float((residuals**2 / (sigma - side * values.real)).sum()) for side in sides]
        return len(values), sigma - max(0.0, *raised) if np.isfinite(raised).all() else -np.inf


@dataclass(eq=False)
class Basis:
    """A V_m = V_{m+1} S: orthonormal vectors, and the operator's coefficients in them.

    After a restart the last row of S is full. The first `locked` vectors span a subspace that counts as invariant.
    """

    vectors: Tensor  # (capacity + 1, n), row m is the next to be multiplied
    products: Tensor | None  # (capacity, n), A V, where residuals are to be recomputed without further products
    coefficients: Array  # (capacity + 1, capacity)
    size: int = 0
    locked: int = 0
    complete: bool = False  # the vectors span the whole space
    exponent: int = 0  # products are taken of A·2^−exponent, so that norms stay in the number range

    @classmethod
    def of(cls, first: Tensor, capacity: int, keep_products: bool) -> Basis:
        """An empty basis with a first vector."""
        vectors = first.new_zeros(capacity + 1, len(first))
        vectors[0] = first / torch.linalg.vector_norm(first)
        products = torch.empty_like(vectors[1:]) if keep_products else None
        kind = complex if first.is_complex() else float
        return cls(vectors, products, np.zeros((capacity + 1, capacity), kind))

    @property
    def capacity(self) -> int:
        return int(self.coefficients.shape[1])

    @property
    def next(self) -> Tensor:
        return self.vectors[self.size]

    @property
    def projected(self) -> Array:
        """VᴴAV, (m, m)."""
        return self.coefficients[: self.size, : self.size]

    @property
    def coupling(self) -> Array:
        """The last row of S: the residual of a vector V s is |coupling · s|."""
        return self.coefficients[self.size, : self.size]

    def scaled(self, product: Tensor) -> Tensor:
        """A product divided by the power of two that brought the first one that is not 0 to order 1."""
        if not self.coefficients.any():
            largest = float(product.abs().max())
            self.exponent = math.frexp(largest)[1] if largest > 0 else 0
        # two factors: 2^−exponent alone may overflow
        half = self.exponent // 2
        return product if not self.exponent else product * 2.0**-half * 2.0 ** (half - self.exponent)

    def extend(self, product: Tensor) -> float:
        """Take up A times the next vector; gives the norm of what is new in it, 0 if it is rounding."""
        column = self.size
        if self.products is not None:
            self.products[column] = product
        coefficients, remainder, norm, before = orthogonalised(product, self.vectors[: column + 1])
        self.coefficients[: column + 1, column] = coefficients
        self.size = column + 1
        rounding = BREAKDOWN * torch.finfo(product.dtype).eps * max(before, float(np.abs(self.projected).max()))
        if norm <= rounding or self.size == len(product):
            return 0.0
        self.coefficients[column + 1, column] = norm
        torch.div(remainder, norm, out=self.vectors[column + 1])
        return norm

    def inject(self, generator: torch.Generator) -> None:
        """Go on with a random vector; what is there counts as invariant."""
        self.coefficients[self.size, : self.size] = 0
        self.locked = self.size
        if self.size == self.vectors.shape[1]:
            self.complete = True
            return
        self.vectors[self.size] = random_direction(self.vectors[: self.size], generator)

    def compress(self, basis: Array) -> None:
        """Keep, beside what is locked, the subspace V Q of the orthonormal columns (m − locked, p) of Q."""
        m, lock = self.size, self.locked
        whole = scipy.linalg.block_diag(np.eye(lock), basis) if lock else basis
        p = whole.shape[1]
        rotation = torch.from_numpy(whole.T.copy()).to(self.vectors)
        rotated = whole.conj().T @ self.projected @ whole
        coupling = self.coupling @ whole
        self.coefficients[:] = 0
        self.coefficients[:p, :p] = rotated
        self.coefficients[p, :p] = coupling
        last = self.vectors[m].clone()
        self.vectors[:p] = rotation @ self.vectors[:m]
        self.vectors[p] = last
        if self.products is not None:
            self.products[:p] = rotation @ self.products[:m]
        self.size = p


def combined(rows: Tensor, coefficients: Array) -> Tensor:
    """The combinations rowsᵀ s of rows (m, n) by the columns (m, k) of coefficients, (n, k), complex."""
    parts = [
        torch.from_numpy(np.array(part.T, order="C")).to(rows.device, rows.real.dtype)
        for part in (coefficients.real, coefficients.imag)
    ]
    if rows.is_complex():
        return (torch.complex(*parts) @ rows).mT
    real = parts[0] @ rows
    imaginary = parts[1] @ rows if coefficients.imag.any() else torch.zeros_like(real)
    return torch.complex(real, imaginary).mT


def orthogonality(rows: Tensor) -> float:
    """max |VVᴴ − I| of rows V (m, n)."""
    gram = rows.conj() @ rows.mT
    return float((gram - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).abs().max())


def orthogonalised(vector: Tensor, rows: Tensor) -> tuple[Array, Tensor, float, float]:
    """Coefficients in the orthonormal `rows`, the remainder, its norm and the norm before.

    Gram–Schmidt, once more where most of the vector was taken away (Daniel, Gragg, Kaufman, Stewart 1976).
    """
    before = norm = float(torch.linalg.vector_norm(vector))
    coefficients = np.zeros(len(rows), complex if vector.is_complex() else float)
    basis, conjugate = rows.mT, rows.conj()
    for _ in range(3):
        step = conjugate @ vector
        vector = torch.addmv(vector, basis, step, alpha=-1)
        coefficients += step.cpu().numpy()
        previous, norm = norm, float(torch.linalg.vector_norm(vector))
        if norm > 0.7 * previous:
            break
    return coefficients, vector, norm, before


def random_direction(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector, orthogonal to orthonormal `rows` (m, n), m < n."""
    for _ in range(8):
        vector = random_vector(rows.shape[1], rows, generator)
        _, vector, norm, _ = orthogonalised(vector, rows)
        if norm > 0:
            vector = orthogonalised(vector / norm, rows)[1]
            length: Tensor = torch.linalg.vector_norm(vector)
            return vector / length
    raise RuntimeError("eight random vectors in a row lay in the span of the basis: the generator is not random")


def random_vector(size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector of the type of `like`, drawn where the generator lives."""
    drawn = torch.randn(size, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)
    length: Tensor = torch.linalg.vector_norm(drawn)
    return drawn / length


def log_missed(
    log_norm: float,  # log ‖q(A) v‖, q monic with the given roots
    roots: Sequence[complex] | Array,
    boundary: Array,
    size: int,
    share: float = 1.0,  # of the random part in the unit vector v
) -> float:
    """log of the probability that an eigenvalue on or beyond `boundary` went unseen by a Krylov space.

    If yᴴA = λyᴴ for a unit vector y, |yᴴv| = |yᴴ q(A) v|/|q(λ)| ≤ ‖q(A)v‖/|q(λ)| for each polynomial q; for a random
    unit vector v the chance that |yᴴv| is under t is at most 0.8 t√n. No symmetry is needed.
    """
    with np.errstate(divide="ignore"):
        sizes = np.log(np.abs(boundary[:, None] - np.asarray(roots)[None, :])).sum(1)
    return min(0.0, math.log(0.8 * math.sqrt(size) / share) + log_norm - float(sizes.min()))
