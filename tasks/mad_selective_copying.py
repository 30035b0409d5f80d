"""Selective copying as MAD has it: data tokens among blanks, then one mark, then blanks in which to repeat them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.mad import MADTask
from specreg.tasks.streams import below, stream_keys, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["MADSelectiveCopying"]

_ALWAYS_COPIED = 16  # by the reference until December 2024, whatever the setting said


@dataclass(frozen=True, kw_only=True)
class MADSelectiveCopying(MADTask):
    """Selective copying by MAD's rule: M data tokens among blanks, a mark, and M blanks at which they are repeated.

    Probes selection. Tokens 0 … V − 3 are data, V − 2 is the blank, V − 1 the mark. M data tokens are uniform with
    repetition; each of the L − 2M − 1 blanks goes to one of the M + 1 gaps before, between and after them, each equally
    likely. Then come the mark and M more blanks, at the i-th of which the i-th data token is the target; every other
    position is unscored. (`selective-copying`, by Gu and Dao, has uniform positions and a mark at every answer.)

    Sizes: V = 16, L = 256, M = 16, 12,800 training and 1,280 test examples; varied one at a time: V = 32, 64, 128;
    L = 512, 1024; 6,400, 3,200, 1,600, 800 training examples; M = 32, 64, 96 (which leaves 63 blanks). Inputs (B, L)
    tokens, targets (B, L), V classes.

    With `faithful`, as in the reference until December 2024, and so in what was published: M is 16 whatever `tokens`
    says, so the settings that vary it are the baseline; and no blank follows the last data token.

    Chance: 1/(V − 2), any one data token always. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli et al. (2024), arXiv:2403.17844.

    Raises ValueError for vocab_size < 4, tokens < 1 and length < 2M + 2.
    """

    name: ClassVar[str] = "mad-selective-copying"
    probes: ClassVar[str] = "selection of what to keep"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    length: int = 256
    """Sequence length L."""
    tokens: int = 16
    """Data tokens M; without meaning where `faithful`."""
    faithful: bool = False
    """Whether the reference's defects are kept."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.vocab_size < 4:
            raise ValueError(f"vocab_size is {self.vocab_size}; blank and mark take two: give 4 or more")
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; give 1 or more")
        if self.length < 2 * self.copied + 2:
            kept = " (faithful: 16 are copied, whatever tokens says)" if self.faithful else ""
            raise ValueError(
                f"length is {self.length} with {self.copied} tokens to copy{kept}; give {2 * self.copied + 2} or more"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Return 6 data tokens in 32 steps, 8 tokens in all."""
        return cls(vocab_size=8, length=32, tokens=6, validation_examples=200, test_examples=200)

    @property
    def copied(self) -> int:
        """How many data tokens there are: `tokens`, or 16 where `faithful`."""
        return _ALWAYS_COPIED if self.faithful else self.tokens

    @property
    def chance(self) -> float:
        """One over the number of data tokens, 1/(V − 2)."""
        return 1.0 / (self.vocab_size - 2)

    @property
    def need(self) -> SpectralNeed:
        """Everything is kept until its answer; lags differ from example to example."""
        return SpectralNeed(memory=self.max_length)

    def token_name(self, token: int) -> str:
        """Return "·" for the blank, "?" for the mark, else the number."""
        return {self.vocab_size - 2: "·", self.vocab_size - 1: "?"}.get(token, str(token))

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each answer: steps from the data token to where it is repeated."""
        answers = self.max_length - self.copied
        places = (batch.inputs[:, : answers - 1] < self.vocab_size - 2).nonzero()[:, 1].reshape(-1, self.copied)
        lag = torch.full_like(batch.targets, -1)
        lag[:, answers:] = torch.arange(answers, self.max_length) - places
        return {"lag": lag}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        count, rows = self.copied, indices.size
        blanks, gaps = self.length - 2 * count - 1, count + (not self.faithful)
        drawn = words(stream_keys(self.seed, split, indices), 0, count + blanks)
        data = below(drawn[:, :count], self.vocab_size - 2)
        gap = below(drawn[:, count:], gaps) + gaps * np.arange(rows)[:, None]
        filled = np.bincount(gap.reshape(-1), minlength=rows * gaps).reshape(rows, gaps)
        places = np.arange(count) + np.cumsum(filled[:, :count], axis=1)

        inputs = np.full((rows, self.length), self.vocab_size - 2, dtype=np.int64)
        np.put_along_axis(inputs, places, data, axis=1)
        inputs[:, count + blanks] = self.vocab_size - 1
        targets = np.full_like(inputs, UNSCORED)
        targets[:, -count:] = data
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
