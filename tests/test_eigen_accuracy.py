"""Gradients of dense eigenvalues against 60-digit arithmetic, on the matrices that break eigenvector-based ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import matrix_balance, toeplitz

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


# Matrices of everyday kinds, by size and generator. Seeds are such that one step from plain residuals would not do.
FAMILIES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "normal": lambda n, rng: rng.standard_normal((n, n)),
    "complex": lambda n, rng: rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n)),
    "triangular": lambda n, rng: np.triu(rng.standard_normal((n, n))),
    "hidden-triangular": lambda n, rng: turned(np.triu(rng.standard_normal((n, n))), rng),
    "low-rank": lambda n, rng: low_rank_and_noise(n, rng),
    "companion": lambda n, rng: np.diag(np.ones(n - 1), -1) - np.outer(np.eye(n)[0], rng.standard_normal(n)),
    "toeplitz": lambda n, rng: toeplitz(rng.standard_normal(n), rng.standard_normal(n)),
    "badly-scaled": lambda n, rng: badly_scaled(rng.standard_normal((n, n)), rng),
    "product": lambda n, rng: np.linalg.multi_dot(list(rng.standard_normal((4, n, n)))),
    "near-orthogonal": lambda n, rng: np.linalg.qr(rng.standard_normal((n, n)))[0] + 1e-3 * rng.standard_normal((n, n)),
    "near-symmetric": lambda n, rng: near_symmetric(rng.standard_normal((n, n)), rng),
    "ill-conditioned-basis": lambda n, rng: similar(n, 10 ** rng.uniform(1, 6), int(rng.integers(1000))),
}
# each size with its seeds
SAMPLES = {8: range(60), 16: range(20), 32: range(2)} if FULL else {8: range(6), 16: range(2)}


def turned(matrix: Array, rng: np.random.Generator) -> Array:
    basis = np.linalg.qr(rng.standard_normal(matrix.shape))[0]
    return basis @ matrix @ basis.T


def low_rank_and_noise(n: int, rng: np.random.Generator) -> Array:
    rank = max(1, n // 4)
    low_rank = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n))
    return low_rank + 10 ** rng.uniform(-6, -1) * rng.standard_normal((n, n))


def badly_scaled(matrix: Array, rng: np.random.Generator) -> Array:
    scale = 10.0 ** rng.uniform(-4, 4, len(matrix))
    return scale[:, None] * matrix / scale


def near_symmetric(matrix: Array, rng: np.random.Generator) -> Array:
    return matrix + matrix.T + 1e-6 * rng.standard_normal(matrix.shape)


class Fixed:
    """Complex matrices of fixed-point numbers with 240 binary places, as pairs of arrays of Python integers."""

    PLACES = 240

    def __init__(self, real: Array, imag: Array) -> None:
        self.real, self.imag = real, imag

    @staticmethod
    def of(matrix: Array) -> Fixed:
        convert = np.frompyfunc(lambda x: int(Fraction(float(x)) * 2**Fixed.PLACES), 1, 1)
        return Fixed(convert(matrix.real), convert(matrix.imag))

    def __matmul__(self, other: Fixed) -> Fixed:
        a, b, c, d = self.real, self.imag, other.real, other.imag
        return Fixed((a @ c - b @ d) >> self.PLACES, (a @ d + b @ c) >> self.PLACES)

    def __add__(self, other: Fixed) -> Fixed:
        return Fixed(self.real + other.real, self.imag + other.imag)

    def __sub__(self, other: Fixed) -> Fixed:
        return Fixed(self.real - other.real, self.imag - other.imag)

    def __getitem__(self, index: Any) -> Fixed:
        return Fixed(self.real[index], self.imag[index])

    def quotient(self, values: Fixed) -> Fixed:
        """M_ij/(λ_j − λ_i) off the diagonal, 0 on it."""
        off = ~np.eye(len(self.real), dtype=bool)
        x, y = (part[None, :] - part[:, None] for part in (values.real, values.imag))
        square = np.where(off, x * x + y * y, 1)
        a, b = self.real, self.imag
        parts = ((a * x + b * y) << self.PLACES) // square, ((b * x - a * y) << self.PLACES) // square
        return Fixed(*(np.where(off, part, 0) for part in parts))

    def to_float(self) -> Array:
        convert = np.frompyfunc(lambda x: x / 2**self.PLACES, 1, 1)
        real, imag = (np.asarray(convert(part), dtype=float) for part in (self.real, self.imag))
        return real + 1j * imag


def exact_pairs(matrix: Array) -> tuple[Fixed, Fixed, Fixed]:
    """Λ, V and W = V⁻¹ of a matrix to 60 digits: Newton's method in integers from numpy's eigenvectors."""
    _, vectors = np.linalg.eig(matrix.astype(np.result_type(matrix, np.float64)))
    wide, eye = Fixed.of(matrix), Fixed.of(np.eye(len(matrix)))
    right, left = Fixed.of(vectors), Fixed.of(np.linalg.inv(vectors))
    for _ in range(12):
        for _ in range(2):
            left = left + (eye - left @ right) @ left
        inner = left @ wide @ right
        diagonal = Fixed(inner.real.diagonal(), inner.imag.diagonal())
        change = inner.quotient(diagonal)
        right = right + right @ change
        if np.abs(change.to_float()).max() < 1e-62:
            return diagonal, right, left
    raise ArithmeticError("no convergence: eigenvalues that cannot be told apart?")


def eligible(matrix: Array, values: Array, right: Array, left: Array) -> NDArray[np.bool_]:
    """Where 8 eps ‖B‖_F κ is below the gap, B the balanced matrix and κ its condition numbers."""
    eps = np.finfo(matrix.dtype).eps
    balanced, (scale, permutation) = matrix_balance(matrix, separate=True)
    sides = right[permutation] / scale[:, None], left[:, permutation] * scale
    condition = np.linalg.norm(sides[0], axis=0) * np.linalg.norm(sides[1], axis=1)
    distance = np.abs(values[:, None] - values) + np.diag(np.full(len(values), np.inf))
    result: NDArray[np.bool_] = 8 * eps * np.linalg.norm(balanced) * condition < distance.min(1)
    return result


def worst_error(matrix: Array, exact: tuple[Fixed, Fixed, Fixed] | None = None) -> tuple[float, int]:
    """The largest error of a gradient of Re λ or Im λ in κ²·eps, over eligible eigenvalues, and their number."""
    exact = exact or exact_pairs(matrix)
    values, right, left = (part.to_float() for part in exact)
    leaf = torch.tensor(matrix, requires_grad=True)
    ours = eigenvalues(leaf)
    chosen = np.flatnonzero(eligible(matrix, values, right, left))
    worst = 0.0
    for index in chosen:
        found = ours[int((ours.detach() - values[index]).abs().argmin())]
        projector = exact[1][:, index : index + 1] @ exact[2][index : index + 1]
        condition = np.linalg.norm(projector.to_float())
        for part, expected in ((found.real, projector), (found.imag, Fixed(projector.imag, -projector.real))):
            (gradient,) = torch.autograd.grad(part, leaf, retain_graph=True)
            error = (Fixed.of(gradient.mH.resolve_conj().numpy()) - expected).to_float()
            size = np.linalg.norm(error if leaf.is_complex() else error.real)
            worst = max(worst, float(size / (condition**2 * np.finfo(matrix.dtype).eps)))
    return worst, len(chosen)


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("size", SAMPLES)
@pytest.mark.parametrize("name", FAMILIES)
def test_eigenvalues_of_everyday_matrices(name: str, size: int, single: bool) -> None:
    """Relative error of the gradient of every eigenvalue that stands alone at most 10 κ eps, by integer arithmetic."""
    total = 0
    for seed in SAMPLES[size]:
        matrix = FAMILIES[name](size, np.random.default_rng(seed))
        if single:
            matrix = matrix.astype(np.complex64 if np.iscomplexobj(matrix) else np.float32)
        try:
            worst, checked = worst_error(matrix)
        except ArithmeticError:
            continue  # some eigenvalues cannot be told apart even to begin with
        assert worst <= 10, (seed, worst)
        total += checked
    assert total > 0 or name.endswith("triangular")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex64], ids=["double", "single", "complex"])
def test_rounded_products_of_single_precision(dtype: type) -> None:
    """A user who lets torch multiply single precision with fewer digits gets the same accuracy."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        for name in ("normal", "low-rank", "product"):
            assert worst_error(FAMILIES[name](12, np.random.default_rng(1)).astype(dtype))[0] <= 10
    finally:
        setting.fp32_precision = before


def hidden_triangular(size: int, seed: int) -> tuple[Array, tuple[Fixed, Fixed, Fixed]]:
    """H T Hᵀ, T upper triangular and H orthogonal, all without rounding, and its Λ, V and W = V⁻¹, by substitution.

    T holds multiples of 2⁻¹², H is a product of five I − 2uuᵀ/uᵀu, u of sixteen ±1: each adds 6 binary digits.
    """
    rng = np.random.default_rng(seed)
    triangle = np.triu(np.round(rng.standard_normal((size, size)) * 2**12) / 2**12, 1)
    triangle += np.diag(rng.choice(np.arange(-(2**13), 2**13), size, replace=False) / 2**12)
    matrix, turn = triangle, np.eye(size)
    for _ in range(5):
        vector = np.zeros(size)
        vector[rng.permutation(size)[:16]] = rng.choice([-1.0, 1.0], 16)
        reflection = np.eye(size) - np.outer(vector, vector) / 8
        matrix, turn = reflection @ matrix @ reflection, reflection @ turn
    exact = Fixed.of(triangle).real
    values = exact.diagonal()
    right, left = (Fixed.of(np.eye(size)).real for _ in range(2))
    for step in range(1, size):  # x_i = −Σ_{j>i} t_ij x_j/(t_ii − λ), a diagonal at a time; w likewise
        for i in range(size - step):
            j = i + step
            right[i, j] = (exact[i, i + 1 : j + 1] @ right[i + 1 : j + 1, j]) // (values[j] - values[i])
            left[i, j] = (left[i, i:j] @ exact[i:j, j]) // (values[i] - values[j])
    vectors = [Fixed(part, np.zeros_like(part)) for part in (right, left)]
    return matrix, (
        Fixed(values, np.zeros_like(values)),
        Fixed.of(turn) @ vectors[0],
        vectors[1] @ Fixed.of(turn.T),
    )


@pytest.mark.parametrize("seed", range(30) if FULL else [3, 25])
def test_neighbours_that_cannot_be_told_apart(seed: int) -> None:
    """Eigenvalues with room around them among others with κ of 1e13, which float64 mixes into their vectors."""
    matrix, exact = hidden_triangular(64, seed)
    values, right, _ = exact
    shifted = Fixed(right.real * values.real >> Fixed.PLACES, right.imag)
    assert np.abs((Fixed.of(matrix) @ right - shifted).to_float()).max() <= 1e-60
    worst, checked = worst_error(matrix, exact)
    assert worst <= 10 and checked >= 10


def test_integer_arithmetic_agrees_with_mpmath() -> None:
    """The oracle of the test above against mpmath's inverse iteration."""
    matrix = FAMILIES["low-rank"](6, np.random.default_rng(3))
    values, right, left = exact_pairs(matrix)
    with mpmath.workdps(DIGITS):
        for index in range(6):
            value, projector = reference(matrix, complex(values[index].to_float()))
            ours = right[:, index : index + 1] @ left[index : index + 1]
            unit = mpmath.mpf(2) ** Fixed.PLACES
            for i in range(6):
                for j in range(6):
                    entry = mpmath.mpc(ours.real[i, j], ours.imag[i, j]) / unit
                    assert abs(entry - projector[i, j]) <= mpmath.mpf(10) ** -38 * (1 + abs(projector[i, j]))
            assert abs(mpmath.mpc(int(values.real[index]), int(values.imag[index])) / unit - value) <= 1e-38


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
