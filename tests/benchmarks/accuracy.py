"""Gradients of dense eigenvalues are right to 10 κ·eps, and there is one for every finite matrix.

The rightmost eigenvalue of the classical test matrices against 60-digit arithmetic, in units of κ·eps, and the gradient
of Σ Re λ, which is I, on zero, identity, shift, Jordan, repeated and scaled matrices, beside `torch.linalg.eigvals`.
Matrices and arithmetic are those of the tests: it takes the `test` extra. Run as ``OMP_NUM_THREADS=1 python
tests/benchmarks/accuracy.py [largest n of the 60-digit arithmetic]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mpmath
import torch
from measure import row
from torch import Tensor

from specreg.eigen.dense import eigenvalues

sys.path.append(str(Path(__file__).parents[1]))
from test_eigen import awkward
from test_eigen_accuracy import CASES, DIGITS, EPS, Array, reference, relative_error

Solve = Callable[[Tensor], Tensor]


def in_condition_units(array: Array, solve: Solve) -> float:
    """‖error of the gradient of the rightmost Re λ‖ / (κ² eps), κ its norm: relative, in units of κ·eps."""
    matrix = torch.tensor(array, requires_grad=True)
    values = solve(matrix)
    index = int(values.real.argmax())
    (gradient,) = torch.autograd.grad(values[index].real, matrix)
    _, projector = reference(array, values[index].item())
    error, condition = relative_error(gradient.numpy(), projector)
    return error / (condition * EPS)


def is_right(matrix: Tensor, solve: Solve) -> bool:
    """Whether Σ Re λ has the gradient I to 1e-8; what raises has none."""
    leaf = matrix.clone().requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(solve(leaf).real.sum(), leaf)
    except torch.linalg.LinAlgError:
        return False
    return bool((gradient - torch.eye(len(matrix)).to(gradient)).abs().max() <= 1e-8)


def main(largest: int = 40) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64")
    peer, misses = "torch.linalg.eigvals", 0
    with mpmath.workdps(DIGITS):
        for name, (array, _) in CASES.items():
            if len(array) <= largest:
                ours, theirs = (in_condition_units(array, solve) for solve in (eigenvalues, torch.linalg.eigvals))
                misses += row(f"rightmost of {name}, error of the gradient", ours, peer, theirs, "κ·eps", most=10)
    for size in (2, 16, 64):
        matrices = awkward(size)
        ours, theirs = (
            sum(not is_right(matrix, solve) for matrix in matrices) for solve in (eigenvalues, torch.linalg.eigvals)
        )
        misses += row(f"{len(matrices)} awkward {size}×{size}, wrong gradients", ours, peer, theirs, most=0)
    return misses


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
