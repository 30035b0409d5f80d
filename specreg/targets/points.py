"""Laws of single values: on the real axis, on a grid of phases, given one by one, from a model, from a task's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from specreg.spectrum import Spectrum, polar
from specreg.targets.base import Outline, Planar, Target, both, check_count, fold, midpoints

SMALLEST, LARGEST = 1e-300, 1e300  # moduli that a number holds
MOST_POLES = 16  # of an autocorrelation


@dataclass(frozen=True)
class Signed(Planar):
    """Real eigenvalues uniform on [low, high], negative ones among them: phase 0 or π.

    Parity and other finite-state tasks need λ < 0 (Grazzi et al. 2024, arXiv 2411.12537).
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -1 <= self.low < self.high <= 1:
            raise ValueError(f"signed({self.low}, {self.high}): allowed are -1 <= low < high <= 1")

    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        value = self.low + first * (self.high - self.low)
        return value.abs().log(), math.pi * (value < 0).to(value)

    def support(self) -> tuple[float, float]:
        smallest = 0.0 if self.low < 0 < self.high else min(abs(self.low), abs(self.high))
        return (math.log(smallest) if smallest else -math.inf), math.log(max(abs(self.low), abs(self.high)))

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        folded, modulus = fold(phase), log_modulus.exp()
        positive = (folded <= tolerance) & (modulus >= self.low - tolerance) & (modulus <= self.high + tolerance)
        negative = (folded >= math.pi - tolerance) & (-modulus >= self.low - tolerance)
        return positive | (negative & (-modulus <= self.high + tolerance))

    def outline(self) -> Outline:
        """The interval, as a curve."""
        ends = sorted({self.low, self.high} | ({0.0} if self.low < 0 < self.high else set()))
        return Outline(curves=(polar(torch.tensor(ends, dtype=torch.complex128)),))

    @classmethod
    def example(cls) -> Self:
        return cls(-0.9, 0.95)


@dataclass(frozen=True)
class FourierGrid(Target):
    """λ_k = e^{−1/τ} e^{2πik/N}, k = 0 … N − 1: the frequencies of a Fourier transform of N steps, one timescale.

    With τ long against N a diagonal model starts as a transform of its last N inputs (discrete Fourier poles:
    2508.20441).
    """

    size: int  # N
    timescale: float  # τ, steps

    def __post_init__(self) -> None:
        if self.size < 2 or not 0 < self.timescale < math.inf:
            raise ValueError(
                f"fourier_grid({self.size}, {self.timescale}): allowed are a size of at least 2 and a timescale over 0"
            )

    @property
    def max_phase(self) -> float | None:  # type: ignore[override]
        """The largest folded phase: π, or π − π/N for odd N."""
        return 2 * math.pi * (self.size // 2) / self.size

    def log_modulus_quantile(self, probability: Tensor) -> Tensor:
        return torch.full_like(probability, -1 / self.timescale)

    def phase_quantile(self, probability: Tensor) -> Tensor:
        # folded, in order: 0 once, then each frequency twice, and π once for even N
        index = (probability * self.size).long().clamp(0, self.size - 1)
        return ((index + 1) // 2).to(probability) * (2 * math.pi / self.size)

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        spacing = 2 * math.pi / self.size
        off = (fold(phase) - (fold(phase) / spacing).round() * spacing).abs()
        return ((log_modulus + 1 / self.timescale).abs() <= tolerance) & (off <= tolerance)

    def outline(self) -> Outline:
        middle = midpoints(self.size)
        return Outline(points=(both(self.log_modulus_quantile(middle), self.phase_quantile(middle)),))

    @classmethod
    def example(cls) -> Self:
        return cls(16, 100.0)


@dataclass(frozen=True, init=False, repr=False)
class Points(Planar):
    """Given values of equal weight, as modulus and phase in turn: `Points(0.9, 0.1, 0.5, 3.14)` is two of them.

    Phases of any sign; conjugates are one value. `Points.of` takes complex numbers.
    """

    numbers: tuple[float, ...]

    def __init__(self, *numbers: float) -> None:
        if not numbers or len(numbers) % 2:
            raise ValueError(
                f"{type(self).__name__} takes moduli and phases in turn, as in points(0.9, 0.1, 0.5, 3.14), got "
                f"{len(numbers)} numbers"
            )
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers) or min(numbers[::2]) < 0:
            raise ValueError(
                f"{type(self).__name__}: allowed are moduli of at least 0 and finite phases, got {numbers}"
            )
        object.__setattr__(self, "numbers", tuple(float(x) for x in numbers))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.numbers))})"

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """The points of a complex or real tensor, ``(n,)``."""
        return cls._of(*polar(values.detach().to(torch.complex128)))

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """log-moduli in increasing order and folded phases, each ``(n,)``, float64."""
        modulus, phase = torch.tensor(self.numbers, dtype=torch.float64).view(-1, 2).unbind(-1)
        order = modulus.argsort(stable=True)
        return modulus[order].log(), fold(phase[order])

    def place(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        log_modulus, phase = (x.to(first.device) for x in self.values)
        index = (first * len(phase)).long().clamp(0, len(phase) - 1)
        return log_modulus[index], phase[index]

    def support(self) -> tuple[float, float]:
        log_modulus, _ = self.values
        return float(log_modulus[0]), float(log_modulus[-1])

    def contains(self, log_modulus: Tensor, phase: Tensor, tolerance: float = 1e-6) -> Tensor:
        own_modulus, own_phase = (x.to(log_modulus.device) for x in self.values)
        value = log_modulus.unsqueeze(-1)
        near = (value == own_modulus) | ((value - own_modulus).abs() <= tolerance)  # −inf − (−inf) is not a number
        return (near & ((fold(phase).unsqueeze(-1) - own_phase).abs() <= tolerance)).any(-1)

    def outline(self) -> Outline:
        return Outline(points=(both(*self.values),))

    @classmethod
    def example(cls) -> Self:
        return cls(0.9, 0.1, 0.5, 3.0, 0.99, 1.5)

    @classmethod
    def _of(cls, log_modulus: Tensor, phase: Tensor) -> Self:
        modulus = log_modulus.double().exp().clamp(SMALLEST, LARGEST)
        return cls(*torch.stack((modulus, phase.double()), -1).flatten().tolist())


class Empirical(Points):
    """The spectrum of another model: `Empirical.from_spectrum(Exact()(system))`; numbers as in `Points`."""

    @classmethod
    def from_spectrum(cls, spectrum: Spectrum, count: int = 256) -> Self:
        """At most `count` values for the law of those that count; each keeps its own phase.

        All of them where they are as few and of equal weight, else those at the middles of `count` equal shares of the
        weight, ordered by modulus. Moduli beyond 1e±300 are taken as that. Raises `ValueError` if no step counts.
        """
        check_count(count)
        weights = spectrum.weights().double()
        if not bool(weights.any()):
            raise ValueError("no step of the spectrum counts: a law needs at least one value")
        keep = weights > 0
        log_modulus, phase, share = (
            x.detach().cpu()[keep.cpu()] for x in (spectrum.log_modulus, spectrum.phase, weights)
        )
        if not bool(log_modulus.isnan().logical_or(phase.isnan()).any()):
            return cls._of(*quantised(log_modulus, phase, share, count))
        raise ValueError("the spectrum holds a NaN at a step that counts: a law is made of numbers")

    @classmethod
    def example(cls) -> Self:
        return cls(0.95, 0.3, 0.4, 0.0, 0.7, 2.0, 0.99, 0.6)


class PowerSpectrum(Points):
    """Timescales and phases of a task's own input: `PowerSpectrum.from_batch(inputs)`; numbers as in `Points`.

    A model whose modes have this law has, on average, a kernel shaped as the input's autocorrelation.
    """

    @classmethod
    def from_batch(cls, inputs: Tensor, mask: Tensor | None = None, count: int = 32, longest_lag: int = 256) -> Self:
        """The poles λ_j of the autocorrelation Σ_j c_j λ_j^k at lags k ≥ 1, each with the weight |c_j|.

        `inputs` are tokens ``(B, T)``, correlated where they are equal, or channels ``(B, T, C)``, about their mean;
        `mask` ``(B, T)`` is True at steps that count. The poles are those of a matrix pencil (Hua, Sarkar 1990), which
        is exact for an autoregressive input, of as many as stand out of the sampling error; lag 0 has no part, since
        white noise adds to it alone. Timescales are cut at ten times the longest lag. The weights are given to `count`
        values. Raises `ValueError` for an input that is constant, white to within its sampling error, or shorter than 8
        steps.
        """
        check_count(count)
        correlation, errors = autocorrelation(inputs, mask, longest_lag)
        if not bool((correlation.abs() > 5 * errors).any()):
            raise ValueError(
                "the input is white noise to within its sampling error: it has no timescale of its own; use a target "
                "such as LogUniformTimescale, or more sequences"
            )
        poles, weights = pencil(correlation, float(errors.mean()))
        log_modulus, phase = polar(poles)
        log_modulus = log_modulus.clamp_max(-0.1 / len(correlation))
        upper = phase >= 0
        share = torch.where((phase > 0) & (phase < math.pi), 2.0, 1.0).to(weights) * weights
        kept = upper & (share > 1e-3 * share.sum())
        return cls._of(*quantised(log_modulus[kept], phase[kept], share[kept], count))

    @classmethod
    def example(cls) -> Self:
        return cls(0.98, 0.1, 0.98, 0.2, 0.9, 0.0)


def autocorrelation(inputs: Tensor, mask: Tensor | None, longest_lag: int) -> tuple[Tensor, Tensor]:
    """The autocorrelation at lags 1, 2, … and the standard error that white noise would have there, float64.

    Lags of up to half the steps, and no longer than a quarter as many pairs count as at lag 1.
    """
    if inputs.dim() not in (2, 3) or inputs.shape[1] < 8:
        raise ValueError(
            f"inputs are tokens (B, T) or channels (B, T, C) of at least 8 steps, got {tuple(inputs.shape)}"
        )
    counts = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
    products = _products(inputs.detach().cpu(), counts)
    power = products(0)[counts].mean()
    if not bool(power > 0):
        raise ValueError("the input is constant: it has no autocorrelation")
    values, errors, most = [], [], 0
    for lag in range(1, min(longest_lag, inputs.shape[1] // 2) + 1):
        pairs = counts[:, lag:] & counts[:, :-lag]
        size = int(pairs.sum())
        most = max(most, size)
        if size < max(1, most // 4):
            break
        found = products(lag)[pairs]
        values.append(found.mean() / power)
        errors.append(found.square().sum().sqrt() / size / power)
    return torch.stack(values), torch.stack(errors)


def pencil(series: Tensor, error: float) -> tuple[Tensor, Tensor]:  # (K,), real
    """The λ_j and |c_j| of series_k ≈ Σ_j c_j λ_j^k for k = 1 … K, complex and real ``(m,)``.

    The right singular vectors of the Hankel matrix that stand above the noise of `error` an entry span a space that a
    step shifts into itself; the λ_j are the eigenvalues of that shift (Hua, Sarkar 1990).
    """
    columns = max(2, len(series) // 2)
    hankel = series.unfold(0, columns, 1)
    _, sizes, vectors = torch.linalg.svd(hankel, full_matrices=False)
    # the norm of a random Hankel matrix of that size, with room
    noise = 2 * error * (math.sqrt(hankel.shape[0]) + math.sqrt(columns))
    order = max(1, min(int((sizes > max(noise, 1e-6 * float(sizes[0]))).sum()), columns - 1, MOST_POLES))
    basis = vectors[:order].T
    poles = torch.linalg.eigvals(torch.linalg.lstsq(basis[:-1], basis[1:]).solution)
    # a pole outside the circle is noise about one on it
    poles = poles / poles.abs().clamp_min(1.0)
    lags = torch.arange(1, len(series) + 1, dtype=series.dtype).unsqueeze(-1)
    powers = poles**lags
    amplitudes = torch.linalg.lstsq(powers, series.to(powers.dtype).unsqueeze(-1), driver="gelsd").solution
    return poles, amplitudes.squeeze(-1).abs()


def _products(inputs: Tensor, counts: Tensor) -> Callable[[int], Tensor]:  # (B, T, …), (B, T)
    """Products about the mean, ``(B, T − lag)``: of channels, or of tokens as indicators about their frequencies."""
    if inputs.dim() == 2 and not inputs.is_floating_point():
        _, index = inputs.unique(return_inverse=True)
        frequency = torch.bincount(index[counts], minlength=int(index.max()) + 1).double() / counts.sum()
        own, all_ = frequency[index], frequency.square().sum()

        def token_products(lag: int) -> Tensor:
            later, earlier = slice(lag, None), slice(None, inputs.shape[1] - lag)
            equal = (index[:, later] == index[:, earlier]).double()
            found: Tensor = equal - own[:, later] - own[:, earlier] + all_
            return found

        return token_products
    values = torch.where(counts.unsqueeze(-1), inputs.double().reshape(*inputs.shape[:2], -1), 0.0)
    values = values - values.sum((0, 1)) / counts.sum()

    def channel_products(lag: int) -> Tensor:
        found: Tensor = (values[:, lag:] * values[:, : inputs.shape[1] - lag]).sum(-1)
        return found

    return channel_products


def quantised(log_modulus: Tensor, phase: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` values of equal weight for weighted ones ``(n,)``: those at the middles of equal shares."""
    if len(weights) <= count and bool((weights == weights[0]).all()):
        return log_modulus, phase
    order = log_modulus.argsort(stable=True)
    reached = (weights[order] / weights.sum()).cumsum(0)
    index = order[torch.searchsorted(reached, midpoints(count)).clamp_max(len(order) - 1)]
    return log_modulus[index], phase[index]
