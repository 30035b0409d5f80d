"""The exact law of ListOps: how many trees are kept, their mean length, and how often each value is the answer."""

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.listops_trees import Grammar

__all__ = ["Law", "kept_share", "law"]

_ALIASING = 1e-10  # what lengths beyond the circle's points still weigh

Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class Law:
    """What is true of the trees that are kept."""

    kept: float
    """Their share among trees whose root is an operator; among all, a quarter of it."""
    mean_length: float
    """Their mean length."""
    values: tuple[float, ...]
    """How often their value is 0 … 9."""


@lru_cache(maxsize=16)
def kept_share(grammar: Grammar) -> float:
    """Return the share of trees that are kept, among those whose root is an operator."""
    x = _circle(grammar)
    total = x
    for depth in range(grammar.max_depth - 1, 0, -1):
        power, inner = total, np.zeros_like(x)
        for _ in range(2, grammar.max_args + 1):
            power = power * total
            inner += power
        inner = x * x * inner / (grammar.max_args - 1)
        total = inner if depth == 1 else 0.75 * x + 0.25 * inner
    return float(_kept_coefficients(grammar, total).sum())


@lru_cache(maxsize=16)
def law(grammar: Grammar) -> Law:
    """Return the law of the kept trees, from generating functions; good to eight digits.

    For each value there is a function Σ P(value, length n)·xⁿ. An operator's is a polynomial in those of its arguments,
    at every x apart; it is taken at points on a circle of radius below 1, and a Fourier transform gives back P.
    """
    x = _circle(grammar)
    values = np.broadcast_to(x / 10, (10, x.size))
    for depth in range(grammar.max_depth - 1, 0, -1):
        inner = sum(
            (_applied(values, arguments) for arguments in range(2, grammar.max_args + 1)), np.zeros_like(values)
        )
        inner = x * x * inner / (4 * (grammar.max_args - 1))
        values = inner if depth == 1 else 0.75 * x / 10 + 0.25 * inner
    shares = _kept_coefficients(grammar, values)
    kept = shares.sum()
    lengths = np.arange(grammar.longer_than + 1, grammar.shorter_than)
    each = shares.sum(axis=1) / kept
    return Law(float(kept), float((shares @ lengths).sum() / kept), tuple(each.tolist()))


def _circle(grammar: Grammar) -> Complex:
    """Return the upper half of a circle's points: twice as many in all as there are lengths, and a radius below 1."""
    points = _points(grammar)
    circle: Complex = _radius(points) * np.exp(2j * np.pi * np.arange(points // 2 + 1) / points)
    return circle


def _kept_coefficients(
    grammar: Grammar,
    values: Complex,  # (..., points/2 + 1), a function on `_circle`
) -> NDArray[np.float64]:  # (..., kept lengths)
    points = _points(grammar)
    coefficients = np.fft.irfft(values.conj(), points)  # Σ c_n·rⁿ·e^{+2πikn/N}: conjugated, NumPy's forward transform
    lengths = np.arange(grammar.longer_than + 1, grammar.shorter_than)
    kept: NDArray[np.float64] = coefficients[..., lengths] / _radius(points) ** lengths
    return kept


def _points(grammar: Grammar) -> int:
    return 1 << (2 * grammar.shorter_than - 1).bit_length()


def _radius(points: int) -> float:
    return float(_ALIASING ** (1 / points))


def _applied(
    values: Complex,  # (10, N), of one argument
    arguments: int,
) -> Complex:  # (10, N)
    """Return the sum of the four operators' functions."""
    at_most, at_least = np.cumsum(values, axis=0), np.cumsum(values[::-1], axis=0)[::-1]
    summed = np.fft.ifft(np.fft.fft(values, axis=0) ** arguments, axis=0)  # digits mod 10 add as exponents
    least, largest = _steps(at_least[::-1] ** arguments)[::-1], _steps(at_most**arguments)
    return summed + least + largest + _medians(at_most, at_least, arguments)


def _steps(cumulative: Complex) -> Complex:
    """Return the differences of a cumulative function, along the values."""
    return np.diff(cumulative, axis=0, prepend=0 * cumulative[:1])


def _medians(at_most: Complex, at_least: Complex, arguments: int) -> Complex:
    """Return the function of the median, the mean of the two middle arguments rounded down where they are even."""
    lower = _order_statistic(at_most, arguments, (arguments + 1) // 2)
    if arguments % 2:
        return lower
    half = arguments // 2
    # half of the arguments at most u and one equal to it, the others at least w and one equal to it
    below, above = _steps(at_most**half), _steps(at_least[::-1] ** half)[::-1]
    medians = lower.copy()
    for u in range(10):
        for w in range(u + 1, 10):
            both = comb(arguments, half) * below[u] * above[w]
            medians[u] -= both  # here both middle arguments would be u
            medians[(u + w) // 2] += both
    return medians


def _order_statistic(at_most: Complex, arguments: int, rank: int) -> Complex:
    """Return the function of the argument of the given rank, counted from 1: as many are at most as large, or more."""
    rest = at_most[-1] - at_most
    counts = range(rank, arguments + 1)
    return _steps(sum((comb(arguments, k) * at_most**k * rest ** (arguments - k) for k in counts), 0 * at_most))
