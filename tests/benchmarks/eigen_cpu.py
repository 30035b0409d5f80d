"""Dense eigenvalues on the CPU, forward and backward, beside `torch.linalg.eigvals`: ours, theirs and the ratio.

Run with OMP_NUM_THREADS=1 for the claims about one thread and OMP_NUM_THREADS=2 for that about two. Both sides
alternate in one process; medians of wall time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from specreg.eigen.dense import eigenvalues
from specreg.eigen.extremal import spectral_abscissa, spectral_radius

# shape, most that all eigenvalues and that radius or abscissa alone may take of torch's time on one thread
CLAIMS = (((1024, 16, 16), 1.1, 0.85, 25), ((256, 64, 64), 1.1, 0.6, 7), ((4, 256, 256), 1.1, 0.8, 9))
TWO_THREADS = 0.75  # of torch's time on two threads, at the first shape
ALL_FLAGGED_SECONDS = 2.0


def forward_and_backward(function: Callable[[Tensor], Tensor], matrix: Tensor) -> float:
    """Seconds for Σ|f(A)| and its gradient."""
    leaf = matrix.clone().requires_grad_()
    start = time.perf_counter()
    function(leaf).abs().sum().backward()
    return time.perf_counter() - start


def alternated(functions: dict[str, Callable[[Tensor], Tensor]], matrix: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of each, the order the same in every round."""
    for function in functions.values():
        forward_and_backward(function, matrix)
    rounds = [{name: forward_and_backward(f, matrix) for name, f in functions.items()} for _ in range(repeats)]
    return {name: statistics.median(each[name] for each in rounds) for name in functions}


def compare(shape: tuple[int, int, int], limits: dict[str, float], repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, dtype=torch.float64, generator=generator)
    ours = {f.__name__: f for f in (eigenvalues, spectral_radius, spectral_abscissa) if f.__name__ in limits}
    medians = alternated({**ours, "torch": torch.linalg.eigvals}, matrix, repeats)
    size = "×".join(map(str, shape))
    for name, limit in limits.items():
        ratio = medians[name] / medians["torch"]
        both = f"{1e3 * medians[name]:8.1f} ms   torch.linalg.eigvals {1e3 * medians['torch']:8.1f} ms"
        print(f"{size:12s} {name:18s} {both}   ratio {ratio:.3f} (claim {limit})")


def all_flagged() -> None:
    """A batch of Jordan blocks, plain and hidden by an orthogonal similarity: every matrix goes cluster by cluster."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.diag_embed(torch.ones(1024, 15, dtype=torch.float64), 1)
    turns = torch.linalg.qr(torch.randn(1024, 16, 16, dtype=torch.float64, generator=generator))[0]
    for name, matrix in (("plain", blocks), ("hidden", turns @ blocks @ turns.mT)):
        seconds = statistics.median(forward_and_backward(eigenvalues, matrix) for _ in range(3))
        print(f"1024 {name} Jordan blocks of 16, all flagged: {seconds:.2f} s (claim {ALL_FLAGGED_SECONDS})")


def main() -> None:
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, float64, {threads} of {os.cpu_count()} threads")
    if threads == 1:
        for shape, every, extreme, repeats in CLAIMS:
            limits = {"eigenvalues": every, "spectral_radius": extreme, "spectral_abscissa": extreme}
            compare(shape, limits, repeats)
        all_flagged()
    else:
        compare(CLAIMS[0][0], {"eigenvalues": TWO_THREADS}, CLAIMS[0][3])


if __name__ == "__main__":
    main()
