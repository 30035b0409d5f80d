"""Associative recall: one key of several is asked for at the end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.in_context import InContextTask
from specreg.tasks.streams import below, below_each
from specreg.tasks.task import Batch, SpectralNeed

__all__ = ["AssociativeRecall"]


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(InContextTask):
    """Associative recall, by the rules of the Safari repository: a key that was shown with its value is asked again.

    Probes recall of one pair of few: by content, and over the whole sequence. The first ⌊(V − 2)/2⌋ symbols are keys,
    the others values; every sequence has its own map from keys to values, each uniform (two keys may share one).
    ⌊N/2⌋ pairs of a key, uniform with repetition, and its value are followed by the prefix and one of the keys shown,
    each equally likely; its value is the answer. With `allow_absent` the key asked is any one, and the answer to a key
    that was not shown is ".". Vocabulary, splits and what is scored: see `InContextTask`.

    Sizes: the sequence length is T = 2⌊N/2⌋ + 2. (N, V) = (40, 20), and (20, 10), with 5,000 training and 500 test
    sequences, all next tokens scored in training; (131072, 30) with 4,000 for Hyena. Inputs (B, T) tokens, targets
    (B, T), V classes.

    A published defect, kept with `faithful`: repeated sequences are removed inside a split, but not across splits, so
    that a small vocabulary leaks. Ours are drawn independently inside a split.

    Chance: one over the number of values; with `allow_absent`, where a key is absent with probability
    a = (1 − 1/keys)^⌊N/2⌋, the larger of a and (1 − a)/values.

    Source: Ba, Hinton, Mnih, Leibo, Ionescu (2016), arXiv:1610.06258; the rule is that of Fu, Dao, Saab, Thomas, Rudra,
    Ré (2022), arXiv:2212.14052, in the Safari repository, with keys of one token.

    Raises ValueError for vocab_size < 6, length < 2, fewer than 200 different sequences, or an empty split.
    """

    probes: ClassVar[str] = "recall of one pair of few"
    source: ClassVar[str] = "Fu et al. 2022, arXiv:2212.14052"

    length: int = 40
    """Tokens N of the pairs; an odd one is not used."""
    allow_absent: bool = False
    """Whether keys that were not shown may be asked."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("vocab_size", 6), ("length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more")
        super().__post_init__()

    @classmethod
    def tiny(cls) -> Self:
        """Return 8 pairs, 12 tokens."""
        return cls(length=16, vocab_size=12, validation_examples=200, test_examples=200)

    @property
    def max_length(self) -> int:
        """The length 2⌊N/2⌋ + 2 of every sequence."""
        return 2 * self.pairs + 2

    @property
    def pairs(self) -> int:
        """The number of pairs shown, ⌊N/2⌋."""
        return self.length // 2

    @property
    def keys(self) -> int:
        """The number of keys, ⌊(V − 2)/2⌋."""
        return (self.vocab_size - 2) // 2

    @property
    def values(self) -> int:
        """The number of values, the rest of the symbols."""
        return self.vocab_size - 2 - self.keys

    @property
    def chance(self) -> float:
        """One over the number of values; with `allow_absent`, see the class."""
        absent = (1 - 1 / self.keys) ** self.pairs if self.allow_absent else 0.0
        return max(absent, (1 - absent) / self.values)

    @property
    def need(self) -> SpectralNeed:
        """A pair is kept to the end; lags differ from example to example."""
        return SpectralNeed(memory=self.max_length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", Safari's two settings and its long one for Hyena."""
        small = cls(
            length=20, vocab_size=10, scored="all", train_examples=5000, validation_examples=500, test_examples=500
        )
        return {
            "tiny": cls.tiny(),
            "safari-20": replace(small, length=40, vocab_size=20),
            "safari-10": small,
            "hyena-131k": replace(small, length=131_072, vocab_size=30, train_examples=4000),
        }

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag from the last showing of the value to the question (−1: none), and how often it was shown."""
        asked = batch.inputs[:, -1:] == batch.inputs[:, 0 : 2 * self.pairs : 2]
        last = torch.where(asked, torch.arange(self.pairs), -1).amax(dim=1)
        found = {"lag": torch.where(last < 0, -1, 2 * (self.pairs - last)), "showings": asked.sum(dim=1)}
        values = {name: torch.full_like(batch.targets, -1) for name in found}
        for name, each in found.items():
            values[name][:, -1] = each
        return values

    @property
    def _answers(self) -> int:
        return 1

    @property
    def _space(self) -> int:
        return int(self.keys ** min(self.pairs, 40)) * self.values

    @property
    def _words(self) -> int:
        return self.keys + self.pairs + 1

    def _spelt(
        self,
        drawn: NDArray[np.uint64],  # (B, keys + pairs + 1)
    ) -> NDArray[np.int64]:  # (B, T + 1)
        keys, pairs = self.keys, self.pairs
        value = 1 + keys + below(drawn[:, :keys], self.values)
        chosen = below(drawn[:, keys:-1], keys)
        present = np.zeros((len(drawn), keys), dtype=bool)
        np.put_along_axis(present, chosen, True, axis=1)
        asked = below(drawn[:, -1:], keys) if self.allow_absent else _one_of(present, drawn[:, -1])

        sequences = np.empty((len(drawn), 2 * pairs + 3), dtype=np.int64)
        sequences[:, 0 : 2 * pairs : 2] = 1 + chosen
        sequences[:, 1 : 2 * pairs : 2] = np.take_along_axis(value, chosen, axis=1)
        sequences[:, -3] = self.prefix
        sequences[:, -2:-1] = 1 + asked
        answer = np.take_along_axis(value, asked, axis=1)
        sequences[:, -1:] = np.where(np.take_along_axis(present, asked, axis=1), answer, 0)
        return sequences


def _one_of(
    allowed: NDArray[np.bool_],  # (B, N)
    drawn: NDArray[np.uint64],  # (B,)
) -> NDArray[np.int64]:  # (B, 1)
    """Return one of the allowed places of each row, each equally likely."""
    counts = allowed.cumsum(axis=1)
    rank = below_each(drawn, counts[:, -1])
    found: NDArray[np.int64] = (counts > rank[:, None]).argmax(axis=1)[:, None]
    return found
