"""Arrays of numbers held as unevaluated sums of two float64, about 31 digits (Dekker 1971; Hida, Li and Bailey 2001).

Real or complex. Nothing but additions and products of float64 is used, so it runs the same on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SPLITTER = 2.0**27 + 1  # halves the 53 bits of a float64


@dataclass(frozen=True, eq=False)
class DoubleDouble:
    """high + low, |low| at most half a unit in the last place of high, in each part of complex numbers."""

    high: Array
    low: Array

    @staticmethod
    def of(array: Array) -> DoubleDouble:
        """Float64 or complex128 numbers as they are."""
        return DoubleDouble(array, np.zeros_like(array))

    def __add__(self, other: DoubleDouble) -> DoubleDouble:
        total, error = _exact_sum(self.high, other.high)
        return _normal(total, error + (self.low + other.low))

    def __sub__(self, other: DoubleDouble) -> DoubleDouble:
        return self + -other

    def __neg__(self) -> DoubleDouble:
        return DoubleDouble(-self.high, -self.low)

    def __mul__(self, other: DoubleDouble) -> DoubleDouble:
        if not (np.iscomplexobj(self.high) or np.iscomplexobj(other.high)):
            return _product(self, other)
        if not np.iscomplexobj(self.high):
            return _complex(_product(self, other.real), _product(self, other.imag))
        if not np.iscomplexobj(other.high):
            return other * self
        real = _product(self.real, other.real) - _product(self.imag, other.imag)
        return _complex(real, _product(self.real, other.imag) + _product(self.imag, other.real))

    def __truediv__(self, other: DoubleDouble) -> DoubleDouble:
        """By two corrections of the quotient in float64."""
        first = DoubleDouble.of(self.high / other.high)
        rest = self - first * other
        second = DoubleDouble.of(rest.high / other.high)
        rest = rest - second * other
        return first + second + DoubleDouble.of(rest.high / other.high)

    def __getitem__(self, index: Any) -> DoubleDouble:
        return DoubleDouble(self.high[index], self.low[index])

    def __setitem__(self, index: Any, value: DoubleDouble) -> None:
        self.high[index], self.low[index] = value.high, value.low

    @property
    def real(self) -> DoubleDouble:
        return self.map(np.real)

    @property
    def imag(self) -> DoubleDouble:
        return self.map(np.imag)

    def conj(self) -> DoubleDouble:
        return self.map(np.conj)

    def map(self, function: Callable[..., Array], *arguments: Any) -> DoubleDouble:
        """Both parts under a function that moves numbers and does not round."""
        return DoubleDouble(function(self.high, *arguments), function(self.low, *arguments))

    def sum(self, axis: int) -> DoubleDouble:
        """The sum along an axis, by halving it."""
        rest = self.map(np.moveaxis, axis, 0)
        while len(rest.high) > 1:
            half = len(rest.high) // 2
            odd, rest = rest[2 * half :], rest[:half] + rest[half : 2 * half]
            rest = (
                rest
                if not len(odd.high)
                else DoubleDouble(np.concatenate((rest.high, odd.high)), np.concatenate((rest.low, odd.low)))
            )
        return rest[0]

    def root(self) -> DoubleDouble:
        """The square root of positive numbers."""
        first = DoubleDouble.of(np.sqrt(self.high))
        return first + DoubleDouble.of((self - first * first).high / (2 * first.high))


def where(condition: NDArray[np.bool_], first: DoubleDouble, second: DoubleDouble) -> DoubleDouble:
    """As numpy's."""
    return DoubleDouble(np.where(condition, first.high, second.high), np.where(condition, first.low, second.low))


def _complex(real: DoubleDouble, imag: DoubleDouble) -> DoubleDouble:
    return DoubleDouble(real.high + 1j * imag.high, real.low + 1j * imag.low)


def _product(first: DoubleDouble, second: DoubleDouble) -> DoubleDouble:
    product = first.high * second.high
    (a, b), (c, d) = _halves(first.high), _halves(second.high)
    error = ((a * c - product) + a * d + b * c) + b * d
    return _normal(product, error + (first.high * second.low + first.low * second.high))


def _halves(array: Array) -> tuple[Array, Array]:
    scaled = array * SPLITTER
    high = scaled - (scaled - array)
    return high, array - high


def _exact_sum(first: Array, second: Array) -> tuple[Array, Array]:
    total = first + second
    back = total - first
    return total, (first - (total - back)) + (second - back)


def _normal(high: Array, low: Array) -> DoubleDouble:
    total = high + low
    return DoubleDouble(total, low - (total - high))
