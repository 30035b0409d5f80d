"""Delay: band-limited white noise over again, many steps late."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import erf, log, pi, sqrt
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.streams import exponential, stream_keys, words
from specreg.tasks.task import Batch, RegressionTask, SpectralNeed, Split

__all__ = ["Delay"]

_RMS = 0.5  # of the noise, before its start is taken off
_PHASE_BITS = 16  # of the table of cosines that phases are drawn from
_FAITHFUL_OUTPUTS = 4
_ROWS = 64  # examples transformed at a time, so that scratch memory stays in the cache


@dataclass(frozen=True, kw_only=True)
class Delay(RegressionTask):
    """Delay: at every step, the value that came `lag` steps before, of band-limited white noise.

    Probes continuous memory over an exact delay, which no finite state holds perfectly: e^{−sτ} is approximated, and
    the more states and frequencies on the right lines, the better. The noise has root mean square 0.5 and is the real
    Fourier series, of L steps of 1/L seconds, whose coefficients of the frequencies 1, 2, … `frequency` hertz are
    complex Gaussian with equal variances; the value of its first step is then taken off, so that it starts from 0. The
    first `lag` steps, where nothing has arrived yet, are unscored, or with `score_start` their answer is 0, as in the
    published code.

    Sizes: length 4000, lag 1000, frequencies up to 1000 Hz, 16,384 fresh samples an epoch and 1,024 for evaluation, in
    the S4 repository. Inputs (B, L, 1) values, targets (B, L, 1).

    An answer within `tolerance`, 0.05, is right. The loss is the mean squared error; what is published is its square
    root. Answering 0 always costs 2·0.25·(1 − ρ(t)), on average about 0.5, with ρ the noise's autocorrelation.

    A published defect, kept with `faithful`: four outputs instead of one, all to give the same answer. A comment in the
    S4 repository says that the numbers of the paper come from there.

    Chance: the mean over scored steps of erf(tolerance/√(1 − ρ(t))), answering 0 always.

    The last digits of the values may differ between processors, by 1e-6 at most; on one they are the same on every call
    and at every batch size.

    Source: Gu, Johnson, Timalsina, Rudra, Ré (2022), arXiv:2206.12037; the rule is that of the S4 repository's `delay`
    data set, the noise that of the Nengo library.

    Raises ValueError for length < 4, a lag outside 1 … length − 1, a frequency outside 1 … length/2, or an empty split.
    """

    probes: ClassVar[str] = "continuous memory over an exact delay"
    source: ClassVar[str] = "Gu, Johnson, Timalsina, Rudra, Ré 2022, arXiv:2206.12037"
    per_position: ClassVar[bool] = True

    length: int = 4000
    """Sequence length L, the steps of one second."""
    lag: int = 1000
    """Steps by which the answer is late."""
    frequency: int = 1000
    """The highest frequency in hertz, that is, in periods over the sequence."""
    score_start: bool = False
    """Whether the first `lag` steps are scored, with the answer 0."""
    faithful: bool = False
    """Whether there are four outputs with one answer, as where the published numbers come from."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length < 4:
            raise ValueError(f"length is {self.length}; give 4 or more")
        if not 1 <= self.lag < self.length:
            raise ValueError(f"lag is {self.lag} at length {self.length}; give 1 … length − 1")
        if not 1 <= self.frequency <= self.length // 2:
            most = self.length // 2
            raise ValueError(f"frequency is {self.frequency} at length {self.length}; give 1 … {most}, half the length")

    @classmethod
    def tiny(cls) -> Self:
        """Return length 64, lag 16, frequencies up to 8."""
        return cls(length=64, lag=16, frequency=8, validation_examples=200, test_examples=200)

    @property
    def num_classes(self) -> int:
        """One answer a step; four where `faithful`."""
        return _FAITHFUL_OUTPUTS if self.faithful else 1

    @property
    def max_length(self) -> int:
        """The length L of every sequence."""
        return self.length

    @property
    def chance(self) -> float:
        """The share of steps at which 0 is within the tolerance."""
        due = _near_zero(self.length, self.frequency, self.tolerance)[: self.length - self.lag]
        start = self.lag if self.score_start else 0
        return (sum(due) + start) / (len(due) + start)

    @property
    def need(self) -> SpectralNeed:
        """One delay exactly, for every frequency of the noise."""
        return SpectralNeed(
            memory=self.lag,
            lags=(self.lag,),
            note=f"phases up to 2π·{self.frequency}/{self.length}, the frequencies of the noise",
        )

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", and the S4 repository's setting, whose start is scored, with one output and with four."""
        s4 = cls(score_start=True, validation_examples=1024, test_examples=1024)
        return {"tiny": cls.tiny(), "s4": s4, "s4-published": replace(s4, faithful=True)}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed = stream_keys(self.seed, split, indices)
        inputs = np.empty((indices.size, self.length), dtype=np.float32)
        for first in range(0, indices.size, _ROWS):
            inputs[first : first + _ROWS] = _noise(keyed[first : first + _ROWS], self.length, self.frequency)
        targets = np.full_like(inputs, 0.0 if self.score_start else np.nan)
        targets[:, self.lag :] = inputs[:, : -self.lag]
        answers = torch.from_numpy(targets)[:, :, None].repeat(1, 1, self.num_classes)
        return Batch(torch.from_numpy(inputs)[:, :, None], answers)


def _noise(
    keyed: NDArray[np.uint64],  # (B,)
    length: int,
    frequency: int,
) -> NDArray[np.float64]:  # (B, L)
    """Return white noise of frequencies 1 … `frequency` periods a sequence, from 0 on."""
    drawn = words(keyed, 0, 2 * frequency)
    # a complex Gaussian has an exponential squared modulus and a uniform phase
    modulus = np.sqrt(exponential(drawn[:, :frequency]).astype(np.float64) * (2 * log(2) / 2**32))
    phase = drawn[:, frequency:] >> np.uint64(64 - _PHASE_BITS)
    period = length + length % 2  # an odd sequence is all but the last step of an even one
    spectrum = np.zeros((keyed.size, period // 2 + 1), dtype=np.complex128)
    spectrum[:, 1 : frequency + 1] = modulus * _circle()[phase.astype(np.intp)]
    if 2 * frequency == period:
        spectrum[:, frequency].imag = 0  # one real coefficient, and so of a quarter of the power
    signal = np.fft.irfft(spectrum, n=period, axis=1) * (_RMS * period / (2 * sqrt(frequency)))
    return (signal - signal[:, :1])[:, :length]


@cache
def _circle() -> NDArray[np.complex128]:
    """Return the points of the unit circle that phases are drawn from."""
    points: NDArray[np.complex128] = np.exp(2j * pi * (np.arange(2**_PHASE_BITS) + 0.5) / 2**_PHASE_BITS)
    return points


@cache
def _near_zero(length: int, frequency: int, tolerance: float) -> tuple[float, ...]:
    """Return the probability, at each step, that the noise is within the tolerance of 0."""
    period = length + length % 2
    # the variance of x(t) − x(0), to which each frequency k adds its power times 2 − 2cos(2πkt/L)
    power = np.zeros(period // 2 + 1)
    power[1 : frequency + 1] = _RMS**2 / frequency
    if 2 * frequency == period:
        power[frequency] /= (
            2  # a quarter, and the transform takes the last coefficient once where it takes others twice
        )
    autocovariance = np.fft.irfft(power, n=period) * (period / 2)
    variance = 2 * (autocovariance[0] - autocovariance[1:length])
    return (1.0, *(erf(tolerance / sqrt(2 * each)) for each in variance.tolist()))
