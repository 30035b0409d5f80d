"""Extreme eigenvalues from products: against LAPACK, with gradients, and certificates that must never be false."""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from specreg.estimators.certificate import DenseInstead, TornPair, Uncertified
from specreg.estimators.krylov import Arnoldi
from specreg.estimators.lanczos import Lanczos
from specreg.estimators.power import PowerIteration
from specreg.estimators.search import Search, answer
from specreg.estimators.subspace import ENDS, Symmetric
from specreg.operators import Dense, Diagonal, LinearOperator, ScaledIdentity
from specreg.operators.matrix_free import Hessian, Jacobian, MatrixFree, SelfAdjointMatrixFree
from specreg.spectrum import Extremes
from specreg.system import System
from specreg.testing.operators import assert_close

FULL = bool(os.environ.get("SPECREG_FULL"))
WHICH = list(ENDS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def free(matrix: Tensor) -> MatrixFree:
    """An operator without entries, which no dense solve can help."""
    return MatrixFree(
        lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1),
        lambda v: (matrix.mH @ v.unsqueeze(-1)).squeeze(-1),
        matrix.shape[-1],
        matrix.dtype,
        batch=matrix.shape[:-2],
    )


def symmetric(eigenvalues: Tensor, seed: int = 0) -> SelfAdjointMatrixFree:
    """Q diag(λ) Qᵀ with a random rotation."""
    rotation = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    matrix = (rotation * eigenvalues) @ rotation.mT
    return SelfAdjointMatrixFree(lambda v: matrix @ v, len(eigenvalues))


def outlier(size: int, seed: int = 0) -> Tensor:
    """Non-normal with one eigenvalue well outside of the bulk."""
    u, v = torch.nn.functional.normalize(normal(2, size, seed=seed + 1000), dim=-1)
    bulk = 0.9 * normal(size, size, seed=seed) + 0.3 * torch.triu(normal(size, size, seed=seed + 500), 1)
    return bulk / math.sqrt(size) + 1.5 * torch.outer(u, u) + 0.8 * torch.outer(u, v)


def with_values(eigenvalues: np.ndarray[Any, Any], seed: int = 0) -> Tensor:
    """A real non-normal matrix with the given eigenvalues, complex ones standing for conjugate pairs."""
    blocks = [[[z.real, z.imag], [-z.imag, z.real]] if z.imag else [[z.real]] for z in eigenvalues.astype(complex)]
    block = torch.from_numpy(scipy.linalg.block_diag(*blocks))
    basis = torch.eye(len(block)).double() + 0.3 * normal(*block.shape, seed=seed) / math.sqrt(len(block))
    return basis @ block @ torch.linalg.inv(basis)


def wanted(matrix: Tensor, which: str, count: int) -> Tensor:
    """The oracle: every eigenvalue by LAPACK, in the order of `which`."""
    values = torch.linalg.eigvals(matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)).numpy()
    key = {
        "largest_modulus": -np.abs(values),
        "largest_real": -values.real,
        "smallest_real": values.real,
        "largest_imaginary": -values.imag,
    }[which]
    return torch.from_numpy(values[np.lexsort((-values.imag, key.round(9)))][:count])


def quietly(call: Any, *arguments: Any) -> Extremes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Extremes = call(*arguments)
        return result


def is_false(found: Extremes, true: Tensor, tolerance: float) -> bool:
    """Whether a value is certified that is not the eigenvalue of its place."""
    error = (found.eigenvalues - true.to(found.eigenvalues.dtype)).abs()
    return bool((found.converged & (error > 20 * tolerance * found.condition)).any())


class TestArnoldi:
    @pytest.mark.parametrize("which", WHICH)
    @pytest.mark.parametrize("kind", ["real", "complex"])
    @pytest.mark.parametrize("count", [1, 4])
    def test_values_are_lapacks(self, which: Any, kind: str, count: int) -> None:
        """With eigenvalues at each end apart from the bulk, by products alone."""
        ends = np.array([3.0, -2.8, 0.3 + 2.5j, 2.2, -2.1, 1.2 + 1.1j])
        matrix = with_values(np.concatenate([ends, normal(120).numpy() * 0.3]))
        if kind == "complex":
            matrix = matrix * (0.6 + 0.8j) + 0.1j * torch.eye(len(matrix))
        if which == "largest_imaginary" and kind == "real":
            count = min(count, 2)  # the real ones have all the same imaginary part
        found = quietly(Arnoldi(count, which), free(matrix))
        true = wanted(matrix, which, count)
        assert bool(found.converged.all())
        assert_close(found.eigenvalues, true, 1e-8)
        x, y, values = found.right, found.left, found.eigenvalues
        assert_close(matrix.to(x.dtype) @ x, x * values, 1e-7)
        assert_close(matrix.mH.to(x.dtype) @ y, y * values.conj(), 1e-7)
        assert_close(found.condition, 1 / torch.linalg.vecdot(y, x, dim=0).abs())
        assert float(found.residuals.max()) <= 2e-8 and found.residuals.shape == (count,)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_single_precision_and_the_ends_of_its_range(self, dtype: torch.dtype, scale: float) -> None:
        matrix = outlier(120)
        found = Arnoldi(1, tolerance=1e-5)(free((matrix * scale).to(dtype)))
        assert found.eigenvalues.dtype == torch.complex64 and bool(found.converged.all())
        assert_close(found.eigenvalues.to(torch.complex128) / scale, wanted(matrix, "largest_modulus", 1), 1e-4)

    @pytest.mark.parametrize("make", [free, Dense])
    @pytest.mark.parametrize("count", [1, 3])
    def test_gradient_is_that_of_lapack(self, make: Any, count: int) -> None:
        """Of a dense operator and of a closure over a tensor, in the real and the imaginary parts."""
        start = with_values(np.concatenate([[2.0, 0.5 + 1.6j], normal(100).numpy() * 0.2]))
        weights = torch.complex(*normal(2, count, seed=3))
        gradients = []
        for dense in (False, True):
            matrix = start.clone().requires_grad_()
            if dense:
                values = torch.linalg.eigvals(matrix)
                order = torch.from_numpy(np.lexsort((-values.detach().imag, -values.detach().abs().numpy().round(9))))
                values = values[order[:count]]
            else:
                values = quietly(Arnoldi(count, tolerance=1e-12), make(matrix)).eigenvalues
            gradients.append(torch.autograd.grad((weights * values).real.sum(), matrix)[0])
        assert_close(*gradients, 1e-9)

    def test_gradient_of_a_jacobian(self) -> None:
        """In the weights of a recurrent step and in its state, against central differences of LAPACK's radius."""
        weight, state = outlier(80).requires_grad_(), (0.1 * normal(80, seed=5)).requires_grad_()

        def step(h: Tensor) -> Tensor:
            return torch.tanh(weight @ h)

        found = Arnoldi(1, tolerance=1e-10)(Jacobian(step, state))
        gradients = torch.autograd.grad(found.eigenvalues.abs().sum(), (weight, state))
        for leaf, gradient in zip((weight, state), gradients, strict=True):
            change = 1e-6 * normal(*leaf.shape, seed=6)
            radii = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf += sign * change
                jacobian = torch.autograd.functional.jacobian(step, state)
                radii.append(torch.linalg.eigvals(jacobian).abs().max())
                with torch.no_grad():
                    leaf -= sign * change
            assert float((radii[0] - radii[1]) / 2) == pytest.approx(float((gradient * change).sum()), rel=1e-5)

    def test_second_derivatives_are_refused(self) -> None:
        """Held vectors would make them wrong without a word."""
        matrix = outlier(80).requires_grad_()
        value = Arnoldi(1)(free(matrix**2)).eigenvalues.abs().sum()
        (gradient,) = torch.autograd.grad(value, matrix, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(gradient.sum(), matrix)

    def test_batches_are_their_elements(self) -> None:
        """Values, certificates and gradients of each element as alone, for outliers and bulks of several sizes."""
        matrices = (
            torch.stack([outlier(90, seed) * (1 + seed) for seed in range(6)]).view(2, 3, 90, 90).requires_grad_()
        )
        found = Arnoldi(1)(free(matrices))
        assert found.eigenvalues.shape == (2, 3, 1) and found.right.shape == (2, 3, 90, 1)
        assert bool(found.converged.all())
        (gradient,) = torch.autograd.grad(found.eigenvalues.real.sum(), matrices)
        for index in np.ndindex(2, 3):
            alone = matrices[index].detach().requires_grad_()
            value = Arnoldi(1)(free(alone)).eigenvalues
            assert_close(found.eigenvalues[index], value, 1e-9)
            assert_close(gradient[index], torch.autograd.grad(value.real.sum(), alone)[0], 1e-6)

    def test_a_nan_is_named(self) -> None:
        matrices = torch.stack([outlier(80)] * 3)
        matrices[1, 4, 5] = math.nan
        for operator in (free(matrices), Dense(matrices), Dense(matrices[:, :20, :20])):
            with pytest.raises(ValueError, match=r"batch element \(1,\)"):
                Arnoldi(1)(operator)

    @pytest.mark.parametrize("size", [1, 2, 63, 70])
    @pytest.mark.parametrize("make", [free, Dense])
    def test_small_and_awkward_matrices(self, size: int, make: Any) -> None:
        """Zero, identity, a shift, a Jordan block, a strict triangle, repeated values: right or not certified."""
        eye, shift = torch.eye(size).double(), torch.diag(torch.ones(size - 1).double(), 1)
        repeated = torch.diag(torch.arange(size).div(2, rounding_mode="floor").double())
        cases = [0 * eye, eye, shift, eye + shift, torch.triu(normal(size, size), 1), repeated, outlier(size), -3 * eye]
        for matrix in cases:
            for count in {1, min(2, size), min(3, size)}:
                leaf = matrix.clone().requires_grad_()
                found = quietly(Arnoldi(count, tolerance=1e-7, max_matvecs=300), make(leaf))
                assert not is_false(found, wanted(matrix, "largest_modulus", count), 1e-7)
                (gradient,) = torch.autograd.grad(found.eigenvalues.real.sum(), leaf)
                assert bool(gradient.isfinite().all())

    def test_systems_are_their_transitions(self) -> None:
        """A batch of time steps is a batch of operators; with a mask those that count are the batch."""
        operator = Dense.example()
        inputs = normal(1, 1, 1, 4, 1)
        system = System(operator, inputs=inputs, readouts=inputs.mT, values=normal(2, 7, 3, 1, 1))
        found = quietly(Arnoldi(2), system)
        true = torch.linalg.eigvals(operator.matrix).abs().sort(-1, descending=True).values
        assert_close(found.eigenvalues.abs(), true[..., :2])
        mask = torch.arange(7).expand(2, 7) < torch.tensor([[5], [3]])
        for estimator, count in ((Arnoldi(2), 2), (PowerIteration(), 1)):
            found = quietly(estimator, replace(system, mask=mask))
            assert_close(found.eigenvalues.abs(), true.expand(2, 7, *true.shape[2:])[mask][..., :count])

    def test_batches_of_jacobians(self) -> None:
        weight, states = outlier(80), 0.1 * normal(2, 3, 80)
        found = Arnoldi(1)(Jacobian(lambda h: torch.tanh(h @ weight.mT), states))
        slopes = 1 - torch.tanh(states @ weight.mT) ** 2
        true = torch.linalg.eigvals(slopes.unsqueeze(-1) * weight).abs().amax(-1)
        assert bool(found.converged.all())
        assert_close(found.eigenvalues.abs().squeeze(-1), true)

    def test_an_adjoint_that_is_none_is_refused(self) -> None:
        matrix = outlier(80)
        with pytest.raises(ValueError, match="adjoint's products do not belong"):
            Arnoldi(1)(MatrixFree(lambda v: matrix @ v, lambda v: matrix @ v, 80))

    def test_structured_operators(self) -> None:
        """With complex entries and batch axes: a diagonal knows its values."""
        diagonal = Diagonal.example()
        found = quietly(Arnoldi(2), diagonal)
        moduli = diagonal.eigenvalues().abs().sort(-1, descending=True).values
        assert_close(found.eigenvalues.abs(), moduli[..., :2])
        identity = ScaledIdentity(normal(3).requires_grad_(), 100)
        found = Arnoldi(1)(identity)
        assert_close(found.eigenvalues.squeeze(-1), identity.log_factor.exp().to(torch.complex128))
        (gradient,) = torch.autograd.grad(found.eigenvalues.real.sum(), identity.log_factor)
        assert_close(gradient, identity.log_factor.exp())


class TestRestarts:
    def test_values_do_not_depend_on_the_size_of_the_basis(self) -> None:
        matrix = with_values(np.concatenate([[2.0, 1.9, 0.5 + 1.7j], normal(150).numpy() * 0.4]))
        true = wanted(matrix, "largest_modulus", 4)
        for dim in (8, 11, 20, 51, 80):
            for factor in (1.0, 0.6 + 0.8j):
                found = quietly(Arnoldi(4, krylov_dim=dim, tolerance=1e-9), free(matrix * factor))
                assert bool(found.converged.all())
                assert_close(found.eigenvalues.abs(), true.abs(), 1e-9)

    @pytest.mark.parametrize("dim", [9, 20, 51, 80])
    def test_no_ghosts(self, dim: int) -> None:
        """A spectrum like a Hessian's: without reorthogonalisation the top comes back as a copy at 51 and 80 steps."""
        values = torch.cat([torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0]).double(), 1e-3 * normal(395).abs()])
        found = Lanczos(5, krylov_dim=dim)(symmetric(values))
        assert bool(found.converged.all())
        assert_close(found.eigenvalues, torch.tensor([10.0, 6.0, 3.0, 2.0, 1.0]).double(), 1e-9)

    def test_the_dense_path_says_so(self) -> None:
        """No gap: Krylov is given up for a dense solve, with the warning, and the value and gradient are LAPACK's."""
        matrix = (normal(200, 200) / math.sqrt(200)).requires_grad_()
        with pytest.warns(DenseInstead, match="no gap"), pytest.warns(TornPair):
            found = Arnoldi(1)(Dense(matrix))
        assert bool(found.converged.all()) and 20 < found.num_matvecs < 200
        assert_close(found.eigenvalues, wanted(matrix.detach(), "largest_modulus", 1), 1e-10)
        (gradient,) = torch.autograd.grad(found.eigenvalues.abs().sum(), matrix)
        assert float((gradient * matrix.detach()).sum()) == pytest.approx(found.eigenvalues.detach().abs().item())


class TestWarmStart:
    def test_a_near_operator_takes_fewer_products(self) -> None:
        matrix, change = outlier(512), normal(512, 512, seed=9)
        near = matrix + 1e-3 * change * matrix.norm() / change.norm()
        arnoldi = Arnoldi(1, tolerance=1e-7)
        cold = arnoldi(free(matrix))
        warm = arnoldi(free(near), start=cold)
        assert bool(warm.converged.all()) and warm.num_matvecs <= 0.55 * cold.num_matvecs
        assert_close(warm.eigenvalues, wanted(near, "largest_modulus", 1), 1e-7)

    @pytest.mark.parametrize("seed", range(200 if FULL else 12))
    def test_a_newcomer_is_seen(self, seed: int) -> None:
        """The old vector stays an exact eigenvector and another eigenvalue has become larger: never certified as is."""
        values = torch.cat(
            [torch.tensor([1.0]).double(), 0.5 * torch.rand(299, generator=torch.Generator().manual_seed(seed))]
        )
        rotation = torch.linalg.qr(normal(300, 300, seed=seed))[0]
        changed = values.clone()
        changed[7] = 1.3
        for estimator in (Arnoldi(1, tolerance=1e-7), Lanczos(1, tolerance=1e-7)):
            before, after = (
                SelfAdjointMatrixFree(lambda v, d=d: rotation @ (d * (rotation.mT @ v)), 300) for d in (values, changed)
            )
            cold = estimator(before)
            found = quietly(estimator, after, None, cold)
            assert not bool(found.converged) or float((found.eigenvalues - 1.3).abs()) < 1e-5

    def test_starts_of_another_shape_are_refused(self) -> None:
        start = Arnoldi(1)(free(outlier(80)))
        with pytest.raises(ValueError, match="start has vectors"):
            Arnoldi(1)(free(outlier(90)), start=start)

    def test_the_same_operator_again(self) -> None:
        """An exact start is certified in fewer products, whatever the number of values."""
        operator = symmetric(torch.cat([torch.tensor([3.0, 2.0, 1.5]).double(), torch.rand(200).double() * 0 + 0.1]))
        lanczos = Lanczos(3)
        cold = lanczos(operator)
        again = lanczos(operator, start=cold)
        assert bool(again.converged.all()) and again.num_matvecs <= cold.num_matvecs + 3


class TestLanczos:
    @pytest.mark.parametrize("which", ["largest_modulus", "largest_real", "smallest_real"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
    def test_values_are_lapacks(self, which: Any, dtype: torch.dtype) -> None:
        matrix = normal(150, 150, dtype=dtype)
        matrix = matrix + matrix.mH
        found = Lanczos(3, which)(SelfAdjointMatrixFree(lambda v: matrix @ v, 150, dtype))
        assert found.eigenvalues.dtype == dtype.to_real() and found.right.dtype == dtype
        assert bool(found.converged.all())
        loose = 1e-3 if dtype in (torch.float32, torch.complex64) else 1e-9
        assert_close(found.eigenvalues.double(), wanted(matrix, which, 3).real, loose)
        assert_close(found.condition, torch.ones_like(found.condition), loose)

    def test_gradient_is_that_of_lapack(self) -> None:
        matrix = normal(90, 90).requires_grad_()
        weights = normal(3, seed=2)
        even = (matrix + matrix.mT) / 2
        found = Lanczos(3, "largest_real", tolerance=1e-11)(SelfAdjointMatrixFree(lambda v: even @ v, 90))
        expected = torch.linalg.eigvalsh(even).flip(-1)[:3]
        ours, theirs = (
            torch.autograd.grad((weights * v).sum(), matrix, retain_graph=True)[0]
            for v in (found.eigenvalues, expected)
        )
        assert_close(ours, theirs, 1e-8)

    def test_gradient_of_a_hessian(self) -> None:
        """In the parameters, a third derivative, against central differences of LAPACK's largest."""
        point = normal(30).requires_grad_()

        def function(v: Tensor) -> Tensor:
            return (v**4).sum() + (v.roll(1) * v).sin().sum() + 3 * v[0] ** 2 * v[1]

        found = Lanczos(1, "largest_real", tolerance=1e-11)(Hessian(function, point))
        (gradient,) = torch.autograd.grad(found.eigenvalues.sum(), point)
        change = 1e-6 * normal(30, seed=4)
        ahead, behind = (
            torch.linalg.eigvalsh(torch.autograd.functional.hessian(function, point.detach() + c)).max()
            for c in (change, -change)
        )
        assert float((ahead - behind) / 2) == pytest.approx(float((gradient * change).sum()), rel=1e-5)

    def test_batches(self) -> None:
        matrices = normal(3, 80, 80)
        matrices = matrices + matrices.mT
        operator = SelfAdjointMatrixFree(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), 80, batch=torch.Size([3]))
        found = Lanczos(2, "largest_real")(operator)
        assert_close(found.eigenvalues, torch.linalg.eigvalsh(matrices).flip(-1)[:, :2], 1e-9)

    def test_others_are_refused_by_their_type(self) -> None:
        even = torch.eye(70).double()
        for operator in (Dense(even), free(even), Diagonal.example()):
            with pytest.raises(TypeError, match="SelfAdjoint operator, got"):
                Lanczos(1)(operator)
        with pytest.raises(ValueError, match="not symmetric"):
            Lanczos(1)(SelfAdjointMatrixFree(lambda v: outlier(80) @ v, 80))


class TestPowerIteration:
    def test_value_and_gradient(self) -> None:
        """Of a complex pair of a real operator, where one vector would not converge."""
        start = with_values(np.concatenate([[0.9 + 1.8j], normal(80).numpy() * 0.2]))
        matrix = start.clone().requires_grad_()
        with pytest.warns(TornPair):
            found = PowerIteration(tolerance=1e-9)(free(matrix))
        assert bool(found.converged.all())
        assert_close(found.eigenvalues, torch.tensor([0.9 + 1.8j], dtype=torch.complex128), 1e-9)
        ours = torch.autograd.grad(found.eigenvalues.abs().sum(), matrix)[0]
        theirs = torch.autograd.grad(
            quietly(Arnoldi(1, tolerance=1e-11), free(matrix)).eigenvalues.abs().sum(), matrix
        )[0]
        assert_close(ours, theirs, 1e-7)

    def test_a_warm_start_is_shorter(self) -> None:
        operator = free(outlier(100))
        power = PowerIteration(tolerance=1e-7)
        cold = power(operator)
        assert power(operator, start=cold).num_matvecs < 0.6 * cold.num_matvecs

    def test_small_sizes(self) -> None:
        for size in (1, 2, 3, 4):
            matrix = normal(size, size, seed=size)
            found = quietly(PowerIteration(), free(matrix))
            assert not is_false(found, wanted(matrix, "largest_modulus", 1), 1e-7)


class TestCertificates:
    """Nothing certified is wrong, on material that fools residuals."""

    @pytest.mark.parametrize("seed", range(200 if FULL else 12))
    def test_ginibre(self, seed: int) -> None:
        """No gap: whatever Krylov certifies is the dominant one, by products alone and in the dense path."""
        size = 1024 if FULL else 128
        matrix = normal(size, size, seed=seed) / math.sqrt(size)
        true = wanted(matrix, "largest_modulus", 1)
        for operator in (free(matrix), Dense(matrix)):
            found = quietly(Arnoldi(1, tolerance=1e-7, max_matvecs=1000), operator)
            assert not is_false(found, true, 1e-7)
        assert bool(found.converged.all())

    @pytest.mark.parametrize("seed", range(200 if FULL else 12))
    def test_outliers_are_certified(self, seed: int) -> None:
        matrix = outlier(300, seed)
        found = Arnoldi(1, tolerance=1e-7)(free(matrix))
        assert bool(found.converged.all()) and not is_false(found, wanted(matrix, "largest_modulus", 1), 1e-7)

    @pytest.mark.parametrize("seed", range(200 if FULL else 12))
    @pytest.mark.parametrize("top", [[1.0, 1 + 3e-5, 1 + 7e-5], [3.0, 3.0], [2.0, 2.0, 1.5, 1.5], [2.0, 2.0, 2.0]])
    def test_triples_and_multiples(self, top: list[float], seed: int) -> None:
        """Close ones at a tolerance that tells them apart and at one that does not, and exact copies."""
        bulk = 0.9 * torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        values = torch.cat([bulk, torch.tensor(top).double()])
        operator = symmetric(values, seed)
        values = values.sort(descending=True).values
        for count in range(1, 5):
            for tolerance in (1e-8, 1e-4):
                draw = torch.Generator().manual_seed(seed)
                found = quietly(Lanczos(count, "largest_real", tolerance), operator, draw)
                assert not is_false(found, values[:count], tolerance)
        found = quietly(Arnoldi(2, tolerance=1e-8), operator)
        assert not is_false(found, values[:2].to(torch.complex128), 1e-8)

    @pytest.mark.parametrize("seed", range(200 if FULL else 12))
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_complex_dominant_pairs(self, count: int, seed: int) -> None:
        """The pair, or its upper half with a warning; a near rival real value is not mistaken for it."""
        values = np.concatenate([[1.2 + 0.9j, 1.5 - 1e-6], 0.8 * normal(80, seed=seed).numpy().clip(-1, 1)])
        matrix = with_values(values, seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = Arnoldi(count, tolerance=1e-9)(free(matrix))
        assert not is_false(found, wanted(matrix, "largest_modulus", count), 1e-9)
        assert bool(found.converged.all())
        assert any(issubclass(one.category, TornPair) for one in said) == (count == 1)

    @pytest.mark.parametrize("share", [1e-4, 1e-5])
    def test_a_close_twin_is_seen(self, share: float) -> None:
        """The start holds next to nothing of the largest: the second largest has a small residual long before."""
        values = torch.cat([torch.tensor([1 + 4e-5, 1.0], dtype=torch.float64), 0.9 * normal(200).abs().clamp_max(1)])
        first = normal(len(values), seed=1)
        first[0] = share * first[1]
        found = {}
        for risk in (1.0, 1e-5):
            aim = Lanczos(1, tolerance=1e-8, copy_risk=risk).aim(len(values), values.dtype, 2000)
            operator = SelfAdjointMatrixFree(lambda v: values * v, len(values))
            (found[risk],) = answer(operator, [Search(aim, first, 1.0, torch.Generator().manual_seed(0))])
        assert found[1.0].values[0].real == pytest.approx(1.0, abs=1e-9)
        assert found[1e-5].values[0].real == pytest.approx(1 + 4e-5, abs=1e-9)

    @pytest.mark.parametrize("which", ["largest_modulus", "largest_real", "smallest_real"])
    def test_eigenvalues_are_counted(self, which: str) -> None:
        """Nothing in the complement beyond the bound: no more eigenvalues beyond the level than Ritz values."""
        size, told, end = 40, 0, ENDS[which]
        for seed in range(40):
            draw = np.random.default_rng(seed)
            copies = [3.0, 2.0 + 1e-7, -2.9] if seed % 2 else [0.3, 0.2, -0.4]
            values = np.concatenate([[3.0, 2.0, -2.9], copies, draw.normal(size=size - 6) * 0.5])
            matrix = scipy.linalg.qr(draw.normal(size=(size, size)))[0]
            matrix = (matrix * values) @ matrix.T
            krylov = [draw.normal(size=size)]
            for _ in range(int(draw.integers(5, 25))):
                krylov.append(matrix @ (krylov[-1] / np.linalg.norm(krylov[-1])))
            basis = scipy.linalg.qr(np.array(krylov).T, mode="full")[0]
            inside, outside = np.split(basis, [len(krylov)], axis=1)
            ritz, vectors = np.linalg.eigh(inside.T @ matrix @ inside)
            residuals = np.linalg.norm(matrix @ inside @ vectors - inside @ vectors * ritz, axis=0)
            order = end.order(ritz.astype(complex))
            ritz, residuals = ritz[order].astype(complex), residuals[order]
            highest = end.score(np.linalg.eigvalsh(outside.T @ matrix @ outside).astype(complex)).max()
            for score in end.score(ritz)[:4]:
                error = 1e-3 * draw.random()
                count, level = Symmetric.hidden(end, ritz, residuals, 2, float(score), error)
                assert count == len(ritz)
                if highest < level:
                    beyond = [(end.score(found.astype(complex)) > score - error).sum() for found in (values, ritz)]
                    assert beyond[0] == beyond[1]
                    told += 1
        assert told > 20, told

    def test_what_is_not_certain_says_its_residual(self) -> None:
        matrix = normal(300, 300) / math.sqrt(300)
        with pytest.warns(Uncertified, match=r"residual [0-9.]+ with a tolerance of 1e-07"), pytest.warns(TornPair):
            found = Arnoldi(1, tolerance=1e-7, max_matvecs=60)(free(matrix))
        assert not bool(found.converged.any()) and found.num_matvecs <= 64

    def test_a_tie_is_not_certain(self) -> None:
        """λ and −λ have one modulus: which of them is first nobody knows."""
        values = torch.cat([torch.tensor([2.0, -2.0]).double(), normal(100).clip(-1, 1)])
        with pytest.warns(Uncertified, match="as extreme"):
            found = Lanczos(1)(symmetric(values))
        assert float(found.residuals) < 1e-8


class TestRequests:
    def test_unknown_ends_name_the_nearest(self) -> None:
        wrong: Any = "largest_modulos"
        with pytest.raises(ValueError, match=r"nearest is 'largest_modulus'"):
            Arnoldi(1, wrong)
        with pytest.raises(ValueError, match="Lanczos finds are real"):
            Lanczos(1, "largest_imaginary")

    def test_what_cannot_be_is_refused(self) -> None:
        for arguments in (
            {"num_eigenvalues": 0},
            {"max_matvecs": 0},
            {"krylov_dim": 2},
            {"tolerance": 2.0},
            {"copy_risk": 0.0},
        ):
            with pytest.raises(ValueError, match=next(iter(arguments))):
                Arnoldi(**arguments)
        with pytest.raises(ValueError, match="5 is the most"):
            Arnoldi(6)(Dense(normal(5, 5)))
        with pytest.raises(ValueError, match=r"out of reach in torch\.float32"):
            Arnoldi(1, tolerance=1e-9)(Dense(normal(5, 5).float()))
        bare: Any = normal(5, 5)
        for estimator in (Arnoldi(1), PowerIteration()):
            with pytest.raises(TypeError, match="Dense"):
                estimator(bare)

    def test_an_operator_must_say_its_type(self) -> None:
        class Silent(LinearOperator):
            shape = torch.Size([3, 3])

            def mv(self, vector: Tensor) -> Tensor:
                return vector

            def adjoint(self) -> LinearOperator:
                return self

        with pytest.raises(TypeError, match="`dtype` and a `device`"):
            Arnoldi(1)(Silent())


@pytest.fixture
def untouched() -> Iterator[None]:
    state, default, grad = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == default and torch.is_grad_enabled() == grad


def test_global_state_stays_and_results_repeat(untouched: None) -> None:
    matrix = outlier(100).requires_grad_()
    even = (matrix + matrix.mT).detach()
    calls = [
        lambda: Arnoldi(1)(free(matrix)),
        lambda: quietly(Arnoldi(2), Dense(matrix)),
        lambda: Lanczos(2)(SelfAdjointMatrixFree(lambda v: even @ v, 100)),
        lambda: PowerIteration()(free(matrix)),
    ]
    for call in calls:
        first, second = call(), call()
        assert torch.equal(first.eigenvalues, second.eigenvalues) and torch.equal(first.right, second.right)
        assert not first.right.requires_grad and not first.residuals.requires_grad
    assert matrix.requires_grad and matrix.grad is None


def test_a_thousand_calls_leave_no_tensors() -> None:
    matrix = outlier(20).requires_grad_()
    arnoldi, lanczos = Arnoldi(1), Lanczos(1)
    start: Extremes | None = None

    def call() -> None:
        nonlocal start
        operator = free(matrix)
        start = quietly(arnoldi, operator, None, start)
        start.eigenvalues.abs().sum().backward()
        lanczos(SelfAdjointMatrixFree(lambda v: (matrix + matrix.mT) @ v, 20)).eigenvalues.sum().backward()
        matrix.grad = None

    def alive() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for _ in range(2):
        call()
    gc.collect()
    before = alive()
    for _ in range(1000 if FULL else 100):
        call()
    gc.collect()
    assert alive() <= before
