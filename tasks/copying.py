"""Copying: keep a few tokens over many blanks, then repeat them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.copy_task import CopyTask
from specreg.tasks.streams import below, stream_keys, words
from specreg.tasks.strings import settle
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["Copying"]


@dataclass(frozen=True, kw_only=True)
class Copying(CopyTask):
    """Copying: M data tokens, then L blanks, then M markers at which the data are to be repeated in their order.

    Probes memory over a fixed delay: each token is asked for L + M steps after it came, so a shift register will do,
    and a time-invariant recurrence can. Token 0 is the blank, A − 1 the marker, 1 … A − 2 are data, uniform with
    repetition. At the i-th marker the i-th data token is the target, or the i-th from the end where `reverse`, which
    makes the delays L + 2M − 1, L + 2M − 3, … Every other position is unscored.

    The data themselves decide the split, so that none is in two, however few there are.

    Sizes: the sequence length is T = L + 2M. (L, M, A) = (100, 10, 10) are the S4 repository's defaults, 10,000 fresh
    samples an epoch. Inputs (B, T) tokens, targets (B, T), A classes.

    Chance: 1/(A − 2), any one data token always.

    Source: Arjovsky, Shah, Bengio (2015), arXiv:1511.06464; the rule is that of the S4 repository's `copying` data set.

    Raises ValueError for blanks < 0, tokens < 1, alphabet < 4, fewer than 3 different data, or an empty split.
    """

    probes: ClassVar[str] = "memory over a fixed delay"
    source: ClassVar[str] = "Arjovsky, Shah, Bengio 2015, arXiv:1511.06464"

    reverse: bool = False
    """Whether the data are to be repeated from the last to the first."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.tokens == 1 and self.alphabet == 4:
            raise ValueError("tokens is 1 and alphabet 4: two data cannot be split in three; give more of either")

    @classmethod
    def tiny(cls) -> Self:
        """Return 12 blanks, 10 data tokens, 10 distinct tokens."""
        return cls(blanks=12, validation_examples=200, test_examples=200)

    @property
    def need(self) -> SpectralNeed:
        """The delays between a token and its marker: one, or M of them where `reverse`."""
        return SpectralNeed(memory=self.max_length, lags=tuple(sorted(set(self._lags.tolist()))))

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the S4 repository's defaults."""
        return {"tiny": cls.tiny(), "s4": cls()}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each answer, and the place of its token among the data, 0 … M − 1."""
        first = self.blanks + self.tokens
        order = np.arange(self.tokens)
        found = {"lag": self._lags, "place": order[::-1].copy() if self.reverse else order}
        values = {name: torch.full_like(batch.targets, -1) for name in found}
        for name, each in found.items():
            values[name][:, first:] = torch.from_numpy(each)
        return values

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        drawn = words(stream_keys(self.seed, split, indices), 0, self.tokens + 1)
        data = below(drawn[:, :-1], self.alphabet - 2)
        settle(split, drawn[:, -1], data, np.full(indices.size, self.tokens), self.alphabet - 2)
        data += 1
        inputs = np.zeros((indices.size, self.max_length), dtype=np.int64)
        inputs[:, : self.tokens] = data
        inputs[:, self.blanks + self.tokens :] = self.alphabet - 1
        targets = np.full_like(inputs, UNSCORED)
        targets[:, self.blanks + self.tokens :] = data[:, ::-1] if self.reverse else data
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    @property
    def _lags(self) -> NDArray[np.int64]:
        """The delay of each answer, (M,)."""
        marker = self.blanks + self.tokens + np.arange(self.tokens)
        place = np.arange(self.tokens)
        return marker - (place[::-1] if self.reverse else place)
