"""Selective copying: repeat the data tokens, forget the blanks between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.copy_task import CopyTask
from specreg.tasks.streams import below, distinct, stream_keys, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["SelectiveCopying"]


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(CopyTask):
    """Selective copying: M data tokens scattered among L blanks, to be repeated in their order.

    Probes selection: a time-invariant recurrence cannot tell which steps to keep, whatever its eigenvalues. Token 0 is
    the blank, A − 1 the marker, 1 … A − 2 are data. M data tokens, uniform with repetition, stand at M random sorted
    positions of the first L + M steps, blanks elsewhere; M markers follow, and at the i-th marker the i-th data token
    is the target. Every other position is unscored.

    Sizes: the sequence length is T = L + 2M. (L, M, A) = (100, 10, 10) are the S4 repository's defaults; the Mamba
    paper's setting is length 4096 with M = A = 16. Inputs (B, T) tokens, targets (B, T), A classes.

    Chance: 1/(A − 2), any one data token always.

    Source: Gu, Dao (2023), arXiv:2312.00752; the rule is that of the S4 repository's `copying` data set with
    `variable`; the task with fixed positions is Arjovsky, Shah, Bengio (2015), arXiv:1511.06464.

    Raises ValueError for blanks < 0, tokens < 1, alphabet < 4 or an empty split.
    """

    probes: ClassVar[str] = "selection of what to keep"
    source: ClassVar[str] = "Gu, Dao 2023, arXiv:2312.00752"

    @classmethod
    def tiny(cls) -> Self:
        """Return 20 blanks, 6 data tokens, 8 distinct tokens."""
        return cls(blanks=20, tokens=6, alphabet=8, validation_examples=200, test_examples=200)

    @property
    def need(self) -> SpectralNeed:
        """Everything is kept until the markers; lags differ from example to example."""
        return SpectralNeed(memory=self.max_length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the S4 repository's defaults and the Mamba paper's setting."""
        return {"tiny": cls.tiny(), "s4": cls(), "mamba": cls(blanks=4096 - 32, tokens=16, alphabet=16)}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each answer, steps from its token to its marker, and the token's place, 0 … M − 1."""
        scattered, size = self.blanks + self.tokens, len(batch)
        held = batch.inputs[:, :scattered].nonzero()[:, 1].view(size, self.tokens)
        place = torch.arange(self.tokens)
        values = {name: torch.full_like(batch.targets, -1) for name in ("lag", "place")}
        values["lag"][:, scattered:] = scattered + place - held
        values["place"][:, scattered:] = place
        return values

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        count, scattered = self.tokens, self.blanks + self.tokens
        drawn = words(stream_keys(self.seed, split, indices), 0, 2 * count)
        data = 1 + below(drawn[:, :count], self.alphabet - 2)
        positions = np.sort(distinct(drawn[:, count:], scattered), axis=1)

        inputs = np.zeros((indices.size, self.max_length), dtype=np.int64)
        np.put_along_axis(inputs, positions, data, axis=1)
        inputs[:, scattered:] = self.alphabet - 1
        targets = np.full_like(inputs, UNSCORED)
        targets[:, scattered:] = data
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
