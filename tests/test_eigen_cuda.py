"""The CUDA kernel for eigenpairs against LAPACK in double precision, 60-digit arithmetic, and identities."""

from __future__ import annotations

from collections.abc import Callable

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from specreg.eigen.cuda import Plan, eigenpairs, gradient, source, supports
from specreg.eigen.dense import eigenvalues
from specreg.eigen.pairs import Pairs

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the eigenvalue kernel is not tested")
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SIZES = [1, 2, 3, 7, 16, 31, 32, 33, 63, 64, 65, 100, 128]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    real = torch.float32 if dtype in (torch.float32, torch.complex64) else torch.float64
    parts = [torch.randn(*shape, generator=generator, dtype=real) / shape[-1] ** 0.5 for _ in range(2)]
    return torch.complex(*parts) if dtype.is_complex else parts[0]


def eps(matrix: Tensor) -> float:
    return torch.finfo(matrix.dtype).eps


def wide(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().resolve_conj().to(torch.complex128))


def paired(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest distance under the best matching."""
    distance = np.abs(found[:, None] - wanted[None])
    return float(distance[scipy.optimize.linear_sum_assignment(distance)].max())


def pulled(pairs: Pairs, matrix: Tensor, cotangent: Tensor, clusters: Tensor | None = None, degree: int = 1) -> Tensor:
    parts = (pairs.values, pairs.right, pairs.left, pairs.condition, clusters)
    return gradient(cotangent, matrix, *parts, degree)


def test_plan_fits_and_source_is_packaged() -> None:
    assert source().count('extern "C" __global__') == 2
    for limit in (48 << 10, 99 << 10, 227 << 10):
        for double in (False, True):
            for size in range(1, 257):
                plan = Plan.of(size, double, limit)
                assert plan.shared_bytes(size) <= limit
                assert plan.largest_block >= 64 * -(-size // 32)
    assert Plan.of(128, False, 227 << 10).hessenberg_shared
    assert not supports(torch.zeros(1, 4, 4))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 200, 256])
def test_values_vectors_and_condition(size: int, dtype: torch.dtype) -> None:
    matrix = normal(5, size, size, dtype=dtype, seed=size)
    pairs = eigenpairs(matrix.cuda())
    a, values, right, left = (wide(each) for each in (matrix, pairs.values, pairs.right, pairs.left))
    norm = float(np.linalg.norm(a, axis=(1, 2)).max())
    condition = pairs.condition.double().cpu().numpy()
    good = ~pairs.flagged.cpu().numpy()
    assert good.sum() >= 4
    rows = np.conj(np.swapaxes(left, -1, -2))
    assert np.abs(a @ right - right * values[:, None, :])[good].max() <= 20 * eps(matrix) * norm
    left_error = np.abs(rows @ a - values[:, :, None] * rows).max(-1) / condition
    assert left_error[good].max() <= 20 * eps(matrix) * norm
    for index in np.nonzero(good)[0]:
        exact = np.linalg.eigvals(a[index])
        assert paired(values[index], exact) <= 8 * eps(matrix) * norm * condition[index].max() + 1e-13 * norm
        assert np.abs(rows[index] @ right[index] - np.eye(size)).max() <= 40 * eps(matrix) * condition[index].max() ** 2
    assert np.allclose(np.linalg.norm(right, axis=1)[good], 1, atol=20 * eps(matrix))
    assert np.allclose(np.linalg.norm(left, axis=1)[good], condition[good], rtol=1e-4)
    if not dtype.is_complex:
        assert all(paired(each, each.conj()) == 0 for each in values[good])


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_gradient_against_double_precision(size: int, dtype: torch.dtype) -> None:
    matrix = normal(4, size, size, dtype=dtype, seed=size).cuda()
    pairs = eigenpairs(matrix)
    cotangent = normal(4, size, dtype=torch.complex128, seed=9).to(pairs.values)
    found = wide(pulled(pairs, matrix, cotangent.cuda()))
    for index in (~pairs.flagged).nonzero()[:, 0].tolist():
        values, right = np.linalg.eig(wide(matrix[index]))
        own = wide(pairs.values[index])
        order = np.abs(values[:, None] - own[None]).argmin(1)
        given = wide(cotangent[index])[order]
        wanted = ((right * given.conj()) @ np.linalg.inv(right)).conj().T
        wanted = wanted if dtype.is_complex else wanted.real
        kappa = float(pairs.condition[index].max())
        assert np.linalg.norm(found[index] - wanted) <= 50 * eps(matrix) * kappa**2 * np.linalg.norm(wanted) + 1e-11


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**99, 2.0**-99])
def test_gradient_identities(dtype: torch.dtype, scale: float) -> None:
    """Σ Re λ has gradient I, Σ Re λ² has 2Aᴴ, and Re Σ Ā*A = Re Σ ḡ*λ."""
    matrix = normal(6, 24, 24, dtype=dtype).cuda() * scale
    pairs = eigenpairs(matrix)
    eye = torch.eye(24, dtype=dtype).cuda().expand(6, 24, 24)
    torch.testing.assert_close(pulled(pairs, matrix, torch.ones_like(pairs.values)), eye, rtol=0, atol=4 * eps(matrix))
    square = pulled(pairs, matrix, 2 * pairs.values.conj())
    error = (square / scale - 2 * matrix.mH / scale).abs().max()
    assert error <= 40 * eps(matrix)
    cotangent = normal(6, 24, dtype=torch.complex128, seed=2).to(pairs.values).cuda()
    result = pulled(pairs, matrix, cotangent)
    total = (result.conj() * (matrix / scale)).sum((-1, -2)).real
    wanted = (cotangent.conj() * (pairs.values / scale)).sum(-1).real
    torch.testing.assert_close(total, wanted, rtol=0, atol=2e3 * eps(matrix))


@on_gpu
def test_gradient_averages_over_clusters() -> None:
    matrix = normal(3, 9, 9).cuda()
    pairs = eigenpairs(matrix)
    clusters = torch.tensor([0, 1, 1, 3, 4, 1, 6, 3, 8]).expand(3, 9).cuda()
    cotangent = normal(3, 9, dtype=torch.complex128).cuda()
    mean = cotangent.clone()
    for members in ([1, 2, 5], [3, 7]):
        mean[:, members] = cotangent[:, members].mean(-1, keepdim=True)
    torch.testing.assert_close(
        pulled(pairs, matrix, cotangent, clusters), pulled(pairs, matrix, mean, degree=0), rtol=0, atol=1e-12
    )


def jordan(size: int) -> np.ndarray:
    return np.asarray(0.5 * np.eye(size) + np.diag(np.ones(size - 1), 1))


def legs(size: int) -> np.ndarray:
    n = np.arange(size)
    return np.asarray(-(np.tril(np.sqrt((2 * n[:, None] + 1) * (2 * n + 1)), -1) + np.diag(n + 1.0)))


def grcar(size: int) -> np.ndarray:
    above = sum(np.diag(np.ones(size - k), k) for k in (1, 2, 3))
    return np.asarray(np.eye(size) - np.diag(np.ones(size - 1), -1) + above)


def frank(size: int) -> np.ndarray:
    i, j = np.indices((size, size)) + 1
    return np.where(j >= i - 1, size + 1.0 - np.maximum(i, j), 0)


def clement(size: int) -> np.ndarray:
    return np.diag(np.arange(size - 1.0, 0, -1), -1) + np.diag(np.arange(1.0, size), 1)


def awkward(size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(size)
    plain = generator.standard_normal((size, size)) / size**0.5
    orthogonal = np.linalg.qr(plain)[0]
    return {
        "random": plain,
        "zero": np.zeros((size, size)),
        "identity": np.eye(size),
        "cyclic": np.roll(np.eye(size), 1, 0),
        "shift": np.diag(np.ones(size - 1), -1),
        "jordan": jordan(size),
        "jordan transposed": jordan(size).T,
        "hidden jordan": orthogonal @ jordan(size) @ orthogonal.T,
        "triangular": np.triu(plain),
        "strictly triangular": np.triu(plain, 1),
        "lower": np.tril(plain),
        "repeated": orthogonal @ np.diag(np.arange(size) // 2 + 1.0) @ orthogonal.T,
        "tiny": plain * 1e-30,
        "huge": plain * 1e30,
        "denormal": plain * 1e-42,
        "legs": legs(size),
        "rank one": np.outer(plain[0], plain[-1]),
        "graded": plain * np.logspace(0, -25, size)[:, None],
        "symmetric": plain + plain.T,
        "orthogonal": orthogonal,
        "ones": np.ones((size, size)),
    }


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2, 3, 16, 20, 63, 130])
def test_awkward_matrices_end_finite_and_right_or_flagged(size: int, dtype: torch.dtype) -> None:
    cases = awkward(size)
    matrix = torch.stack([torch.from_numpy(each) for each in cases.values()]).to(dtype)
    pairs = eigenpairs(matrix.cuda())
    assert torch.isfinite(pairs.values).all()
    assert torch.isfinite(pairs.condition).all()
    flagged = dict(zip(cases, pairs.flagged.tolist(), strict=True))
    for name in ("zero", "identity", "jordan", "jordan transposed", "strictly triangular", "repeated"):
        assert flagged[name], name
    for name in ("random", "cyclic", "tiny", "huge", "symmetric", "orthogonal"):
        assert not flagged[name], name
    largest = np.abs(wide(matrix)).max((1, 2)) * size
    for index, name in enumerate(cases):  # eigenvalues are those of a matrix near by: check trace and, if simple, all
        trace = np.trace(wide(matrix[index]))
        assert abs(wide(pairs.values[index]).sum() - trace) <= 50 * eps(matrix) * size * largest[index] + 1e-44, name
        if not flagged[name] and name not in ("triangular", "lower", "graded", "legs"):
            exact = np.linalg.eigvals(wide(matrix[index]))
            kappa = float(pairs.condition[index].max())
            step = 4 * torch.finfo(dtype).smallest_normal * eps(matrix)  # of numbers too small to be normal
            bound = (8 * eps(matrix) + 1e-13) * largest[index] * kappa + step
            assert paired(wide(pairs.values[index]), exact) <= bound, name


@on_gpu
def test_each_matrix_is_as_alone_and_twice_the_same() -> None:
    for dtype in DTYPES:
        matrix = normal(70, 20, 20, dtype=dtype).cuda()
        together, again = eigenpairs(matrix), eigenpairs(matrix)
        for name in ("values", "right", "left", "condition"):
            assert torch.equal(getattr(together, name), getattr(again, name))
        alone = eigenpairs(matrix[41:42])
        assert torch.equal(alone.right[0], together.right[41])
        assert torch.equal(alone.values[0], together.values[41])


@on_gpu
def test_single_precision_is_tried_again_in_double() -> None:
    """Two eigenvalues 1e-4 apart with κ of some hundred: too close in single precision, simple in double."""
    basis = normal(12, 12, seed=3)
    values = torch.linspace(-1, 1, 12, dtype=torch.float64)
    values[1] = values[0] + 1e-4
    matrix = (basis @ torch.diag(values) @ torch.linalg.inv(basis)).float()
    near = eigenpairs(torch.stack([matrix, torch.from_numpy(jordan(12)).float()]).cuda())
    assert near.flagged.tolist() == [False, True]
    assert near.clusters is None
    assert paired(wide(near.values[0]), np.linalg.eigvals(wide(matrix))) <= 1e-6
    alone = eigenpairs(matrix[None].cuda())
    assert alone.clusters is not None and alone.values.dtype == torch.complex64


@on_gpu
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_names_the_batch_element_that_is_not_finite(value: float, dtype: torch.dtype) -> None:
    matrix = normal(6, 5, 5, dtype=dtype)
    matrix[4, 1, 2] = value
    with pytest.raises(ValueError, match=r"batch element \(4,\)"):
        eigenpairs(matrix.cuda())
    with pytest.raises(ValueError, match=r"batch element \(2, 0\)"):
        eigenpairs(matrix.cuda().unflatten(0, (3, 2)))
    assert eigenpairs(matrix[:4].cuda()).values.shape == (4, 5)


@on_gpu
def test_layouts_streams_and_empty_batches() -> None:
    matrix = normal(4, 10, 10, dtype=torch.complex128).cuda()
    wanted = eigenpairs(matrix.mH.contiguous().resolve_conj())
    assert torch.equal(eigenpairs(matrix.mH).values, wanted.values)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = eigenpairs(matrix.mH)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(beside.values, wanted.values)
    assert eigenpairs(matrix[:0]).right.shape == (0, 10, 10)
    assert pulled(eigenpairs(matrix[:0]), matrix[:0], matrix.new_zeros(0, 10)).shape == (0, 10, 10)


def loss(values: Tensor) -> Tensor:
    return values.abs().square().sum() + (values**3).real.sum()


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_eigenvalues_are_those_of_the_cpu_flagged_matrices_too(dtype: torch.dtype) -> None:
    cases = {name: each for name, each in awkward(8).items() if name not in ("denormal", "graded", "legs")}
    matrix = torch.stack([torch.from_numpy(each / max(np.abs(each).max(), 1e-300)) for each in cases.values()])
    sides = [matrix.to("cuda", dtype).requires_grad_(), matrix.requires_grad_()]
    found, wanted = (wide(torch.autograd.grad(loss(eigenvalues(each)), each)[0]) for each in sides)
    error, size = (np.linalg.norm(each, axis=(1, 2)) for each in (found - wanted, wanted))
    tolerance = 3e-4 if eps(sides[0]) > 1e-10 else 1e-9
    assert (error <= tolerance * (1e-3 + size)).all(), dict(zip(cases, error, strict=True))


@on_gpu
def test_public_eigenvalues_have_second_derivatives_and_transforms() -> None:
    matrix = normal(3, 5, 5).cuda().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: eigenvalues(m).abs().sort().values, matrix)
    assert torch.autograd.gradgradcheck(lambda m: (eigenvalues(m) ** 3).real.sum(-1), matrix)
    with torch.no_grad():
        assert torch.equal(eigenvalues(matrix), eigenpairs(matrix).values)
    plain = torch.autograd.grad(loss(eigenvalues(matrix)), matrix)[0]
    each = torch.func.vmap(torch.func.grad(lambda m: loss(eigenvalues(m))))(matrix.detach())
    torch.testing.assert_close(each, plain, rtol=0, atol=1e-11)


CASES: list[tuple[str, Callable[[int], np.ndarray], int]] = [
    ("grcar", grcar, 24),
    ("grcar", grcar, 40),
    ("frank", frank, 10),
    ("frank", frank, 12),
    ("clement", clement, 32),
]


@on_gpu
@pytest.mark.parametrize(("name", "family", "size"), CASES, ids=[f"{name}-{size}" for name, _, size in CASES])
def test_rightmost_gradient_against_60_digits(name: str, family: Callable[[int], np.ndarray], size: int) -> None:
    matrix = torch.from_numpy(family(size)).cuda()[None]
    pairs = eigenpairs(matrix)
    assert not bool(pairs.flagged[0]), name
    index = int(pairs.values[0].real.argmax())
    cotangent = torch.zeros_like(pairs.values)
    cotangent[0, index] = 1
    found = pulled(pairs, matrix, cotangent)[0].cpu().numpy()
    wanted = exact_gradient(family(size), pairs.values[0, index].item())
    kappa = float(pairs.condition[0, index])
    assert np.linalg.norm(found - wanted) <= 10 * kappa * eps(matrix) * np.linalg.norm(wanted)


def exact_gradient(matrix: np.ndarray, start: complex) -> np.ndarray:
    """Re (y vᴴ)/(vᴴ y) by two-sided inverse iteration with 60 digits."""
    with mpmath.workdps(60):
        size = len(matrix)
        a, value = mpmath.matrix(matrix.tolist()), mpmath.mpc(start)
        right = left = mpmath.ones(size, 1)
        for _ in range(6):
            shifted = a - (value + mpmath.mpf(10) ** -45) * mpmath.eye(size)
            right = mpmath.lu_solve(shifted, right)
            left = mpmath.lu_solve(shifted.T, left)
            right, left = right / mpmath.norm(right), left / mpmath.norm(left)
            value = (left.T * a * right)[0] / (left.T * right)[0]
        outer = right * left.T / (left.T * right)[0]
        return np.array([[float(outer[j, i].real) for j in range(size)] for i in range(size)])
