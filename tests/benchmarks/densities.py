"""Densities at n = 4096 with a known spectrum: error for each number of products, error bars, and the dense peer.

Prints the 1-Wasserstein error of both estimators against the bound of the theory, how far value and gradient of
(1/n) tr e^A are from the truth in standard errors, and value with gradient at n = 1024 against `torch.linalg.eigvalsh`.
With curvlinops installed its density's moment is timed too. Run as ``OMP_NUM_THREADS=1 python
tests/benchmarks/densities.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from specreg.estimators.base import Estimator
from specreg.estimators.kernel_polynomial import KernelPolynomial
from specreg.estimators.quadrature import LanczosQuadrature
from specreg.operators import Dense, LinearOperator
from specreg.spectrum import Density

SIZE, DENSE_SIZE = 4096, 1024


class Reflected(LinearOperator):
    """H diag(d) H with H a product of three reflections: a known spectrum, dense, products in O(n)."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, eigenvalues: Tensor) -> None:
        self.eigenvalues = eigenvalues
        draw = torch.Generator().manual_seed(0)
        vectors = torch.randn(3, len(eigenvalues), dtype=torch.float64, generator=draw)
        self.vectors = vectors / vectors.norm(dim=-1, keepdim=True)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.eigenvalues), len(self.eigenvalues)))

    def mv(self, vector: Tensor) -> Tensor:
        for reflector in self.vectors:
            vector = vector - 2 * (reflector @ vector) * reflector
        vector = self.eigenvalues * vector
        for reflector in self.vectors.flip(0):
            vector = vector - 2 * (reflector @ vector) * reflector
        return vector

    def adjoint(self) -> Reflected:
        return self


def errors() -> int:
    """1-Wasserstein errors, relative to the range, beside the bound t that the numbers of steps and probes promise."""
    spectra = {
        "uniform": torch.linspace(-1, 1, SIZE, dtype=torch.float64),
        "decaying": torch.arange(1, SIZE + 1, dtype=torch.float64).pow(-1.5),
        "two clusters": torch.cat((torch.full((SIZE // 2,), -1.0), torch.full((SIZE // 2,), 1.0))).double(),
    }
    misses = 0
    print("spectrum      t      steps probes     Lanczos      kernel polynomial")
    for name, spectrum in spectra.items():
        span = float(spectrum.max() - spectrum.min())
        for t in (0.4, 0.2, 0.1, 0.05):
            steps, probes = math.ceil(12 / t + 0.5), math.ceil(4 * math.log(200 * SIZE) / ((SIZE + 2) * t * t))
            found = []
            for estimator in (LanczosQuadrature(steps, probes), KernelPolynomial(2 * steps, probes)):
                found.append(float(estimator(Reflected(spectrum)).distance(spectrum)) / span)
            misses += sum(error > t for error in found)
            print(f"{name:12}  {t:<5}  {steps:5} {probes:5}     {found[0]:.5f}      {found[1]:.5f}")
    return misses


def moments() -> int:
    """Value and gradient of (1/n) tr e^{θA} at θ = 1 in standard errors."""
    spectrum = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    truth = (float(spectrum.exp().mean()), float((spectrum * spectrum.exp()).mean()))
    misses = 0
    for estimator in (LanczosQuadrature(16, 24), KernelPolynomial(64, 24)):
        theta = torch.ones((), dtype=torch.float64, requires_grad=True)
        density = estimator(Reflected(spectrum * theta), torch.Generator().manual_seed(1))
        value, gradient = density.moment(torch.exp), density.moment_gradient(torch.exp, theta)
        scores = [(v.item() - t) / e.item() for (v, e), t in zip((value, gradient), truth, strict=True)]
        misses += sum(abs(score) > 4 for score in scores)
        print(f"{type(estimator).__name__}: value {scores[0]:+.2f}, gradient {scores[1]:+.2f} standard errors off")
    return misses


def alternate(ours: Callable[[], None], theirs: Callable[[], None], repetitions: int) -> tuple[float, float]:
    """Median CPU seconds of each, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repetitions + 1):
        for function, found in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            function()
            found.append(time.process_time() - start)
    return median(times[0][1:]), median(times[1][1:])


def costs(repetitions: int) -> None:
    """(1/n) tr e^A with its gradient: 16 probes of 12 steps against all eigenvalues."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(DENSE_SIZE, DENSE_SIZE, dtype=torch.float64, generator=draw)
    matrix = ((matrix + matrix.mT) / (2 * DENSE_SIZE) ** 0.5).requires_grad_()

    def by(estimator: Estimator[Density]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(estimator(Dense(matrix)).moment(torch.exp)[0])

    def dense() -> None:
        torch.linalg.eigvalsh(matrix).exp().mean().backward()

    for estimator in (LanczosQuadrature(12, 16), KernelPolynomial(48, 16)):
        ours, theirs = alternate(by(estimator), dense, repetitions)
        name = type(estimator).__name__
        print(f"{name}, n = {DENSE_SIZE}: {ours:.3f} s, eigvalsh {theirs:.3f} s, ratio {ours / theirs:.3f}")
    if importlib.util.find_spec("curvlinops") is None:
        print("curvlinops is not installed: its column is left out")


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    misses = errors() + moments()
    costs(repetitions)
    sys.exit(misses)


if __name__ == "__main__":
    main()
