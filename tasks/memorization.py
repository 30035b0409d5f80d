"""Memorization: a map from keys to values that is the same in every sequence, from MAD."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.mad import MADTask
from specreg.tasks.streams import below, permutation, stream_keys, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["Memorization"]


@dataclass(frozen=True, kw_only=True)
class Memorization(MADTask):
    """Memorization: keys, each followed by a slot in which its value is asked for; the map is to be learnt by heart.

    Probes what the weights hold; nothing in a sequence tells a value, and a state need keep one step. With K = ⌊(V −
    1)/2⌋, keys are 0 … K − 1, values K … V − 2, and V − 1 is the token that stands where the value would. The map gives
    each key a value of its own and is drawn from the seed. A sequence is L/2 keys, uniform with repetition, each
    followed by V − 1, at which the key's value is the target; keys themselves are unscored.

    Training, validation and test SHARE THE MAP, as published: that overlap is the task. Their sequences differ.

    Sizes: V = 256, L = 32, 256 training and 1,280 test examples; varied: V = 512, 1024, 2048, 4096, 8192. Inputs (B, L)
    tokens, targets (B, L), V classes.

    Chance: 1/K, any one value of the map always. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli et al. (2024), arXiv:2403.17844.

    Raises ValueError for an odd length or one below 2, and for vocab_size < 5.
    """

    name: ClassVar[str] = "memorization"
    probes: ClassVar[str] = "what the weights hold"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    train_examples: int | None = 256
    """Size of the training set; None: an endless stream."""
    vocab_size: int = 256
    """Vocabulary V: keys, values and the token that stands in a value's place."""
    length: int = 32
    """Sequence length L, even."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length % 2 or self.length < 2:
            raise ValueError(f"length is {self.length}; a key and its slot take two tokens: give an even length")
        if self.vocab_size < 5:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; give 5 or more: two keys, two values and a special token"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Return length 16, 64 tokens."""
        return cls(vocab_size=64, length=16, validation_examples=200, test_examples=200)

    @property
    def keys(self) -> int:
        """The number of keys K."""
        return (self.vocab_size - 1) // 2

    @property
    def chance(self) -> float:
        """One over the number of keys."""
        return 1.0 / self.keys

    @property
    def need(self) -> SpectralNeed:
        """A key is kept for one step."""
        return SpectralNeed(memory=1, lags=(1,), note="the map is in the weights")

    def token_name(self, token: int) -> str:
        """Return "k3" for a key, "v3" for a value, "?" where a value is asked for."""
        if token == self.vocab_size - 1:
            return "?"
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"

    @property
    def values(self) -> NDArray[np.int64]:
        """The value of each key, (K,)."""
        return self.keys + permutation(self.seed, "split", 0, self.vocab_size - 1 - self.keys)[: self.keys]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keys = below(words(stream_keys(self.seed, split, indices), 0, self.length // 2), self.keys)
        inputs = np.full((indices.size, self.length), self.vocab_size - 1, dtype=np.int64)
        inputs[:, 0::2] = keys
        targets = np.full_like(inputs, UNSCORED)
        targets[:, 1::2] = self.values[keys]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
