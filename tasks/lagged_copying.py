"""Lagged copying: the input over again, some steps late, at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import below, stream_keys, words
from specreg.tasks.strings import settle
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split, TokenTask

__all__ = ["LaggedCopying"]


@dataclass(frozen=True, kw_only=True)
class LaggedCopying(TokenTask):
    """Lagged copying: the target of each step is the token that came M steps before.

    Probes an exact delay under constant load: M tokens are kept at any time, and each is let go after its answer. The L
    tokens are uniform on 1 … A − 2; 0 stands for what came before the start, and A − 1, the marker of `copying`, is
    never shown. The first M steps, where nothing has arrived yet, are unscored, or with `score_start` their target is
    0, as in the published code, which makes a share M/L of the answers trivial.

    The tokens themselves decide the split, so that no sequence is in two, however few there are.

    Sizes: (L, M, A) = (100, 10, 10) are the S4 repository's defaults, 10,000 fresh samples an epoch. Inputs (B, L)
    tokens, targets (B, L), A classes.

    Chance: 1/(A − 2), any one token always; with `score_start` the larger of M/L and (1 − M/L)/(A − 2).

    Source: Gu, Goel, Ré (2021), arXiv:2111.00396; the rule is that of the S4 repository's `copying` data set with
    `lag`.

    Raises ValueError for a lag outside 1 … length − 1, alphabet < 4 or an empty split.
    """

    probes: ClassVar[str] = "an exact delay at every step"
    source: ClassVar[str] = "Gu, Goel, Ré 2021, arXiv:2111.00396 (code)"

    length: int = 100
    """Sequence length L."""
    lag: int = 10
    """Steps M by which the answer is late."""
    alphabet: int = 10
    """Distinct tokens A, two of which are never shown."""
    score_start: bool = False
    """Whether the first M steps are scored, with the answer 0."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 1 <= self.lag < self.length:
            raise ValueError(f"lag is {self.lag} at length {self.length}; give 1 … length − 1")
        if self.alphabet < 4:
            raise ValueError(f"alphabet is {self.alphabet}; two tokens are never shown: give 4 or more")

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32, lag 6, 8 distinct tokens."""
        return cls(length=32, lag=6, alphabet=8, validation_examples=200, test_examples=200)

    @property
    def vocab_size(self) -> int:
        """The alphabet A."""
        return self.alphabet

    @property
    def max_length(self) -> int:
        """The length L of every sequence."""
        return self.length

    @property
    def chance(self) -> float:
        """1/(A − 2), or more where the start is scored: see the class."""
        trivial = self.lag / self.length if self.score_start else 0.0
        return max(trivial, (1.0 - trivial) / (self.alphabet - 2))

    @property
    def need(self) -> SpectralNeed:
        """One delay, exactly."""
        return SpectralNeed(memory=self.lag, lags=(self.lag,))

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the S4 repository's defaults, whose start is scored."""
        return {"tiny": cls.tiny(), "s4": cls(score_start=True)}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the step of each answer, counted from where the first token is due; the start is in no slice."""
        steps = (torch.arange(self.length) - self.lag).clamp(min=-1)
        return {"step": steps.expand_as(batch.targets).clone()}

    def token_name(self, token: int) -> str:
        """Return "·" for what came before the start, else the number."""
        return str(token) if token else "·"

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        drawn = words(stream_keys(self.seed, split, indices), 0, self.length + 1)
        inputs = below(drawn[:, :-1], self.alphabet - 2)
        settle(split, drawn[:, -1], inputs, np.full(indices.size, self.length), self.alphabet - 2)
        inputs += 1
        targets = np.full_like(inputs, 0 if self.score_start else UNSCORED)
        targets[:, self.lag :] = inputs[:, : -self.lag]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
