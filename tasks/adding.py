"""Adding: the sum of the two values that are marked, of a thousand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import below, stream_keys, words
from specreg.tasks.task import Batch, RegressionTask, SpectralNeed, Split

__all__ = ["Adding"]

_FRACTION = np.float32(2.0**-24)  # 24 bits are float32's: uniform values are the same bytes everywhere


@dataclass(frozen=True, kw_only=True)
class Adding(RegressionTask):
    """Adding: two of T values are marked, one in each half; their sum is the answer at the end.

    Probes memory with selection over long gaps: a value is kept or let go according to the mark beside it. Channel 0
    holds values uniform on [0, 1), in steps of 2⁻²⁴; channel 1 is 1 at one step of the first ⌊T/2⌋ and at one of the
    rest, both uniform, and 0 elsewhere. No rounding depends on the processor.

    Sizes: T = 1000 with 50,000 samples, a tenth of them for validation, in the S4 repository. Inputs (B, T, 2) values,
    targets (B, 1).

    An answer within `tolerance` is right; 0.04 is that of Hochreiter and Schmidhuber. The loss is the mean squared
    error: answering 1 always costs 1/6 ≈ 0.1667, the variance of the sum, which is what a model has to get below.

    Chance: 2τ − τ² for a tolerance τ of at most 1, answering 1 always.

    Source: Hochreiter, Schmidhuber (1997), doi:10.1162/neco.1997.9.8.1735, who draw values from [−1, 1] and lengths at
    random; the rule is that of the S4 repository's `adding` data set.

    Raises ValueError for length < 2, a tolerance outside (0, 1) or an empty split.
    """

    probes: ClassVar[str] = "two marked values over long gaps"
    source: ClassVar[str] = "Hochreiter, Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735"
    channels: ClassVar[int] = 2
    """A value and a mark."""
    num_classes: ClassVar[int] = 1
    """One answer, the sum."""

    tolerance: float = 0.04
    """The largest error that counts as right."""
    length: int = 1000
    """Sequence length T."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length < 2:
            raise ValueError(f"length is {self.length}; each half holds a mark: give 2 or more")
        if self.tolerance >= 1:
            raise ValueError(f"tolerance is {self.tolerance}; from 1 on, every answer 1 is right: give less")

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32."""
        return cls(length=32, validation_examples=200, test_examples=200)

    @property
    def max_length(self) -> int:
        """The length T of every sequence."""
        return self.length

    @property
    def chance(self) -> float:
        """The probability that the sum is within the tolerance of 1, 2τ − τ²."""
        return 2 * self.tolerance - self.tolerance**2

    @property
    def need(self) -> SpectralNeed:
        """The first marked value is kept to the end."""
        return SpectralNeed(memory=self.length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the S4 repository's setting, with a test set besides."""
        s4 = cls(train_examples=45_000, validation_examples=5_000, test_examples=5_000)
        return {"tiny": cls.tiny(), "s4": s4}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag from the first mark to the end, and the gap between the marks."""
        marks = batch.inputs[:, :, 1].nonzero()[:, 1].view(len(batch), 2)
        return {"lag": self.length - 1 - marks[:, :1], "gap": marks[:, 1:] - marks[:, :1]}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        drawn = words(stream_keys(self.seed, split, indices), 0, self.length + 2)
        half = self.length // 2
        marked = np.stack([below(drawn[:, 0], half), half + below(drawn[:, 1], self.length - half)], axis=1)

        values = (drawn[:, 2:] >> np.uint64(40)).astype(np.float32) * _FRACTION
        marks = np.zeros_like(values)
        np.put_along_axis(marks, marked, np.float32(1), axis=1)
        total = np.take_along_axis(values, marked, axis=1)
        targets = total[:, :1] + total[:, 1:]
        return Batch(torch.from_numpy(np.stack([values, marks], axis=2)), torch.from_numpy(targets))
