"""Batches of square maps, by the structure that owns their eigenvalues, and maps that are only applied."""

from specreg.operators.base import LinearOperator, StructuredOperator, check_window, windowed_sum
from specreg.operators.chain import Chain
from specreg.operators.closed_form import Diagonal, ScaledIdentity
from specreg.operators.dense import Dense
from specreg.operators.diagonal_plus import DiagonalPlusLowRank, DiagonalPlusRankOne
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.operators.matrix_free import (
    GaussNewton,
    Hessian,
    Jacobian,
    MatrixFree,
    SelfAdjoint,
    SelfAdjointMatrixFree,
)

__all__ = [
    "Chain",
    "Dense",
    "Diagonal",
    "DiagonalPlusLowRank",
    "DiagonalPlusRankOne",
    "GaussNewton",
    "Hessian",
    "HouseholderProduct",
    "Jacobian",
    "LinearOperator",
    "MatrixFree",
    "RankOneUpdate",
    "ScaledIdentity",
    "SelfAdjoint",
    "SelfAdjointMatrixFree",
    "StructuredOperator",
    "check_window",
    "windowed_sum",
]
