"""κ of eigenvalues that occur several times: the norm of the spectral projector, whatever the basis it is found in."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg import operators
from specreg.eigen.dense import condition_numbers, conditioned_eigenvalues
from specreg.operators import StructuredOperator
from specreg.operators.diagonal_plus import DiagonalPlusRankOne
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.spectrum import from_polar

Array = NDArray[Any]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, rng: np.random.Generator, complex_entries: bool) -> Array:
    return np.linalg.qr(rng.standard_normal((n, n)) + 1j * complex_entries * rng.standard_normal((n, n)))[0]


def rotations(n: int, rng: np.random.Generator) -> Array:
    """Scaled rotations of the plane, each several times, and numbers, in an orthogonal basis."""
    matrix = np.diag(rng.choice([1.0, -0.5], n))
    for first in range(0, n - 1, 2):
        modulus, angle = [(1.0, 0.3), (2.0, 1.0), (0.5, 2.0)][int(rng.integers(3))]
        cos, sin = modulus * np.cos(angle), modulus * np.sin(angle)
        matrix[first : first + 2, first : first + 2] = [[cos, sin], [-sin, cos]]
    basis = orthogonal(n, rng, False).real
    return np.asarray(basis @ matrix @ basis.T)


@pytest.mark.parametrize("n", [2, 7, 16, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normal_matrices_with_multiplicities(n: int, dtype: torch.dtype) -> None:
    """κ is 1, however often an eigenvalue occurs: symmetric, unitary and other normal matrices, and multiples of I."""
    rng = np.random.default_rng(n)
    matrices = [np.eye(n), np.zeros((n, n)), -3 * np.eye(n)]
    for _ in range(4):
        few = rng.standard_normal(3)[rng.integers(0, 3, n)]
        if dtype.is_complex:
            basis = orthogonal(n, rng, True)
            matrices += [basis * values @ basis.conj().T for values in (few, np.exp(1j * few), few + 1j * few**2)]
        else:
            basis = orthogonal(n, rng, False).real
            matrices += [basis * few @ basis.T, rotations(n, rng)]
    condition = condition_numbers(torch.stack([torch.as_tensor(each).to(dtype) for each in matrices]))
    assert (condition - 1).abs().max().item() <= 1e3 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_semisimple_eigenvalues(seed: int, complex_entries: bool) -> None:
    """‖P_C‖₂ from the vectors that a matrix is made of, before and after an orthogonal similarity."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 20))
    vectors = orthogonal(n, rng, complex_entries) * np.geomspace(1, 20, n) @ orthogonal(n, rng, complex_entries)
    inverse, values = np.linalg.inv(vectors), rng.choice([1.0, -0.5, 2.5], n)
    matrix = vectors * values @ inverse
    turn = orthogonal(n, rng, complex_entries)
    for each in (matrix, turn @ matrix @ turn.conj().T):
        found, condition = conditioned_eigenvalues(torch.from_numpy(each if complex_entries else each.real))
        for value in np.unique(values):
            members = values == value
            expected = np.linalg.norm(vectors[:, members] @ inverse[members], 2)
            near = (found - value).abs() < 1e-6
            assert int(near.sum()) == members.sum()
            assert np.allclose(condition[near].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("hidden", [False, True])
def test_defective_eigenvalues_are_cut_off(hidden: bool) -> None:
    """A Jordan block has κ far above 1 and at most 1/eps beside a semisimple eigenvalue, whose κ is 1."""
    eps = torch.finfo(torch.float64).eps
    for size in (2, 3, 6):
        block = np.diag(np.full(size, 2.0)) + np.diag(np.ones(size - 1), 1)
        matrix = np.block([[block, np.zeros((size, 3))], [np.zeros((3, size)), -np.eye(3)]])
        turn = orthogonal(size + 3, np.random.default_rng(size), False).real if hidden else np.eye(size + 3)
        values, condition = conditioned_eigenvalues(torch.from_numpy(turn @ matrix @ turn.T))
        defective = (values - 2).abs() < 0.5
        assert int(defective.sum()) == size
        assert 1e6 < condition[defective].min().item() <= condition[defective].max().item() <= 1.01 / eps
        assert torch.allclose(condition[~defective], torch.ones(3, dtype=torch.float64), rtol=1e-12)


def repeated_poles(log_decay: Tensor, gate: Tensor) -> DiagonalPlusRankOne:
    key = torch.nn.functional.normalize(draw(1, 6, 2, 5, seed=1) - 0.5, dim=-1)
    return DiagonalPlusRankOne(log_decay.expand(1, 6, 2, 5), -key, key * gate, torch.zeros(1, 6, 2).double())


MEMBERS = [
    member
    for member in vars(operators).values()
    if inspect.isclass(member) and issubclass(member, StructuredOperator) and not inspect.isabstract(member)
]
GATES = {"of one sign": draw(1, 6, 2, 5, seed=2), "of both signs": draw(1, 6, 2, 5, seed=2) - 0.5}
FORMS: dict[str, StructuredOperator] = {
    **{member.__name__: member.example() for member in MEMBERS},
    "one reflection": RankOneUpdate(draw(1, 6, 2), draw(1, 6, 2, seed=1), draw(1, 6, 2, 5, seed=2)),
    "alike at right angles": HouseholderProduct(
        torch.zeros(1, 6, 2).double(), torch.full((1, 6, 2, 2), 0.7).double(), torch.eye(5).double()[:2]
    ),
    **{
        f"equal poles, gates {name}": repeated_poles(torch.tensor([-0.3]).double(), gate)
        for name, gate in GATES.items()
    },
    **{
        f"pairs of poles, gates {name}": repeated_poles(torch.tensor([-0.3, -0.3, -0.1, -0.1, -0.2]).double(), gate)
        for name, gate in GATES.items()
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_structures_agree_with_their_matrices(name: str) -> None:
    """κ of every structure is κ of the dense solve at the same eigenvalue, as often as it occurs; 1 of normal ones."""
    operator = FORMS[name]
    log_modulus, phase, condition = operator.conditioned()
    assert condition is not None
    values = from_polar(log_modulus, phase).detach()
    dense_values, dense = conditioned_eigenvalues(operator.dense().detach())
    distance = (dense_values.unsqueeze(-1) - values.unsqueeze(-2)).abs()  # (*batch, n, m)
    own = condition.expand(values.shape).gather(-1, distance.argmin(-1))
    torch.testing.assert_close(dense, own, rtol=1e-9, atol=0)
    if operator.normal:
        assert torch.allclose(dense, torch.ones_like(dense), rtol=1e-12)
