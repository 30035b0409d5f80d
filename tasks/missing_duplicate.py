"""Missing duplicate: the bit that is missing from a string written twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.formal_language import FormalLanguage
from specreg.tasks.streams import below_each, stream_keys, words
from specreg.tasks.strings import answered_once, bits, code_width, settle
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["MissingDuplicate"]


@dataclass(frozen=True, kw_only=True)
class MissingDuplicate(FormalLanguage):
    """Missing duplicate: a bit string written twice with one bit of the two copies missing, which is to be named.

    Probes comparison at a distance: everything is kept until its other copy comes, and the distance, half the length,
    is known only at the end. A uniform string of ⌊n/2⌋ bits twice, one uniform place of the two copies marked instead;
    an odd length ends with an empty token.

    Tokens: 0 and 1 the bits, 2 the mark, 3 the empty token, then the query 4, where the bit is the target, and which
    pads on the right. Strings belong to splits by content.

    Sizes: lengths n uniform on 2 … 40, tested on 41 … 500; the published length 1 has no copies and is left out. Inputs
    (B, T) tokens, targets (B, T) with one scored step, 2 classes.

    Chance: 1/2.

    Source: Delétang et al. (2022), arXiv:2207.02098.

    Raises ValueError for lengths out of order, below 2, or with no 4 among them.
    """

    probes: ClassVar[str] = "comparison at a distance"
    source: ClassVar[str] = "Delétang et al. 2022, arXiv:2207.02098"
    smallest: ClassVar[int] = 2
    alphabet: ClassVar[int] = 4
    """Bits, the mark and the empty token."""
    num_classes: ClassVar[int] = 2
    """Two bits."""
    divisible: ClassVar[int] = 4
    """Two bits twice."""

    shortest: int = 2
    """The shortest length."""

    @property
    def need(self) -> SpectralNeed:
        """Each bit is compared with its copy, half the length away."""
        lags = (self.longest // 2,) if self.shortest // 2 == self.longest // 2 else ()
        return SpectralNeed(memory=self.longest, lags=lags)

    @classmethod
    def tiny(cls) -> Self:
        """Return lengths 8 … 16."""
        return cls(shortest=8, longest=16, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and DeepMind's setting."""
        return {"tiny": cls.tiny(), "chomsky": cls()}

    def token_name(self, token: int) -> str:
        """Return the bit, "_" for the mark, "·" for the empty token, "?" for the query."""
        return "01_·?"[token]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed, rows, most = stream_keys(self.seed, split, indices), np.arange(indices.size), self.longest // 2
        chosen = words(keyed, 0, 3)
        lengths = self.lengths(split, chosen[:, 0])
        halves = lengths // 2
        missing = below_each(chosen[:, 2], 2 * halves)
        # the marked place is part of the content: it stands beside the bits when the split is settled
        strings = np.concatenate([bits(words(keyed, 3, -(-most // 64)), most), missing[:, None]], axis=1)
        strings[:, :most] *= np.arange(most) < halves[:, None]
        width = min(code_width(2), most)
        places = np.broadcast_to(np.arange(width), (indices.size, width))
        settle(split, chosen[:, 1], strings, halves, 2, places, np.minimum(halves, width))

        steps = np.arange(self.longest)
        tokens = np.take_along_axis(strings, steps % halves[:, None], axis=1)
        answers = tokens[rows, missing]
        tokens[steps >= 2 * halves[:, None]] = 3
        tokens[steps >= lengths[:, None]] = 4
        tokens[rows, missing] = 2
        return answered_once(tokens, lengths, answers, query=4, padded=self.padded)
