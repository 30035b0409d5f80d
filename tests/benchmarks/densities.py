"""Spectral densities fall to the truth as the theory bounds, with error bars that cover it and an unbiased square.

1-Wasserstein errors at n = 4096 on known spectra beside curvlinops with the same products; coverage and bias over seeds
beside their nominal rate and the plain square; value with gradient at n = 1024 beside `torch.linalg.eigvalsh`, and the
value alone beside curvlinops, which has no gradient. Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/densities.py
[repetitions] [seeds]``; the exit status counts misses.
"""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial
from statistics import mean

import torch
from measure import in_turn, installed, row, time_row
from scipy.stats import wasserstein_distance
from torch import Tensor

from specreg.estimators.base import Estimator
from specreg.estimators.kernel_polynomial import KernelPolynomial
from specreg.estimators.quadrature import LanczosQuadrature
from specreg.operators import Dense, LinearOperator
from specreg.spectrum import Density

SIZE, DENSE_SIZE, DRAWS = 4096, 1024, 5


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


def by_curvlinops(
    operator: LinearOperator, ends: tuple[float, float], steps: int, probes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Its grid of λ and the density there, the ends of the spectrum given, so that it spends no products on them."""
    from curvlinops.papyan2020traces.spectrum import PyTorchLinearOperator, lanczos_approximate_spectrum

    class Wrapped(PyTorchLinearOperator):  # type: ignore[misc]
        SELF_ADJOINT = True
        dtype, device = torch.float64, torch.device("cpu")

        def _matmat(self, matrices: list[Tensor]) -> list[Tensor]:
            return [torch.stack([operator.mv(column) for column in matrices[0].unbind(-1)], -1)]

    size = tuple(operator.shape[-1:])
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        wrapped = Wrapped([size], [size])
        found: tuple[Tensor, Tensor] = lanczos_approximate_spectrum(wrapped, steps, num_repeats=probes, boundaries=ends)
    return found


def errors(with_peer: bool) -> int:
    """1-Wasserstein errors over the range, mean of some seeds; allowed is the bound t of the steps and probes taken."""
    spectra = {
        "uniform": torch.linspace(-1, 1, SIZE, dtype=torch.float64),
        "decaying": torch.arange(1, SIZE + 1, dtype=torch.float64).pow(-1.5),
        "two clusters": torch.cat((torch.full((SIZE // 2,), -1.0), torch.full((SIZE // 2,), 1.0))).double(),
    }
    misses = 0
    for (name, spectrum), t in itertools.product(spectra.items(), (0.4, 0.2, 0.1, 0.05)):
        ends = (float(spectrum.min()), float(spectrum.max()))
        steps, probes = math.ceil(12 / t + 0.5), math.ceil(4 * math.log(200 * SIZE) / ((SIZE + 2) * t * t))
        theirs = None
        if with_peer:
            rules = [by_curvlinops(Reflected(spectrum), ends, steps, probes, seed) for seed in range(DRAWS)]
            theirs = mean(error_of(spectrum, *rule) for rule in rules)
        for estimator in (LanczosQuadrature(steps, probes), KernelPolynomial(2 * steps, probes)):
            with torch.no_grad():
                found = [estimator(Reflected(spectrum), torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
            ours = mean(error_of(spectrum, one.nodes.flatten(), one.weights.flatten()) for one in found)
            what = f"W1, {name}, {steps} × {probes}, {type(estimator).__name__}"
            misses += row(what, ours, "curvlinops", theirs, most=t)
    return misses


def error_of(spectrum: Tensor, nodes: Tensor, weights: Tensor) -> float:
    """The 1-Wasserstein distance over the range, by scipy for every side."""
    distance = wasserstein_distance(nodes.numpy(), spectrum.numpy(), weights.numpy())
    return float(distance / (spectrum.max() - spectrum.min()))


def symmetric(size: int, seed: int) -> Tensor:
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = (matrix + matrix.mT) / (2 * size) ** 0.5
    return matrix


def over_seeds(seeds: int) -> int:
    """(1/n) tr e^{A + θB} and its gradient: how often intervals of 90 % hold the truth, and the bias of a square."""
    size, quantile = 60, 1.714  # of Student's law with 23 degrees of freedom, 95 %
    base, slope = symmetric(size, 11), symmetric(size, 12)
    values, vectors = torch.linalg.eigh(base)
    truth, gradient = values.exp().mean(), ((vectors * values.exp()) @ vectors.mT * slope).sum() / size
    slack, misses = 3.3 * math.sqrt(0.9 * 0.1 / seeds), 0
    for estimator in (LanczosQuadrature(24, 24), KernelPolynomial(64, 24)):
        scores, squares = torch.empty(seeds, 2), torch.empty(seeds, 2, dtype=torch.float64)
        for seed in range(seeds):
            theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
            density = estimator(Dense(base + theta * slope), torch.Generator().manual_seed(seed))
            (value, error), (turn, its_error) = density.moment(torch.exp), density.moment_gradient(torch.exp, theta)
            scores[seed] = torch.stack(((value - truth) / error, (turn - gradient) / its_error)).detach()
            plain = (value - truth).square()
            squares[seed] = torch.stack((density.squared_error(torch.exp, truth), plain)).detach()
        name = type(estimator).__name__
        for what, share in zip(("value", "gradient"), scores.abs().le(quantile).double().mean(0).tolist(), strict=True):
            line = f"share of {seeds} intervals, {what}, {name}"
            misses += row(line, share, "nominal", 0.9, least=0.9 - slack, most=0.9 + slack)
        ours, plain_square = (squares.mean(0).abs() / (squares.std(0) / seeds**0.5)).tolist()
        misses += row(f"bias of a square in its errors, {name}", ours, "plain square", plain_square, most=3.5)
    return misses


def costs(repetitions: int, with_peer: bool) -> None:
    """(1/n) tr e^A: 16 probes of 12 steps, with its gradient against all eigenvalues, without against curvlinops."""
    matrix = symmetric(DENSE_SIZE, 0).requires_grad_()

    def with_gradient(estimator: Estimator[Density]) -> None:
        estimator(Dense(matrix)).moment(torch.exp)[0].backward()

    def dense() -> None:
        torch.linalg.eigvalsh(matrix).exp().mean().backward()

    @torch.no_grad()
    def value() -> None:
        LanczosQuadrature(12, 16)(Dense(matrix)).moment(torch.exp)

    for estimator in (LanczosQuadrature(12, 16), KernelPolynomial(48, 16)):
        times = in_turn({"ours": partial(with_gradient, estimator), "eigvalsh": dense}, repetitions)
        time_row(f"moment and gradient, {type(estimator).__name__}", times["ours"], "eigvalsh", times["eigvalsh"])
    if with_peer:
        peer = partial(by_curvlinops, Dense(matrix.detach()), (-2.0, 2.0), 12, 16)
        times = in_turn({"ours": value, "curvlinops": peer}, repetitions)
        time_row("the value alone, LanczosQuadrature", times["ours"], "curvlinops", times["curvlinops"])


def main(repetitions: int = 3, seeds: int = 200) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64")
    with_peer = installed("curvlinops")
    misses = errors(with_peer) + over_seeds(seeds)
    costs(repetitions, with_peer)
    return misses


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
