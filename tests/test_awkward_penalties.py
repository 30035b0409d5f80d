"""Every penalty on one batch of the matrices that break eigensolvers: no exception and no NaN, by any threads."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from specreg import penalties
from specreg.eigen.dense import conditioned_eigenvalues
from specreg.estimators import KernelPolynomial, LanczosQuadrature, Lyapunov
from specreg.operators import Dense, StructuredOperator
from specreg.penalties import Penalty, Sinkhorn
from specreg.spectrum import Density, Exponents, Spectrum, polar
from specreg.system import LinearSystem, System

FULL = os.environ.get("SPECREG_FULL") == "1"
MEMBERS = [
    member
    for member in vars(penalties).values()
    if inspect.isclass(member) and issubclass(member, Penalty) and not inspect.isabstract(member)
]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SIZES = [1, 2, 3, 16, 63, 64, 130, 300] if FULL else [1, 2, 3, 16]
MATRICES = 64
COMPARED = 400  # values that a penalty of all pairs is given
OF_MATRICES = (StructuredOperator, Exponents, Density, LinearSystem)


def awkward(size: int, dtype: torch.dtype) -> Tensor:
    """64 matrices: 16 kinds, drawn four times, complex ones turned by a random phase."""
    return torch.cat([torch.stack(list(kinds(size, dtype, seed))) for seed in range(MATRICES // 16)])


def kinds(size: int, dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    """Random, zero, identity, shifts, triangular, Jordan blocks in sight and hidden, repeated, 1e±30, LegS, normal."""
    draw = torch.Generator().manual_seed(100 * size + seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    random = torch.randn(6, size, size, dtype=wide, generator=draw)
    phase = torch.randn((), dtype=torch.float64, generator=draw)
    turn = torch.polar(torch.ones_like(phase), phase) if dtype.is_complex else torch.ones_like(phase)
    one = torch.eye(size, dtype=wide)
    shift = torch.diag(torch.ones(size - 1, dtype=wide), 1)
    basis = torch.linalg.qr(random[0])[0]
    root = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    legs = -torch.outer(root, root).tril(-1) - torch.diag(torch.arange(1.0, size + 1, dtype=torch.float64))
    thirds = torch.diag((torch.arange(size) // 3).to(wide))
    triangular = (random[1].triu(1), random[2].tril(-1), one + shift, basis @ (one - 0.5 * shift) @ basis.mH)
    scaled = (1e30 * random[3], 1e-30 * random[4], 1e30 * one, 1e-30 * shift)
    others = (basis @ thirds @ basis.mH, legs.to(wide), random[5] - random[5].mH)
    for matrix in (random[0], 0 * one, one, shift, shift.mT, *triangular, *scaled, *others):
        yield (turn * matrix).to(dtype)


def losses(size: int, dtype: torch.dtype, of: tuple[type, ...]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and loss of each penalty that takes one of these, and the matrices that it has a gradient in."""
    matrix = awkward(size, dtype).requires_grad_()
    spectrum = spectrum_of(matrix) if Spectrum in of else None
    for member in MEMBERS:
        penalty = member.example()
        if spectrum is not None and penalty.takes is Spectrum:
            yield member.__name__, penalty(few(spectrum) if isinstance(penalty, Sinkhorn) else spectrum), matrix
        for takes in OF_MATRICES:
            if takes in of and penalty.takes is takes:
                for name, found in knowledge(takes, matrix):
                    yield f"{member.__name__}, {name}", penalty(found()), matrix


def spectrum_of(matrix: Tensor) -> Spectrum:
    """One head of 64 batch elements, κ beside the eigenvalues."""
    size = matrix.shape[-1]
    values, condition = (part.view(MATRICES, 1, 1, size) for part in conditioned_eigenvalues(matrix))
    assert bool(torch.view_as_real(values).isfinite().all())
    return Spectrum(*polar(values), torch.ones(size, dtype=torch.long), condition=condition)


def few(spectrum: Spectrum) -> Spectrum:
    """Matrices of every kind as far as a penalty of all pairs of values has room."""
    count = max(1, COMPARED // spectrum.log_modulus.shape[-1])
    return Spectrum(spectrum.log_modulus[:count], spectrum.phase[:count], spectrum.multiplicity)


def knowledge(takes: type, matrix: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a penalty takes of the batch, in several ways."""
    size = matrix.shape[-1]
    if takes is StructuredOperator:
        yield "matrices", lambda: Dense(matrix)
    elif takes is LinearSystem:
        one = torch.ones(1, 1, 1, size, 1, dtype=matrix.dtype)
        powers = 30 if size <= 64 else 10  # each lag keeps one of every matrix for the gradient
        for name, batch, length in (("constant", (MATRICES, 1, 1), powers), ("varying", (1, MATRICES, 1), MATRICES)):
            values = torch.zeros(batch[0], length, 1, 1, 1, dtype=matrix.real.dtype)
            operator = Dense(matrix.view(*batch, size, size))
            yield name, lambda o=operator, v=values: System(o, one, one.mT, v)  # type: ignore[misc]
    elif takes is Exponents:
        for name, batch in (("constant", (MATRICES, 1, 1)), ("a product", (1, MATRICES, 1))):
            yield name, lambda batch=batch: Lyapunov(min(3, size))(Dense(matrix.view(*batch, size, size)))  # type: ignore[misc]
    elif takes is Density:
        for estimator in (LanczosQuadrature(6, 2), KernelPolynomial(12, 2)):
            yield type(estimator).__name__, lambda e=estimator: e(Dense(0.5 * (matrix + matrix.mH)))  # type: ignore[misc]


def check_finite(size: int, dtype: torch.dtype, of: tuple[type, ...]) -> list[float]:
    """The losses, all of them and their gradients numbers."""
    found = []
    for name, loss, matrix in losses(size, dtype, of):
        assert bool(loss.isfinite()), f"{name}: loss {loss.item()}"
        (gradient,) = torch.autograd.grad(loss, matrix, retain_graph=True)
        numbers = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        bad = (~numbers.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        assert not bad, f"{name}: no number in the gradient of matrices {bad}"
        found.append(loss.item())
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_penalty_of_a_spectrum_is_finite(size: int, dtype: torch.dtype) -> None:
    """Value and gradient by the matrix, condition numbers up to 1/eps among them."""
    assert len(check_finite(size, dtype, (Spectrum,))) == sum(member.takes is Spectrum for member in MEMBERS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_penalty_of_matrices_exponents_and_densities_is_finite(size: int, dtype: torch.dtype) -> None:
    """Value and gradient by the matrix, of the batch's own departure, exponents of its product and its densities."""
    assert len(check_finite(size, dtype, OF_MATRICES)) >= 6


@pytest.mark.parametrize(
    ("size", "dtype", "of"),
    [(64, torch.float64, Spectrum), (130, torch.float64, LinearSystem)],
    ids=str,
)
def test_every_penalty_of_larger_matrices_is_finite(size: int, dtype: torch.dtype, of: type) -> None:
    """In one precision where all of them would take long."""
    assert check_finite(size, dtype, (of,))


ORDERS = [[63, 2, 130, 16, 1, 64, 130], [130, 3, 64]] if FULL else [[16, 2, 16]]


@pytest.mark.parametrize("threads", [1, 2, 8] if FULL else [2])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_any_order_of_calls_by_any_number_of_threads(order: list[int], threads: int) -> None:
    """In a process of its own: finite throughout, and a size that comes again has the losses that it had."""
    # threads that wait do not spin, since other tests share the processors
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-W", "error", __file__, *map(str, order)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.stdout.strip().endswith("done"), done.stderr


def main(order: list[int]) -> None:
    """Every penalty at these sizes, one precision after the other."""
    known: dict[tuple[int, torch.dtype], list[float]] = {}
    for step, size in enumerate(order):
        for dtype in (torch.float64, torch.complex64)[:: 1 - 2 * (step % 2)]:
            found = check_finite(size, dtype, (Spectrum, *OF_MATRICES))
            again = known.setdefault((size, dtype), found)
            assert torch.allclose(torch.tensor(found), torch.tensor(again), rtol=1e-6), (size, dtype)
    print("done")


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
