"""The conformance tests of an estimator, for our members and for anybody's.

An estimator of the whole spectrum passes when it finds the eigenvalues that LAPACK finds, in the one layout, with the
mask of the system and with their gradient. Plain assertions: any runner that calls methods named `test_…` will do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specreg.estimators import Estimator
from specreg.operators import Dense, Diagonal, ScaledIdentity, StructuredOperator
from specreg.spectrum import Spectrum
from specreg.system import System
from specreg.testing.operators import assert_same_values, tensor_fields

__all__ = ["EstimatorConformance"]


class EstimatorConformance(ABC):
    """The tests that every estimator of a whole `Spectrum` passes: subclass it, give `make`.

    `tolerance` may be widened for an iterative one: the error of its eigenvalues, relative to the largest. `constant`
    names the fields of operators that have no gradient.
    """

    tolerance: float = 1e-8
    constant: frozenset[str] = frozenset({"sign"})

    @abstractmethod
    def make(self) -> Estimator[Spectrum]:
        """The estimator."""

    def operators(self) -> list[StructuredOperator]:
        """What it is tried on, float64 with batch axes (B, T, H); an estimator for fewer structures gives fewer."""
        return [ScaledIdentity.example(), Diagonal.example(), Dense.example()]

    def test_result_is_what_it_gives(self) -> None:
        """`gives` is the type of the result."""
        estimator = self.make()
        assert all(isinstance(estimator(operator), estimator.gives) for operator in self.operators())

    def test_eigenvalues_are_those_of_the_dense_matrix(self) -> None:
        """As a multiset, with multiplicity, in the layout (B, T, H, m)."""
        for operator in self.operators():
            spectrum = self.make()(operator)
            count = spectrum.multiplicity
            assert spectrum.log_modulus.shape == spectrum.phase.shape == (*operator.shape[:-2], len(count))
            values = spectrum.eigenvalues.repeat_interleave(count, -1)
            assert_same_values(values, torch.linalg.eigvals(operator.dense()), self.tolerance)

    def test_missing_axes_are_put_in_front(self) -> None:
        """A matrix, or a stack of them, is a spectrum of one batch element and one step; over three axes raise."""
        matrix = Dense.example().matrix
        for source in (matrix[0, 0, 0], matrix[0, 0], matrix[0]):
            spectrum = self.make()(Dense(source))
            assert spectrum.log_modulus.shape == (1,) * (5 - source.dim()) + source.shape[:-1]
        try:
            self.make()(Dense(matrix.unsqueeze(0)))
        except ValueError as error:
            assert "batch axes" in str(error)
        else:
            raise AssertionError("four batch axes were not refused")

    def test_masks_travel_with_the_system(self) -> None:
        """The spectrum of a system has its mask, and masked steps have weight 0; that of an operator has none."""
        for operator in self.operators():
            batch, steps = operator.shape[:2]
            mask = torch.arange(steps) < torch.arange(2, 2 + batch).unsqueeze(1)
            spectrum = self.make()(_system(operator, mask))
            assert spectrum.mask is mask
            weights = spectrum.weights()
            torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=weights.dtype))
            assert torch.equal((weights > 0).all(-1).all(-1), mask)
            assert self.make()(operator).mask is None

    def test_gradient_is_that_of_the_dense_matrix(self) -> None:
        """d Σ (|λ|² + Re λ³) along a random direction, against central differences of LAPACK's values."""
        for operator in self.operators():
            for name in tensor_fields(operator).keys() - self.constant:
                field = tensor_fields(operator)[name]
                leaf = field.detach().clone().requires_grad_()
                moments = _moments(self.make()(replace(operator, **{name: leaf})))
                (gradient,) = torch.autograd.grad(moments, leaf)
                change = 1e-6 * torch.randn(field.shape, dtype=field.dtype, generator=torch.Generator().manual_seed(3))
                ahead, behind = (_dense_moments(replace(operator, **{name: field + c})) for c in (change, -change))
                error = float(2 * (gradient * change).sum() - (ahead - behind)) / 2e-6
                assert abs(error) <= max(1e-5, self.tolerance) * max(1.0, abs(moments.item()))

    def test_other_sources_are_refused(self) -> None:
        """A bare tensor raises a `TypeError` that says how to wrap it."""
        bare: Any = torch.eye(3)
        try:
            self.make()(bare)
        except TypeError as error:
            assert "Dense" in str(error)
        else:
            raise AssertionError("a bare tensor was not refused")


def _moments(spectrum: Spectrum) -> Tensor:
    eigenvalues = spectrum.eigenvalues
    terms = eigenvalues.abs().square() + (eigenvalues**3).real
    return (spectrum.multiplicity * terms).sum()


def _dense_moments(operator: StructuredOperator) -> Tensor:
    eigenvalues = torch.linalg.eigvals(operator.dense())
    return (eigenvalues.abs().square() + (eigenvalues**3).real).sum()  # type: ignore[no-any-return]


def _system(operator: StructuredOperator, mask: Tensor) -> System:
    batch, steps, heads, size, _ = operator.shape
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randn(1, 1, 1, size, 1, dtype=torch.float64, generator=draw)
    values = torch.randn(batch, steps, heads, 1, 1, dtype=torch.float64, generator=draw)
    return System(operator=operator, inputs=inputs, readouts=inputs.mT, values=values, mask=mask)
