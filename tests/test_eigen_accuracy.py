"""Gradients of dense eigenvalues against 60-digit arithmetic, on the matrices that break eigenvector-based ones."""

from __future__ import annotations

import os
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import matrix_balance

from specreg.eigen.dense import condition_numbers, eigenvalues
from specreg.eigen.extremal import spectral_abscissa

Array = NDArray[Any]
EPS = float(np.finfo(np.float64).eps)
FULL = bool(os.environ.get("SPECREG_FULL"))
DIGITS = 60


def grcar(n: int, k: int = 3) -> Array:
    return np.triu(np.tril(np.ones((n, n)), k)) - np.diag(np.ones(n - 1), -1)


def frank(n: int) -> Array:
    i, j = np.indices((n, n))
    return np.where(j >= i - 1, n - np.maximum(i, j), 0).astype(float)


def kahan(n: int, angle: float = 1.2) -> Array:
    upper = np.eye(n) - np.cos(angle) * np.triu(np.ones((n, n)), 1)
    return np.diag(np.sin(angle) ** np.arange(n)) @ upper


def clement(n: int) -> Array:
    k = np.arange(1.0, n)
    return np.diag(k[::-1], 1) + np.diag(k, -1)


def lesp(n: int) -> Array:
    k = np.arange(2.0, n + 1)
    return np.diag(-np.arange(5.0, 2 * n + 5, 2)) + np.diag(k, 1) + np.diag(1 / k, -1)


def legs(n: int) -> Array:
    root = np.sqrt(2 * np.arange(n) + 1)
    return -(np.tril(np.outer(root, root), -1) + np.diag(np.arange(1.0, n + 1)))


def companion(*roots: float) -> Array:
    matrix = np.diag(np.ones(len(roots) - 1), -1)
    matrix[0] = -np.poly(roots)[1:]
    return matrix


def similar(n: int, condition: float, seed: int) -> Array:
    """Random eigenvalues under a similarity of the given condition."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((n, n)))[0] for _ in range(2))
    basis = left @ np.diag(np.geomspace(1, 1 / condition, n)) @ right
    return basis @ np.diag(generator.standard_normal(n)) @ np.linalg.inv(basis)


def twins(n: int, distance: float, seed: int) -> Array:
    """Two blocks with nearly the same eigenvalues, coupled."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((2 * n, 2 * n))
    matrix[n:, :n] = 0
    matrix[n:, n:] = matrix[:n, :n] + distance * generator.standard_normal((n, n))
    return matrix


def reference(matrix: Array, value: complex) -> tuple[Any, Any]:
    """The eigenvalue nearest to `value` and its x yᴴ/(yᴴx), by inverse iteration on both sides in 60 digits."""
    n, mp = len(matrix), mpmath.mp
    wide = mp.matrix(matrix.tolist())
    value = mp.mpf(value.real) if value.imag == 0 else mp.mpmathify(value)
    right, left = mp.matrix([mp.cos(k * k + 1) for k in range(n)]), mp.matrix([mp.sin(k * k + 2) for k in range(n)])
    for _ in range(6):
        shift = value + (1 + abs(value)) * mp.mpf(10) ** -45  # beside it: a singular matrix has no LU solve
        factors, transposed = (mp.LU_decomp(part - shift * mp.eye(n)) for part in (wide, wide.T))
        for _ in range(2):
            right = mp.U_solve(factors[0], mp.L_solve(factors[0], right, factors[1]))
            left = mp.U_solve(transposed[0], mp.L_solve(transposed[0], left, transposed[1]))
            right, left = right / mp.norm(right), left / mp.norm(left)
        before, value = value, (left.T * wide * right)[0] / (left.T * right)[0]
        if abs(value - before) <= mp.mpf(10) ** -40 * (1 + abs(value)):
            break
    return value, right * left.T / (left.T * right)[0]


def relative_error(gradient: Array, projector: Any) -> tuple[float, float]:
    """‖Ā − Re Pᵀ‖/κ, and κ = ‖P‖, in 60 digits."""
    n = len(gradient)
    error = total = mpmath.mpf(0)
    for i in range(n):
        for j in range(n):
            entry = projector[j, i]
            error += (mpmath.mpf(float(gradient[i, j])) - mpmath.re(entry)) ** 2
            total += abs(entry) ** 2
    return float(mpmath.sqrt(error / total)), float(mpmath.sqrt(total))


CASES = {
    "grcar-40": (grcar(40), False),
    "grcar-60": (grcar(60), True),
    "grcar-80": (grcar(80), True),
    "grcar-36-2": (grcar(36, 2), False),
    **{f"frank-{n}": (frank(n), False) for n in (10, 12, 14)},
    "kahan-20": (kahan(20), False),
    "kahan-40": (kahan(40), False),
    "clement-64": (clement(64), False),
    "clement-24": (clement(24), False),
    "lesp-24": (lesp(24), False),
    "legs-64": (legs(64), False),
    "legs-24": (legs(24), False),
}


@pytest.mark.parametrize("name", CASES)
def test_rightmost_eigenvalue(name: str) -> None:
    """Relative error of the gradient at most 10 κ eps, by all eigenvalues and by the abscissa alone."""
    array, heavy = CASES[name]
    if heavy and not FULL:
        pytest.skip("seconds of 60-digit arithmetic: set SPECREG_FULL=1")
    with mpmath.workdps(DIGITS):
        matrix = torch.tensor(array, requires_grad=True)
        values = eigenvalues(matrix)
        index = int(values.real.argmax())
        (gradient,) = torch.autograd.grad(values[index].real, matrix)
        exact, projector = reference(array, values[index].item())
        error, condition = relative_error(gradient.numpy(), projector)
        assert error <= 10 * condition * EPS
        assert abs(complex(exact) - values[index].item()) <= 10 * condition * EPS * np.linalg.norm(array)
        assert condition_numbers(matrix)[index].item() == pytest.approx(condition, rel=1e-6)
        (gradient,) = torch.autograd.grad(spectral_abscissa(matrix), matrix)  # of a pair either has the same one
        assert relative_error(gradient.numpy(), projector)[0] <= 10 * condition * EPS


EVERY = {
    **{f"frank-{n}": frank(n) for n in (10, 12, 14)},
    "kahan-20": kahan(20),
    "lesp-16": lesp(16),
    "grcar-16": grcar(16),
    "legs-20": legs(20),
    "clement-16": clement(16),
    "companion": companion(1, 1, 1, 1, -2, 3),
    **{f"similar-{seed}": similar(12, 1e5, seed) for seed in range(2)},
    **{f"twins-{seed}": twins(6, 1e-7, seed) for seed in range(3)},
    "random": np.random.default_rng(0).standard_normal((14, 14)),
    "triangular": np.triu(np.random.default_rng(1).standard_normal((14, 14))),
    "two-scales": np.diag([1e-12, 2e-12, 1.0, 2.0, 3.0]) + np.triu(np.ones((5, 5)), 1),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_eigenvalue_that_stands_alone(name: str) -> None:
    """Wherever 8 eps ‖B‖_F κ is below the gap, B the balanced matrix: relative error of the gradient ≤ 10 κ eps."""
    array = EVERY[name]
    n = len(array)
    with mpmath.workdps(DIGITS):
        exact, left, right = mpmath.mp.eig(mpmath.mp.matrix(array.tolist()), left=True, right=True)
        balanced, (scale, permutation) = matrix_balance(array, separate=True)
        matrix = torch.tensor(array, requires_grad=True)
        values = eigenvalues(matrix)
        every = np.array([complex(each) for each in exact])
        checked = 0
        for index in range(n):
            x, y = right[:, index], left[index, :]
            factor = (y * x)[0]
            projector = x * y / factor
            x_balanced, y_balanced = (np.array([complex(each) for each in part])[permutation] for part in (x, y))
            sides = np.linalg.norm(x_balanced / scale) * np.linalg.norm(y_balanced * scale)
            gap = np.abs(np.delete(every, index) - every[index]).min()
            if 8 * EPS * np.linalg.norm(balanced) * sides / abs(complex(factor)) >= gap:
                continue
            ours = int((values.detach() - every[index]).abs().argmin())
            (gradient,) = torch.autograd.grad(values[ours].real, matrix, retain_graph=True)
            error, condition = relative_error(gradient.numpy(), projector)
            assert error <= 10 * condition * EPS, (index, every[index], condition, error / (condition * EPS))
            checked += 1
    assert checked >= (2 if name.startswith(("companion", "twins", "two")) else 4)


def test_mean_of_a_fourfold_root() -> None:
    """The companion matrix of (x−1)⁴(x+2)(x−3): the mean of the four has the gradient of P_C/4, to 1e-13.

    With q the Taylor polynomial at 1 of 1/((x+2)(x−3)), up to degree 3, P_C = q(A)(A+2)(A−3).
    """
    array = companion(1, 1, 1, 1, -2, 3)
    with mpmath.workdps(DIGITS):
        wide, eye = mpmath.matrix(array.tolist()), mpmath.eye(6)
        taylor = mpmath.taylor(lambda x: 1 / ((x + 2) * (x - 3)), 1, 3)
        shifted = wide - eye
        series = taylor[0] * eye + taylor[1] * shifted + taylor[2] * shifted**2 + taylor[3] * shifted**3
        projector = series * (wide + 2 * eye) * (wide - 3 * eye)
        matrix = torch.tensor(array, requires_grad=True)
        values = eigenvalues(matrix)
        four = (values.detach() - 1).abs() < 0.5
        assert four.sum() == 4
        (gradient,) = torch.autograd.grad(values[four].real.mean(), matrix)
        assert relative_error(4 * gradient.numpy(), projector)[0] <= 1e-13


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("matrix", [lesp, legs, kahan, frank])
def test_trace_of_the_square_of_hard_matrices(n: int, matrix: Any) -> None:
    """Σ Re λ² has gradient 2Aᵀ, however ill-conditioned each eigenvalue is."""
    leaf = torch.tensor(matrix(n), requires_grad=True)
    (gradient,) = torch.autograd.grad(eigenvalues(leaf).square().real.sum(), leaf)
    assert (gradient - 2 * leaf.detach().mT).norm() <= 1e-14 * gradient.norm()
