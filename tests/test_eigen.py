"""Dense eigenvalues: identities that hold for every matrix, no failure on any finite one, every order of derivative."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from specreg.eigen.dense import cluster_means, condition_numbers, eigenvalues
from specreg.eigen.extremal import spectral_abscissa, spectral_radius
from specreg.eigen.pairs import eigenpairs, power_scaled, power_unscaled
from specreg.eigen.precise import residual
from specreg.operators import Dense

DTYPES = [torch.float64, torch.complex128, torch.float32, torch.complex64]
FULL = bool(os.environ.get("SPECREG_FULL"))


@pytest.fixture(autouse=True)
def quiet_first_use() -> Iterator[None]:
    """torch warns of its own use of `torch.jit.script` when forward mode is first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def jordan(value: float, n: int) -> Tensor:
    return torch.diag(torch.ones(n - 1, dtype=torch.float64), 1) + value * torch.eye(n, dtype=torch.float64)


def legs(n: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    root = (2 * i + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(i + 1))


def lesp(n: int) -> Tensor:
    k = torch.arange(2, n + 1, dtype=torch.float64)
    return torch.diag(-torch.arange(5, 2 * n + 5, 2, dtype=torch.float64)) + torch.diag(k, 1) + torch.diag(1 / k, -1)


def awkward(n: int) -> list[Tensor]:
    """Matrices of the kinds that break an eigensolver or its gradient, and random ones between them."""
    eye, random = torch.eye(n, dtype=torch.float64), [normal(n, n, seed=k) for k in range(8)]
    half = n // 2
    turn = orthogonal(n, 9)
    repeated = turn @ torch.diag(torch.arange(n, dtype=torch.float64) // 3) @ turn.mT
    hidden = turn @ torch.block_diag(jordan(0.5, n - half), *([jordan(-1.0, half)] if half else [])) @ turn.mT
    basis = [
        random[0],
        0 * eye,
        eye,
        jordan(0, n),
        jordan(0, n).mT,
        random[1].triu(1),
        random[2].tril(-1),
        jordan(1, n),
    ]
    basis += [
        repeated,
        hidden,
        random[3] * 1e30,
        random[4] * 1e-30,
        legs(n),
        legs(n).mT,
        eye * 1e30,
        jordan(0, n) * 1e-30,
    ]
    basis += [
        torch.outer(random[5][0], random[5][-1]),
        eye.roll(1, 0),
        lesp(n) if n > 1 else -5 * eye,
        random[6].triu(),
    ]
    basis += [random[7] - random[7].mT, random[7] + random[7].mT, eye + 1e-9 * random[0], -3 * eye, turn]
    return basis


def gradient(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    leaf = matrix.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(leaf), leaf)
    return result


def relative(value: Tensor, expected: Tensor) -> float:
    wide = torch.complex128 if value.is_complex() else torch.float64
    value, expected = value.to(wide), expected.to(wide)
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "modulus": lambda matrix: eigenvalues(matrix).abs().sum(),
    "mixed": lambda matrix: (lambda x: x.real.sum() + (x.imag * x.real).abs().sqrt().sum())(
        eigenvalues(matrix / matrix.detach().abs().amax((-1, -2), keepdim=True).clamp_min(1e-37)) + (0.3 + 0.1j)
    ),
    "means": lambda matrix: cluster_means(matrix).abs().sum(),
    "radius": lambda matrix: spectral_radius(matrix).sum(),
    "abscissa": lambda matrix: spectral_abscissa(matrix).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 16, 63])
def test_awkward_batch_is_finite_and_each_matrix_stands_alone(n: int, dtype: torch.dtype, loss: str) -> None:
    """A mixed batch gives finite values and gradients, and each matrix the gradient that it gets alone."""
    matrices = torch.stack([each.to(dtype) for each in awkward(n)])
    matrices = torch.cat([matrices, matrices.flip(0), matrices[:14]])
    assert len(matrices) == 64
    together = gradient(LOSSES[loss], matrices)
    assert torch.isfinite(torch.view_as_real(eigenvalues(matrices))).all()
    assert torch.isfinite(torch.view_as_real(together) if dtype.is_complex else together).all()
    for index in range(0, 25, 1 if n < 20 or FULL else 6):
        if index == 20 and loss in ("modulus", "means"):
            continue  # a skew matrix of odd size has an eigenvalue 0, where the modulus has no gradient
        alone = gradient(LOSSES[loss], matrices[index])
        tolerance = 1e-5 if matrices.real.dtype == torch.float32 else 1e-11
        assert relative(together[index], alone) <= tolerance * condition_numbers(matrices[index]).max().item() or (
            torch.equal(together[index], alone)
        )


@pytest.mark.parametrize("n", [130, 300] if FULL else [130])
def test_large_awkward_matrices(n: int) -> None:
    matrices = torch.stack(awkward(n)[:: 1 if FULL else 4])
    assert torch.isfinite(gradient(LOSSES["modulus"], matrices)).all()
    assert torch.isfinite(gradient(LOSSES["radius"], matrices)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 16, 63])
def test_gradient_of_the_trace_is_the_identity(n: int, dtype: torch.dtype) -> None:
    matrices = torch.stack([each.to(dtype) for each in awkward(n)])
    result = gradient(lambda matrix: eigenvalues(matrix).real.sum(), matrices)
    error = (result - torch.eye(n, dtype=dtype)).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("n", [1, 2, 16, 64])
def test_gradient_of_the_trace_of_the_square(n: int, dtype: torch.dtype) -> None:
    """Σ Re λ² has gradient 2Aᴴ on every matrix that is not defective, LegS and lesp included."""
    defective = (3, 4, 5, 6, 7, 15)
    matrices = [each.to(dtype) for index, each in enumerate(awkward(n)) if index not in defective]
    matrices = torch.stack([*matrices, legs(n).to(dtype), lesp(max(n, 2))[:n, :n].to(dtype)])
    result = gradient(lambda matrix: eigenvalues(matrix).square().real.sum(), matrices)
    for value, matrix in zip(result, matrices, strict=True):
        assert relative(value, 2 * matrix.mH) <= 1e-14 * max(1, n**0.5) or matrix.abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_homogeneity(dtype: torch.dtype) -> None:
    """Re Σ conj(Ā)∘A = Re Σ conj(ḡ) λ: the eigenvalues are homogeneous of degree 1 in the matrix."""
    matrices = [normal(12, 12, dtype=dtype), lesp(24).to(dtype), legs(10).to(dtype), normal(6, 6).triu().to(dtype)]
    for matrix in matrices:
        leaf = matrix.clone().requires_grad_()
        values = eigenvalues(leaf)
        cotangent = normal(len(matrix), seed=3, dtype=torch.complex128)
        (result,) = torch.autograd.grad(values, leaf, cotangent)
        expected = (cotangent.conj() * values).real.sum().item()
        size = (condition_numbers(matrix) * values.abs()).sum().item()
        assert abs((result.conj() * matrix).real.sum().item() - expected) <= 1e-14 * size


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_mean_of_a_hidden_jordan_block(size: int) -> None:
    """The mean of the cluster, found through an orthogonal similarity, has gradient P_Cᴴ/m by an ordered Schur form."""
    n = size + 8
    turn = orthogonal(n, size)
    other = torch.diag(torch.linspace(3, 6, 8, dtype=torch.float64))
    inner = torch.block_diag(jordan(1.0, size), other)
    inner[:size, size:] = 0.3 * normal(size, 8, seed=size)
    matrix = turn @ inner @ turn.mT
    cluster = (eigenvalues(matrix) - 1).abs().topk(size, largest=False).indices
    for function in (eigenvalues, cluster_means):
        values = function(matrix)
        assert abs(values[cluster].mean().item() - 1) <= 1e-13
        leaf = matrix.clone().requires_grad_()
        near = (function(leaf) - 1).abs().detach() < 1.5
        assert near.sum() == size
        (result,) = torch.autograd.grad(function(leaf)[near].real.mean(), leaf)
        schur, basis, count = scipy.linalg.schur(matrix.numpy(), sort=lambda x, y=0.0: abs(complex(x, y) - 1) < 1.5)
        assert count == size
        solution = scipy.linalg.solve_sylvester(schur[:size, :size], -schur[size:, size:], schur[:size, size:])
        projector = basis[:, :size] @ (basis[:, :size] + basis[:, size:] @ solution.T).T
        assert relative(result, torch.from_numpy(projector).mT / size) <= 1e-12


@pytest.mark.parametrize("complex_matrix", [False, True])
def test_clusters_of_conjugate_pairs(complex_matrix: bool) -> None:
    """Jordan blocks of λ and λ̄ are two clusters with complex projectors; a real gradient is their real part."""
    block = torch.kron(jordan(0, 3), torch.eye(2).double()) + torch.kron(
        torch.eye(3).double(), torch.tensor([[1.0, 2], [-2, 1]], dtype=torch.float64)
    )
    turn = orthogonal(10, 3)
    inner = torch.block_diag(block, torch.diag(torch.tensor([5.0, 6, 7, 8], dtype=torch.float64)))
    inner[:6, 6:] = normal(6, 4)
    matrix = turn @ inner @ turn.mT
    matrix = matrix.to(torch.complex128) if complex_matrix else matrix
    leaf = matrix.clone().requires_grad_()
    values = cluster_means(leaf)
    near = (values - (1 + 2j)).abs() < 1e-8
    assert near.sum() == 3
    (result,) = torch.autograd.grad((values[near] * (0.7 - 0.4j)).real.sum(), leaf)
    schur, basis, _ = scipy.linalg.schur(matrix.numpy(), output="complex", sort=lambda x: abs(x - (1 + 2j)) < 1)
    solution = scipy.linalg.solve_sylvester(schur[:3, :3], -schur[3:, 3:], schur[:3, 3:])
    projector = torch.from_numpy(basis[:, :3] @ (basis[:, :3] + basis[:, 3:] @ solution.conj().T).conj().T)
    expected = (projector * (0.7 - 0.4j)).mH
    assert relative(result, expected if complex_matrix else expected.real) <= 1e-12


def test_condition_numbers() -> None:
    """κ against scipy's left and right vectors; it is 1 for normal matrices and cut off for defective ones."""
    for matrix in (normal(9, 9), lesp(12), normal(7, 7, dtype=torch.complex128), normal(8, 8).triu()):
        values, left, right = scipy.linalg.eig(matrix.numpy(), left=True, right=True)
        expected = 1 / np.abs((left.conj() * right).sum(0))
        ours, where = condition_numbers(matrix), eigenvalues(matrix.clone().requires_grad_()).detach().numpy()
        order = np.abs(values[None, :] - where[:, None]).argmin(1)
        assert np.allclose(ours.numpy(), expected[order], rtol=1e-6)
    assert torch.allclose(condition_numbers(orthogonal(6)), torch.ones(6, dtype=torch.float64))
    defective = condition_numbers(jordan(2.0, 5))
    assert torch.isfinite(defective).all() and (defective > 1e8).all()


def test_errors() -> None:
    matrices = normal(2, 3, 4, 4)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = matrices.clone()
        broken[1, 2, 0, 3] = bad
        for function in (eigenvalues, cluster_means, condition_numbers, spectral_radius, spectral_abscissa):
            for tracked in (False, True):
                with pytest.raises(ValueError, match=r"batch element \(1, 2\) holds a NaN or an infinity"):
                    function(broken.clone().requires_grad_(tracked))
        with pytest.raises(ValueError, match=r"\(1, 2\)"):
            Dense(broken).eigenvalues()
    for function in (eigenvalues, cluster_means, condition_numbers, spectral_radius, spectral_abscissa):
        with pytest.raises(ValueError, match="square"):
            function(normal(3, 4))
        with pytest.raises(ValueError, match="float32"):
            function(torch.eye(3, dtype=torch.int64))
    huge = torch.full((2, 2), torch.finfo(torch.float64).max, dtype=torch.float64)
    huge[1, 0] *= -1
    assert torch.isfinite(torch.view_as_real(eigenvalues(huge.triu() / 4))).all()  # a sum that overflows is no NaN


def test_batch_shapes() -> None:
    for shape in ((4, 4), (0, 4, 4), (2, 3, 4, 4), (1, 1, 1)):
        matrix = normal(*shape).requires_grad_()
        assert eigenvalues(matrix).shape == shape[:-1]
        assert spectral_radius(matrix).shape == shape[:-2]
        eigenvalues(matrix).abs().sum().backward()
        assert matrix.grad is not None and matrix.grad.shape == shape
        assert eigenvalues(matrix.detach()).shape == shape[:-1]
    transposed = normal(3, 5, 5).mT.requires_grad_()
    assert torch.allclose(gradient(LOSSES["modulus"], transposed), gradient(LOSSES["modulus"], transposed.contiguous()))


def test_values_with_and_without_a_gradient_agree() -> None:
    matrix = normal(6, 12, 12)
    tracked = eigenvalues(matrix.clone().requires_grad_()).detach()
    assert (tracked - eigenvalues(matrix)).abs().max() <= 1e-12


def several(matrix: Tensor) -> Tensor:
    values = eigenvalues(matrix)
    return torch.stack([values.real.pow(3).sum(-1), values.abs().sum(-1), (values * values.imag.abs()).real.sum(-1)])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_gradcheck(dtype: torch.dtype) -> None:
    matrix = normal(2, 3, 3, dtype=dtype, seed=4).requires_grad_()
    if not dtype.is_complex:
        assert eigenvalues(matrix.detach()).imag.count_nonzero() in (2, 4)  # pairs and real values
    assert gradcheck(several, matrix, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(several, matrix, check_fwd_over_rev=True, check_batched_grad=True)
    for function in (spectral_radius, spectral_abscissa):
        assert gradcheck(function, matrix, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, matrix, check_fwd_over_rev=True)
    assert gradcheck(lambda matrix: cluster_means(matrix).abs(), matrix, check_forward_ad=True)


def scalar(values: Tensor) -> Tensor:
    return (values.abs() ** 1.5).sum() + (values.imag.abs() * values.real).sum()


def test_every_nesting_of_forward_reverse_and_vmap() -> None:
    """Hessians by every route, batched inside and outside, against torch's own, one matrix at a time."""
    matrices = normal(3, 4, 4)
    loss = lambda matrix: scalar(eigenvalues(matrix))  # noqa: E731
    expected = torch.stack(
        [torch.autograd.functional.hessian(lambda a: scalar(torch.linalg.eigvals(a)), each) for each in matrices]
    )
    routes = (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f)))
    for route in routes:
        assert relative(vmap(route(loss))(matrices), expected) <= 1e-12
        whole = route(lambda batch: vmap(loss)(batch).sum())(matrices)
        for index in range(3):
            assert relative(whole[index, :, :, index], expected[index]) <= 1e-12
    assert relative(vmap(grad(loss))(matrices), gradient(loss, matrices)) <= 1e-13
    radius = vmap(hessian(spectral_radius))(matrices)
    theirs = [
        torch.autograd.functional.hessian(lambda a: torch.linalg.eigvals(a).abs().max(), each) for each in matrices
    ]
    # the maximum over a pair of equal moduli is divided between them there, with the same real gradient
    assert relative(radius, torch.stack(theirs)) <= 1e-11


def test_third_derivative() -> None:
    matrix = normal(3, 3, seed=5)
    expected = jacrev(jacrev(jacrev(lambda a: scalar(torch.linalg.eigvals(a)))))(matrix)
    for route in (lambda f: jacrev(jacrev(jacrev(f))), lambda f: jacfwd(jacrev(jacfwd(f)))):
        assert relative(route(lambda a: scalar(eigenvalues(a)))(matrix), expected) <= 1e-11


def test_extremes_equal_those_of_all_eigenvalues() -> None:
    """Radius and abscissa by inverse iteration against the full decomposition, awkward matrices included."""
    for n in (1, 2, 5, 40):
        matrices = torch.stack([*awkward(n), *normal(20, n, n, seed=n)])
        matrices = matrices / matrices.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
        for extreme, measure in ((spectral_radius, torch.abs), (spectral_abscissa, torch.real)):
            values = measure(eigenvalues(matrices)).amax(-1)
            assert (extreme(matrices) - values).abs().max() <= 1e-12
            ours = gradient(lambda matrix, extreme=extreme: extreme(matrix).sum(), matrices[25:])
            full = gradient(lambda matrix, measure=measure: measure(eigenvalues(matrix)).amax(-1).sum(), matrices[25:])
            assert relative(ours, full) <= 1e-12 * n


def test_radius_of_zero_and_jordan_block() -> None:
    assert torch.equal(gradient(lambda matrix: spectral_radius(matrix), torch.zeros(3, 3)), torch.zeros(3, 3))
    block = jordan(0.5, 6)
    assert relative(gradient(spectral_radius, block), torch.eye(6, dtype=torch.float64) / 6) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scaling_by_powers_of_two_is_exact(dtype: torch.dtype) -> None:
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    matrix = torch.stack([torch.eye(2), torch.zeros(2, 2), torch.tensor([[1.0, 2], [3, 4]])]).to(dtype)
    for factor in (1.0, 2.0**20, tiny, tiny / 64, largest / 8):
        scaled, exponent = power_scaled(matrix * factor)
        assert torch.equal(power_unscaled(scaled[:, 0], exponent), (matrix * factor)[:, 0])
        assert scaled.abs().amax((-1, -2))[[0, 2]].log2().abs().max() <= 5


def test_residual_to_twice_the_precision() -> None:
    """Against rational arithmetic, on a pair whose residual cancels to the last bits."""
    from fractions import Fraction

    for dtype in (torch.float64, torch.complex128):
        matrix, vectors = normal(9, 9, dtype=dtype), torch.linalg.eig(normal(9, 9, dtype=dtype))[1][:, :3]
        values = normal(3, seed=2, dtype=torch.complex128)

        def exact(z: complex) -> tuple[Fraction, Fraction]:
            return Fraction(complex(z).real), Fraction(complex(z).imag)

        found = residual(matrix, vectors, values)
        for i in range(9):
            for j in range(3):
                real = imag = Fraction(0)
                for left, right, sign in [
                    *((matrix[i, k].item(), vectors[k, j].item(), 1) for k in range(9)),
                    (values[j].item(), vectors[i, j].item(), -1),
                ]:
                    (a, b), (c, d) = exact(left), exact(right)
                    real, imag = real + sign * (a * c - b * d), imag + sign * (a * d + b * c)
                assert abs(Fraction(found[i, j].real.item()) - real) <= 2.0**-95 + 2.0**-52 * abs(real)
                assert abs(Fraction(found[i, j].imag.item()) - imag) <= 2.0**-95 + 2.0**-52 * abs(imag)


def test_pairs_hold_what_they_say() -> None:
    """Invariant subspaces and dual bases, from the cluster's mean outward, of every awkward matrix."""
    for n in (2, 16, 40):
        matrices = torch.stack(awkward(n))
        matrices = matrices / matrices.abs().amax((-1, -2), keepdim=True).clamp_min(1e-300)
        pairs = eigenpairs(matrices)
        assert pairs.clusters is not None
        assert ((pairs.condition >= 1) & (pairs.condition <= 1.01 / torch.finfo(torch.float64).eps)).all()
        for matrix, right, left, clusters, condition in zip(
            matrices, pairs.right, pairs.left, pairs.clusters, pairs.condition, strict=True
        ):
            for cluster in clusters.unique():
                members = clusters == cluster
                if members.sum() == 1:
                    continue
                x, y = right[:, members], left[:, members]
                size = x.norm() * y.norm()
                assert (
                    y.mT @ x - torch.eye(len(x.mT), dtype=x.dtype)
                ).norm() <= 1e-13 * size or not pairs.flagged.any()
                outside = matrix @ x - x @ (y.mT @ matrix @ x)
                assert outside.norm() <= 1e-11 * size * matrix.norm() or condition[members].min() < 1e3


def test_memory_is_flat_and_state_untouched() -> None:
    import gc

    before = torch.random.get_rng_state()
    matrix = normal(4, 6, 6).requires_grad_()
    for _ in range(20):
        gradient(LOSSES["modulus"], matrix.detach())
    gc.collect()
    count = sum(type(each) is Tensor for each in gc.get_objects())
    for _ in range(1000 if FULL else 200):
        gradient(LOSSES["modulus"], matrix.detach())
    gc.collect()
    assert sum(type(each) is Tensor for each in gc.get_objects()) <= count + 5
    assert torch.equal(before, torch.random.get_rng_state())


THREADS_PROGRAM = """
import torch
from specreg.eigen.dense import eigenvalues
from specreg.eigen.extremal import spectral_radius
torch.manual_seed(0)
threads = torch.get_num_threads()
for order in ([16, 160, 3], [160, 16]):
    for n in order:
        batch = torch.randn(max(2, 5000 // n**2), n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        leaf = batch.clone().requires_grad_()
        eigenvalues(leaf).abs().sum().backward()
        spectral_radius(leaf).sum().backward()
        assert torch.isfinite(leaf.grad).all(), n
        alone = batch[1].clone().requires_grad_()
        eigenvalues(alone).abs().sum().backward()
        spectral_radius(alone).backward()
        assert torch.allclose(leaf.grad[1], alone.grad, rtol=1e-9, atol=1e-10), n
assert torch.get_num_threads() == threads
print("done")
"""


@pytest.mark.parametrize("threads", [1, 2, 8] if FULL else [2])
def test_threads(threads: int) -> None:
    """Batches of every size in any order, where torch's own batched LU hangs or dies."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", THREADS_PROGRAM], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.stdout.strip() == "done", done.stderr
