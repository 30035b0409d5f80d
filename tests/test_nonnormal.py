"""Norms, numerical ranges, departures and pseudospectra, against dense grids, closed forms and differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from specreg.eigen.nonnormal import (
    henrici_departure,
    kreiss_constant,
    numerical_radius,
    pseudospectral_radius,
    spectral_norm,
)
from specreg.testing.operators import assert_close

DTYPES = [torch.float64, torch.complex128]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral_norm": lambda matrix: spectral_norm(matrix).value,
    "numerical_radius": numerical_radius,
    "henrici_departure": henrici_departure,
    "pseudospectral_radius": lambda matrix: pseudospectral_radius(matrix, 0.1),
    "kreiss_lower": lambda matrix: kreiss_constant(matrix)[0],
    "kreiss_upper": lambda matrix: kreiss_constant(matrix)[1],
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def contraction(batch: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Far from normal, of spectral radius 0.9."""
    matrix = random(batch, size, size, seed=seed, dtype=dtype) + 2 * random(
        batch, size, size, seed=seed + 1, dtype=dtype
    ).triu(1)
    return 0.9 * matrix / torch.linalg.eigvals(matrix).abs().amax(-1)[:, None, None]


def jordan(size: int, value: float = 0.0) -> Tensor:
    return value * torch.eye(size, dtype=torch.float64) + torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)


def normal(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    vectors = torch.linalg.qr(random(size, size, seed=3, dtype=torch.complex128))[0]
    values = torch.polar(torch.linspace(0.1, 0.9, size).double(), torch.linspace(0, 5, size).double())
    matrix = (vectors * values) @ vectors.mH
    return matrix if dtype == torch.complex128 else torch.linalg.qr(random(size, size, seed=4))[0]


def heights(matrix: Tensor, radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """σ_min(zI − A) on a polar grid, by NumPy."""
    points = radii[:, None] * np.exp(1j * angles)
    shifted = points[..., None, None] * np.eye(len(matrix)) - matrix.numpy()
    return np.asarray(np.linalg.svd(shifted, compute_uv=False)[..., -1])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 7])
def test_gradient_is_that_of_differences(name: str, dtype: torch.dtype, size: int) -> None:
    """Along random directions, for a batch."""
    function, matrix = FUNCTIONS[name], contraction(3, size, dtype=dtype).requires_grad_()
    for seed in range(3):
        change = random(3, size, size, seed=10 + seed, dtype=dtype)
        (gradient,) = torch.autograd.grad(function(matrix).sum(), matrix)
        with torch.no_grad():
            slope = (function(matrix + 1e-6 * change) - function(matrix - 1e-6 * change)).sum().item() / 2e-6
        assert (gradient.conj() * change).sum().real.item() == pytest.approx(slope, rel=2e-5, abs=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_awkward_matrices_are_finite_and_disturb_no_other(name: str, dtype: torch.dtype) -> None:
    """Zero, identity, shift, triangular, repeated, normal, huge and tiny beside a random one, which is as alone."""
    size, function = 6, FUNCTIONS[name]
    plain = contraction(1, size, seed=7)[0]
    matrices = torch.stack(
        (
            torch.zeros(size, size).double(),
            torch.eye(size).double(),
            jordan(size),
            jordan(size, 0.5),
            random(size, size, seed=5).triu(1),
            torch.diag(torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5, 0.2]).double()),
            normal(size),
            1e30 * plain,
            1e-30 * plain,
            plain,
        )
    ).to(dtype)
    leaf = matrices.clone().requires_grad_()
    values = function(leaf)
    assert values.shape == (10,)
    assert values.dtype == matrices.real.dtype
    assert torch.isfinite(values[[0, 1, 2, 3, 4, 5, 6, 8, 9]]).all()
    (gradient,) = torch.autograd.grad(values[torch.isfinite(values)].sum(), leaf)
    assert torch.isfinite(gradient).all()
    alone = matrices[9].clone().requires_grad_()
    value = function(alone)
    assert value.shape == ()
    precision = 1e-12 if matrices.real.dtype == torch.float64 else 1e-5
    assert_close(value, values[9], precision)
    assert_close(torch.autograd.grad(value, alone)[0], gradient[9], 1e-8 if precision < 1e-8 else 1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_is_named_and_a_wrong_shape_refused(name: str) -> None:
    matrices = random(2, 3, 4, 4)
    matrices[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"batch element \(1, 0\)"):
        FUNCTIONS[name](matrices)
    with pytest.raises(ValueError, match="square"):
        FUNCTIONS[name](random(3, 4))
    assert FUNCTIONS[name](contraction(6, 3).unflatten(0, (2, 3))).shape == (2, 3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_refused(name: str) -> None:
    """Not silently wrong."""
    matrix = contraction(1, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(FUNCTIONS[name](matrix).sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.sum(), matrix)


@pytest.mark.parametrize("name", ["spectral_norm", "numerical_radius", "henrici_departure"])
def test_homogeneity(name: str) -> None:
    """Degree 1: Re Σ Ā̄∘A is the value."""
    for dtype in DTYPES:
        matrix = contraction(2, 9, dtype=dtype).requires_grad_()
        value = FUNCTIONS[name](matrix)
        (gradient,) = torch.autograd.grad(value.sum(), matrix)
        assert_close((gradient.conj() * matrix).sum((-1, -2)).real, value, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("size", [1, 2, 17, 63])
def test_spectral_norm_is_certified(size: int, dtype: torch.dtype) -> None:
    """Bounds hold the exact value, found in higher precision, and are about n² eps apart; at 1e±30 too."""
    for scale in (1.0, 1e30, 1e-30):
        matrix = scale * random(3, size, size, dtype=dtype)
        found = spectral_norm(matrix)
        wide = matrix.to(torch.complex128 if dtype.is_complex else torch.float64)
        exact = torch.linalg.svdvals(wide / scale)[..., 0] * scale
        slack = 1e-14 * exact if matrix.real.dtype == torch.float64 else 0
        assert (found.lower <= exact + slack).all()
        assert (found.upper >= exact - slack).all()
        width = (found.upper - found.lower) / found.value
        assert (width <= 200 * size**2 * torch.finfo(dtype).eps).all()
        assert (found.lower <= found.value).all()
        assert (found.value <= found.upper).all()
    zero = spectral_norm(torch.zeros(4, 4))
    assert zero.value == zero.lower == zero.upper == 0


def test_spectral_norm_of_a_rational_matrix() -> None:
    """[[3, 0], [4, 5]] has norm √45: enclosed."""
    found = spectral_norm(torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64))
    assert found.lower.item() < math.sqrt(45) < found.upper.item()
    assert found.upper.item() - found.lower.item() < 2e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 12])
def test_numerical_radius_is_the_maximum_of_a_dense_grid(size: int, dtype: torch.dtype) -> None:
    matrix = random(4, size, size, dtype=dtype)
    turns = np.exp(1j * np.linspace(0, 2 * np.pi, 20001))
    for one, found in zip(matrix.numpy(), numerical_radius(matrix), strict=True):
        turned = turns[:, None, None] * one
        grid = np.linalg.eigvalsh((turned + turned.conj().swapaxes(1, 2)) / 2)[:, -1].max()
        assert grid - 1e-12 <= found.item() <= grid * (1 + 1e-7)


def test_numerical_radius_in_closed_form() -> None:
    """cos(π/(n+1)) for a shift, the radius of normal ones, half the norm of nilpotents of order 2; two equal peaks."""
    for size in (2, 5, 30):
        assert numerical_radius(jordan(size)).item() == pytest.approx(math.cos(math.pi / (size + 1)), rel=1e-13)
    for dtype in DTYPES:
        matrix = normal(8, dtype)
        assert_close(numerical_radius(matrix), torch.linalg.eigvals(matrix).abs().max(), 1e-12)
    assert numerical_radius(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).item() == pytest.approx(1.0, rel=1e-6)
    skew = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    assert numerical_radius(skew).item() == pytest.approx(3.0, rel=1e-14)
    matrix = random(5, 10, 10)
    radius = torch.linalg.eigvals(matrix).abs().amax(-1)
    norm, found = spectral_norm(matrix).value, numerical_radius(matrix)
    assert ((radius <= found) & (found <= norm) & (norm <= 2 * found)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_henrici_departure_is_that_of_a_schur_form(dtype: torch.dtype) -> None:
    """Of triangular matrices in a random basis, to rounding, however near to normal: 1e-10 too."""
    size = 12
    basis = torch.linalg.qr(random(size, size, seed=8, dtype=dtype))[0]
    diagonal = torch.diag(torch.linspace(-1, 1, size).to(dtype))
    for share in (1.0, 1e-5, 1e-10):
        upper = share * random(size, size, seed=9, dtype=dtype).triu(1)
        matrix = basis @ (diagonal + upper) @ basis.mH
        found = henrici_departure(matrix).item()
        assert found == pytest.approx(torch.linalg.matrix_norm(upper).item(), abs=1e-13)
        values = scipy.linalg.eigvals(matrix.numpy())
        gap = torch.linalg.matrix_norm(matrix).item() ** 2 - (np.abs(values) ** 2).sum()
        assert found == pytest.approx(math.sqrt(max(gap, 0)), abs=1e-6)


def test_henrici_departure_is_that_of_mpmath() -> None:
    """Value and derivative (Re⟨A, dA⟩ − Re Σ λ̄_i y_iᴴ dA x_i)/‖N‖_F of grcar(12), by 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    size, change = 12, random(12, 12, seed=1)
    grcar = torch.diag(-torch.ones(size - 1, dtype=torch.float64), -1) + torch.ones(size, size).double().triu().tril(3)
    with mpmath.workdps(50):
        matrix, moved = (mpmath.matrix(tensor.tolist()) for tensor in (grcar, change))
        values, left, right = mpmath.eig(matrix, left=True, right=True)
        slope = sum(x * y for x, y in zip(matrix, moved, strict=True))
        for i, value in enumerate(values):
            row, column = left[i, :], right[:, i]
            slope -= mpmath.re(mpmath.conj(value) * (row * moved * column)[0] / (row * column)[0])
        exact = mpmath.sqrt(sum(x**2 for x in matrix) - sum(abs(value) ** 2 for value in values))
        expected = float(exact), float(slope / exact)
    leaf = grcar.clone().requires_grad_()
    found = henrici_departure(leaf)
    (gradient,) = torch.autograd.grad(found, leaf)
    assert found.item() == pytest.approx(expected[0], rel=1e-13)
    assert (gradient * change).sum().item() == pytest.approx(expected[1], rel=1e-9)


def test_henrici_departure_of_normal_matrices_is_rounding_with_no_gradient() -> None:
    for matrix in (torch.zeros(5, 5).double(), torch.eye(5).double(), normal(9), normal(9, torch.complex128)):
        leaf = matrix.clone().requires_grad_()
        value = henrici_departure(leaf)
        assert value < 1e-13
        assert (torch.autograd.grad(value, leaf)[0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_pseudospectral_radius_is_that_of_a_dense_grid(size: int, dtype: torch.dtype) -> None:
    """The outermost grid point inside is within a step of it, and no point outside it is inside."""
    for seed, epsilon in ((0, 0.3), (1, 1e-2), (2, 1.0)):
        matrix = contraction(1, size, seed=seed, dtype=dtype)[0]
        found = pseudospectral_radius(matrix, epsilon).item()
        radii, angles = np.linspace(found * 0.98, found * 1.05, 71), np.linspace(-np.pi, np.pi, 1441)
        inside = (heights(matrix, radii, angles) <= epsilon).any(1)
        assert not inside[radii > found * (1 + 1e-9)].any()
        assert inside[radii < found - 2e-3].any()


def test_pseudospectral_radius_in_closed_form() -> None:
    """ρ + ε of normal matrices, √(ε² + ε) of a Jordan block of 2; far above ρ + ε for long ones."""
    for epsilon in (1e-8, 1e-3, 1.0, 1e3):
        for matrix in (normal(6), normal(6, torch.complex128), torch.zeros(4, 4).double(), 5 * torch.eye(3).double()):
            radius = torch.linalg.eigvals(matrix).abs().max().item()
            assert pseudospectral_radius(matrix, epsilon).item() == pytest.approx(radius + epsilon, rel=1e-10)
        found = pseudospectral_radius(jordan(2), epsilon).item()
        assert found == pytest.approx(math.sqrt(epsilon**2 + epsilon), rel=1e-9)
    assert pseudospectral_radius(jordan(32, 0.5), 1e-6).item() > 1
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="epsilon"):
            pseudospectral_radius(jordan(2), epsilon)


def test_pseudospectral_radius_is_attained_by_a_perturbation() -> None:
    """A + ε u vᴴ, u and v of the gradient, has an eigenvalue there; no random one of that norm reaches further."""
    matrix = contraction(1, 8, seed=3)[0]
    found = pseudospectral_radius(matrix, 0.05).item()
    leaf = matrix.to(torch.complex128).requires_grad_()
    (slope,) = torch.autograd.grad(pseudospectral_radius(leaf, 0.05), leaf)
    outward = 0.05 * slope / torch.linalg.matrix_norm(slope)
    assert torch.linalg.eigvals(matrix + outward).abs().max().item() == pytest.approx(found, rel=1e-9)
    draw = random(400, 8, 8, seed=5, dtype=torch.complex128)
    moved = matrix + 0.05 * draw / torch.linalg.matrix_norm(draw, 2)[:, None, None]
    reached = torch.linalg.eigvals(moved).abs().amax(-1).max().item()
    assert reached < found < reached + 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_kreiss_bounds_enclose_a_dense_grid(size: int, dtype: torch.dtype) -> None:
    """Lower: at least the grid and hardly more; upper: at least the lower and at most the largest power."""
    for seed in range(3):
        matrix = contraction(1, size, seed=seed, dtype=dtype)[0]
        lower, upper = (bound.item() for bound in kreiss_constant(matrix))
        radii = 1 + np.logspace(-4, 2, 240)
        grid = ((radii - 1)[:, None] / heights(matrix, radii, np.linspace(-np.pi, np.pi, 361))).max()
        assert max(1.0, grid - 1e-12) <= lower <= max(1.0, grid) * 1.01
        powers = [np.linalg.matrix_power(matrix.numpy(), k) for k in range(200)]
        largest = max(np.linalg.norm(power, 2) for power in powers)
        assert lower <= upper <= largest * (1 + 1e-9)
        assert largest <= math.e * size * lower


def test_kreiss_constant_in_closed_form() -> None:
    """1 for contractions, orthogonal and zero matrices; ∞ past the circle; large for a long shift."""
    for matrix in (torch.zeros(3, 3).double(), torch.eye(4).double(), normal(6), 0.99 * jordan(5), jordan(1, 0.3)):
        for bound in kreiss_constant(matrix):
            assert bound.item() == pytest.approx(1.0, abs=1e-7)
    assert all(bound.item() == math.inf for bound in kreiss_constant(1.1 * normal(6)))
    lower, upper = kreiss_constant(jordan(16, 0.2) + jordan(16))
    assert 1e3 < lower < upper
    # slower than the powers that are looked at: the bound is loose but holds
    slow = torch.tensor([[0.9999, 1.0], [0.0, 0.9999]], dtype=torch.float64)
    lower, upper = kreiss_constant(slow)
    largest = max(np.linalg.norm(np.linalg.matrix_power(slow.numpy(), k), 2) for k in range(0, 40000, 100))
    assert largest / (2 * math.e) <= lower <= largest
    assert lower <= upper < math.inf


def test_sizes_of_sixty_three() -> None:
    """All in reach of a training step."""
    matrix = contraction(1, 63)[0].requires_grad_()
    for name, function in FUNCTIONS.items():
        value = function(0.2 * matrix if name.startswith("kreiss") else matrix)
        (gradient,) = torch.autograd.grad(value, matrix)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
