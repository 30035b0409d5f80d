"""Spectral radius with its gradient by products, against torch's dense eigenvalues, forward and backward.

Non-normal matrices with one outlier (sizes 512, 1024, 2048), the same after a relative change of 1e-3 from the earlier
result, and pure Ginibre matrices of size 1024, which have no gap and go to a dense solve. Residual 1e-7, float64, one
thread, both sides alternate in one process; then scipy's `eigs` on A and Aᵀ with a gradient by hand. Run as
``OMP_NUM_THREADS=1 python tests/benchmarks/krylov.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from peers import arpack_row
from torch import Tensor

from specreg.estimators.certificate import DenseInstead, TornPair
from specreg.estimators.krylov import Arnoldi
from specreg.operators import Dense
from specreg.spectrum import Extremes

ARNOLDI = Arnoldi(1, tolerance=1e-7)
OUTLIER_BUDGETS = {512: 1 / 10, 1024: 1 / 28, 2048: 1 / 28}
WARM_BUDGET, GINIBRE_BUDGET = 0.55, 0.9


def outlier(size: int, seed: int = 0) -> Tensor:
    """0.9 Ginibre + 0.3 strict upper triangle + 1.5 uuᵀ + 0.8 uvᵀ."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    bulk = (0.9 * normal(size, size) + 0.3 * torch.triu(normal(size, size), 1)) / math.sqrt(size)
    u, v = torch.nn.functional.normalize(normal(2, size), dim=-1)
    return bulk + 1.5 * torch.outer(u, u) + 0.8 * torch.outer(u, v)


def ginibre(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / math.sqrt(size)


def by_products(matrix: Tensor) -> tuple[Tensor, Tensor, Extremes]:
    leaf = matrix.clone().requires_grad_()
    found = ARNOLDI(Dense(leaf))
    (gradient,) = torch.autograd.grad(found.eigenvalues.abs().sum(), leaf)
    return found.eigenvalues.detach().abs()[0], gradient, found


def by_torch(matrix: Tensor) -> tuple[Tensor, Tensor]:
    leaf = matrix.clone().requires_grad_()
    radius = torch.linalg.eigvals(leaf).abs().amax()
    (gradient,) = torch.autograd.grad(radius, leaf)
    return radius.detach(), gradient


def timed(function: Callable[[Tensor], object], matrix: Tensor) -> float:
    start = time.process_time()
    function(matrix)
    return time.process_time() - start


def against_torch(name: str, matrix: Tensor, budget: float, repetitions: int) -> bool:
    """Print times, ratio and errors; True for a miss."""
    value, gradient, found = by_products(matrix)
    true, slope = by_torch(matrix)
    pairs = []
    for repetition in range(repetitions):
        order = [by_products, by_torch] if repetition % 2 else [by_torch, by_products]
        times = {function: timed(function, matrix) for function in order}
        pairs.append((times[by_products], times[by_torch]))
    ours, theirs, ratio = median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs)
    print(
        f"{name:16} {1e3 * ours:8.1f} ms, torch {1e3 * theirs:8.1f} ms, ×{ratio:.4f} (1/{1 / ratio:.1f}), budget "
        f"{budget:.4f}{' OVER' * (ratio > budget)}; {found.num_matvecs} products, certified "
        f"{found.converged.all().item()}, residual {found.residuals.max().item():.1e}, error "
        f"{abs(value - true).item():.1e}, of the gradient {((gradient - slope).norm() / slope.norm()).item():.1e}"
    )
    return ratio > budget


def warm(size: int) -> bool:
    """Products after a relative change of 1e-3, over three changes; True for a miss."""
    matrix = outlier(size)
    cold, shares = ARNOLDI(Dense(matrix)), []
    for seed in range(3):
        change = ginibre(size, seed + 7)
        near = matrix + 1e-3 * change * matrix.norm() / change.norm()
        again = ARNOLDI(Dense(near), start=cold)
        shares.append(again.num_matvecs / cold.num_matvecs)
        assert bool(again.converged.all())
    share = median(shares)
    print(f"{f'warm start {size}':16} ×{share:.3f} of {cold.num_matvecs} products, budget {WARM_BUDGET}", end="")
    print(" OVER" * (share > WARM_BUDGET))
    return share > WARM_BUDGET


def main(repetitions: int = 5) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64, residual {ARNOLDI.tolerance}")
    misses = sum(
        against_torch(f"outlier {n}", outlier(n), budget, repetitions) for n, budget in OUTLIER_BUDGETS.items()
    )
    for n in OUTLIER_BUDGETS:
        matrix = outlier(n)
        arpack_row(f"outlier {n}", partial(by_products, matrix), matrix, 1e-7, repetitions)
    misses += sum(warm(size) for size in OUTLIER_BUDGETS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        misses += against_torch("Ginibre 1024", ginibre(1024), GINIBRE_BUDGET, repetitions)
    dense = [str(one.message) for one in said if issubclass(one.category, DenseInstead)]
    assert dense and all(issubclass(one.category, (DenseInstead, TornPair)) for one in said)
    print(f"{'':16} it says: {dense[0]}")
    return misses


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
