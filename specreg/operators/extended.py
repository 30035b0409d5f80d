"""Secular equations in as many decimal digits as their condition asks for.

Where diag(Λ) − p qᴴ is far from normal its eigenvalues depend on Λ, p and q so strongly that float64 holds neither
these nor the sums: for HiPPO-LegS with 64 states a relative change of 1e-16 moves an eigenvalue by more than its size.
Numbers here are unevaluated sums of float64 words, and the sums over poles are taken in decimal arithmetic.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

Objects = NDArray[np.object_]
FIRST_DIGITS = 40
MOST_DIGITS = 400
MOST_SWEEPS = 300
GUARD_DIGITS = 18  # what a float64 result needs
SMALLEST_RATIO = 1e-16  # of the largest root, below which one counts as 0
CLOSEST = 1e-12  # relative distance below which roots count as one


@dataclass(frozen=True)
class Extended:
    """Complex numbers as two arrays of `decimal.Decimal`, rounded to the digits of the current context."""

    real: Objects
    imag: Objects

    @classmethod
    def from_words(cls, words: NDArray[np.complex128]) -> Extended:  # (…, w)
        """The sums over the last axis, without rounding before the context's own."""
        return cls(_exact(words.real).sum(-1), _exact(words.imag).sum(-1))

    def __getitem__(self, index: Any) -> Extended:
        return Extended(self.real[index], self.imag[index])

    def __add__(self, other: Extended) -> Extended:
        return Extended(self.real + other.real, self.imag + other.imag)

    def __sub__(self, other: Extended) -> Extended:
        return Extended(self.real - other.real, self.imag - other.imag)

    def __mul__(self, other: Extended) -> Extended:
        real = self.real * other.real - self.imag * other.imag
        return Extended(real, self.real * other.imag + self.imag * other.real)

    def reciprocal(self) -> Extended:
        square = self.real * self.real + self.imag * self.imag
        return Extended(self.real / square, -self.imag / square)

    def sum(self, axis: int = -1) -> Extended:
        return Extended(self.real.sum(axis), self.imag.sum(axis))

    def numpy(self) -> NDArray[np.complex128]:
        """Rounded to float64."""
        return self.real.astype(np.float64) + 1j * self.imag.astype(np.float64)


@dataclass(frozen=True)
class Roots:
    """Roots λ_k of 1 + Σ_i c_i/(λ − Λ_i), and their derivatives, rounded to float64 at the end."""

    values: NDArray[np.complex128]  # (n,)
    by_poles: NDArray[np.complex128]  # (n, n), ∂λ_k/∂Λ_i
    by_weights: NDArray[np.complex128]  # (n, n), ∂λ_k/∂c_i


@contextmanager
def digits(count: int) -> Iterator[None]:
    """A decimal context of `count` digits with the widest range of exponents."""
    with decimal.localcontext() as context:
        context.prec = count
        context.Emin, context.Emax = decimal.MIN_EMIN, decimal.MAX_EMAX
        yield


def secular_roots(
    poles: NDArray[np.complex128],  # (n, w), words
    left: NDArray[np.complex128],  # (n, w)
    right: NDArray[np.complex128],  # (n, w)
    start: NDArray[np.complex128],  # (n,)
) -> Roots | None:
    """All roots of 1 + Σ_i p_i q_i/(λ − Λ_i) = 0 to float64's last digit, by Ehrlich's and Aberth's iteration.

    Digits are added until the rounding errors of the sum no longer reach the roots. None where they never separate:
    poles that coincide or have weight 0, and multiple roots. Ehrlich 1967; Aberth 1973.
    """
    count, guess = FIRST_DIGITS, None
    while count <= MOST_DIGITS:
        with digits(count):
            pole, weight = Extended.from_words(poles), Extended.from_words(left) * Extended.from_words(right)
            guess = Extended.from_words(_distinct(start, poles[:, 0])[:, None]) if guess is None else guess
            found = _aberth(pole, weight, guess)
            if found is None:
                return None
            guess, missing = found
            if missing <= 0:
                return _with_derivatives(pole, weight, guess) if _apart(guess.numpy()) else None
        count += max(missing, 10)
    return None


def legs_words(size: int, words: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Λ and P with diag(Λ) − P Pᴴ unitarily similar to HiPPO-LegS, as sums of float64 words: two arrays ``(n, w)``.

    LegS is −½I + K − ppᵀ with K skew and eigenvalues −1 … −n. Since −Aᵀ = ½I + K + ppᵀ, and determinants are affine in
    rank-one terms, det(s − K) = ½ Π(s + k − ½) + ½ Π(s − k + ½), so that K has the eigenvalues iω with
    Σ_k arctan(ω/(k − ½)) an odd multiple of π/2 (n even) or an even one (n odd), and
    |P_i|² = Π_k (iω_i + k − ½) / Π_{j≠i} (iω_i − iω_j).
    HiPPO: Gu et al. 2020, arXiv 2008.07669; normal plus low rank: Gu et al. 2021, arXiv 2111.00396.
    """
    halves = np.arange(0.5, size)
    omega = _phase_roots(halves, np.pi * (halves - size / 2))
    with digits(18 * words):
        shifts = _exact(halves)
        exact = _exact(omega)
        for _ in range(words.bit_length() + 2):
            exact = exact - _phase_step(exact, shifts, odd=bool(size % 2))
        weights = _legs_weights(exact, shifts)
        roots = np.array([weight.sqrt() for weight in weights], dtype=object)
        poles = 1j * _split(exact, words)
        poles[:, 0] -= 0.5
        return poles.astype(np.complex128), _split(roots, words).astype(np.complex128)


def _aberth(pole: Extended, weight: Extended, guess: Extended) -> tuple[Extended, int] | None:
    """Roots at the context's digits, and how many digits more float64 needs of them; None where they do not separate.

    Newton's step of Π(λ − Λ_i)(1 + Σ c_i/(λ − Λ_i)) is f/(f Σ 1/(λ − Λ_i) − s) with s = Σ c_i/(λ − Λ_i)².
    """
    others = ~np.eye(len(guess.real), dtype=bool)
    smallest, stalled = np.inf, 0
    for _ in range(MOST_SWEEPS):
        difference = guess[:, None] - pole[None, :]
        if _has_zero(difference):
            return None
        inverse = difference.reciprocal()
        terms = weight[None, :] * inverse
        value, slope = terms.sum() + _one(guess), (terms * inverse).sum()
        denominator = value * inverse.sum() - slope
        if _has_zero(denominator):
            return None
        roots = guess.numpy()
        apart = roots[:, None] - roots[None, :]
        if (apart[others] == 0).any():
            return None
        repulsion = np.where(others, 1 / np.where(others, apart, 1), 0).sum(-1)
        newton = value * denominator.reciprocal()
        step = newton * (_one(guess) - newton * Extended.from_words(repulsion[:, None])).reciprocal()
        guess = guess - step
        size = float(np.max(np.abs(step.numpy()) / _sizes(roots)))
        stalled = 0 if size < smallest / 2 else stalled + 1
        smallest = min(size, smallest)
        missing = _missing_digits(terms, slope, roots)
        if size < 1e-17 or (missing > 0 and stalled > 3 and size < 1e-3) or (missing > 0 and stalled > 30):
            return guess, missing
    return None


def _missing_digits(terms: Extended, slope: Extended, roots: NDArray[np.complex128]) -> int:
    """By how many digits rounding errors of the sum, over its slope, exceed float64's last digit of a root."""
    magnitude = np.abs(terms.numpy()).sum(-1) + 1
    exponents = np.array([max(r.adjusted(), i.adjusted()) for r, i in zip(slope.real, slope.imag, strict=True)])
    lost = np.log10(len(roots) * magnitude) - exponents - np.log10(_sizes(roots))
    return int(np.ceil(lost.max())) + GUARD_DIGITS - decimal.getcontext().prec


def _sizes(roots: NDArray[np.complex128]) -> NDArray[np.float64]:
    """What relative errors of the roots are relative to: their moduli, or a trace of the largest where they vanish."""
    sizes = np.abs(roots)
    return np.asarray(np.maximum(sizes, SMALLEST_RATIO * sizes.max() + 1e-300), np.float64)


def _apart(roots: NDArray[np.complex128]) -> bool:
    """Whether float64 tells all roots apart: a multiple root has no derivative, its mean has (by the dense solve)."""
    gaps = np.abs(roots[:, None] - roots[None, :]) + np.diag(np.full(len(roots), np.inf))
    return bool((gaps.min(-1, initial=np.inf) > CLOSEST * _sizes(roots)).all())


def _with_derivatives(pole: Extended, weight: Extended, roots: Extended) -> Roots:
    """dλ = Σ_i [dc_i/(λ − Λ_i) + c_i dΛ_i/(λ − Λ_i)²] / Σ_i c_i/(λ − Λ_i)²."""
    inverse = (roots[:, None] - pole[None, :]).reciprocal()
    squares = weight[None, :] * inverse * inverse
    scale = squares.sum().reciprocal()[:, None]
    return Roots(roots.numpy(), (squares * scale).numpy(), (inverse * scale).numpy())


def _phase_roots(halves: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """ω with Σ_k arctan(ω/(k − ½)) = target, by bisection: the sum increases."""
    high = np.full(len(target), 4.0 * len(target) ** 2)
    low = -high
    for _ in range(200):
        middle = (low + high) / 2
        below = np.arctan(middle[:, None] / halves).sum(-1) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2, np.float64)


def _phase_step(omega: Objects, shifts: Objects, odd: bool) -> Objects:
    """Newton's step of the real (n even) or imaginary (n odd) part of Π(k − ½ + iω)."""
    one = np.full_like(omega, Decimal(1))
    product, logs = Extended(one, one * 0), Extended(one * 0, one * 0)
    for shift in shifts:
        factor = Extended(one * shift, omega)
        product = product * factor
        logs = logs + factor.reciprocal()
    slope = product * Extended(-logs.imag, logs.real)  # the derivative is i Σ 1/(k − ½ + iω) times the product
    step: Objects = product.imag / slope.imag if odd else product.real / slope.real
    return step


def _legs_weights(omega: Objects, shifts: Objects) -> Objects:
    squares = omega[:, None] * omega[:, None] + shifts[None, :] * shifts[None, :]
    gaps = omega[:, None] - omega[None, :] + _exact(np.eye(len(omega)))
    weights: Objects = np.array([value.sqrt() for value in squares.prod(-1)], dtype=object) / abs(gaps.prod(-1))
    return weights


def _distinct(start: NDArray[np.complex128], poles: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Starting values moved apart and off the poles, along a spiral that no symmetry shares."""
    size = np.abs(poles).max() + np.abs(start).max()
    index = np.arange(len(start))
    return np.asarray(start + 1e-9 * size * (1 + index) / len(start) * np.exp(2.4j * index), np.complex128)


def _exact(values: NDArray[np.float64]) -> Objects:
    flat = [Decimal(float(value)) for value in np.ravel(values)]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(np.shape(values))


def _split(values: Objects, words: int) -> NDArray[np.float64]:
    """Unevaluated sums of float64 words, ``(…, w)``."""
    parts = []
    for _ in range(words):
        parts.append(values.astype(np.float64))
        values = values - _exact(parts[-1])
    return np.stack(parts, -1)


def _one(like: Extended) -> Extended:
    return Extended(np.full_like(like.real, Decimal(1)), np.full_like(like.imag, Decimal(0)))


def _has_zero(numbers: Extended) -> bool:
    return bool(((numbers.real == 0) & (numbers.imag == 0)).any())
