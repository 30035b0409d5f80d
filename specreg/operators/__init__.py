"""Batches of square maps, by the structure that owns their eigenvalues."""

from specreg.operators.base import LinearOperator, StructuredOperator, check_window, windowed_sum
from specreg.operators.closed_form import Diagonal, ScaledIdentity
from specreg.operators.dense import Dense

__all__ = [
    "Dense",
    "Diagonal",
    "LinearOperator",
    "ScaledIdentity",
    "StructuredOperator",
    "check_window",
    "windowed_sum",
]
