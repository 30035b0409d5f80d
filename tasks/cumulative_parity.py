"""Cumulative parity: the parity of a bit string so far, asked at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.formal_language import FormalLanguage, steps_answered
from specreg.tasks.streams import stream_keys
from specreg.tasks.strings import answered_at_every_step, real
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["CumulativeParity"]


@dataclass(frozen=True, kw_only=True)
class CumulativeParity(FormalLanguage):
    """Cumulative parity: whether the number of ones so far is odd, at every step of a uniform bit string.

    Probes what `parity` probes, an eigenvalue −1, with an answer at every step: much easier to learn, and the state may
    not drift anywhere. Tokens 0 and 1 are the bits, 2 is padding on the right. Strings belong to splits by content.

    Sizes: one length in Zoology's circuits, which publish none; here uniform on shortest … longest, 40 each unless
    said. Inputs (B, T) tokens, targets (B, T), 2 classes.

    Chance: 1/2.

    Source: the rule is that of the circuits of Zoology, Arora et al. (2023), arXiv:2312.04927.

    Raises ValueError for lengths out of order or below 2.
    """

    probes: ClassVar[str] = "state tracking: one bit that flips, read at every step"
    source: ClassVar[str] = "Arora et al. 2023, arXiv:2312.04927 (Zoology's circuits)"
    alphabet: ClassVar[int] = 2
    """Two bits."""
    num_classes: ClassVar[int] = 2
    """Even and odd."""

    shortest: int = 40
    """The shortest length."""

    @property
    def max_length(self) -> int:
        """The longest string."""
        return self.longest

    @property
    def need(self) -> SpectralNeed:
        """An eigenvalue −1, kept to the end."""
        return SpectralNeed(memory=self.longest, periods=(2,))

    @classmethod
    def tiny(cls) -> Self:
        """Return length 16."""
        return cls(shortest=16, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and length 40."""
        return {"tiny": cls.tiny(), "length-40": cls()}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the real steps."""
        return batch.lengths

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how many bits each answer is about."""
        return {"length": steps_answered(batch)}

    def token_name(self, token: int) -> str:
        """Return the bit, "·" for padding."""
        return "·" if token == 2 else str(token)

    def class_name(self, label: int) -> str:
        """Return "even" or "odd"."""
        return ("even", "odd")[label]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        strings, counts = self.strings(split, stream_keys(self.seed, split, indices))
        odd = strings.cumsum(axis=1) & 1
        tokens = np.where(real(counts, self.longest), strings, 2) if self.padded else strings
        return answered_at_every_step(tokens, counts, odd, padded=self.padded)
