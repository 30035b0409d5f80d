"""Multi-query associative recall: many keys met once, asked for again at power-law distances."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import below, distinct, inverse_power_law, stream_keys, weighted_distinct, words
from specreg.tasks.task import UNSCORED, Batch, GeneratedTask, SpectralNeed, Split

__all__ = ["MQAR"]


@dataclass(frozen=True, kw_only=True)
class MQAR(GeneratedTask):
    """Multi-query associative recall, by the rules of the Zoology benchmark.

    Probes recall: how many key-value pairs a fixed-size state keeps apart, and for how long. Token 0 is the filler,
    keys are 1 … ⌊V/2⌋ − 1, values ⌊V/2⌋ … V − 1. A sequence opens with K pairs k₁ v₁ k₂ v₂ … of distinct keys and
    distinct values. The rest is cut in (T − 2K)/2 slots of two tokens; key i stands first in a slot, slots being drawn
    one after another without replacement with weights ∝ (slot + 1)^(a − 1), so most questions come early and a few very
    late. The value is the target where its key is asked; every other position is unscored. The other tokens are
    fillers: uniform over the vocabulary (they may repeat a key, without a target: part of the benchmark), or 0.

    Sizes: (T, K) = (64, 4), (128, 8), (256, 16), (512, 64) with V = 8192 in the paper, which trains on 100,000 examples
    with fillers 0. Inputs (B, T) tokens, targets (B, T), V classes.

    Chance: 1/⌈V/2⌉, any one value always. A uniform guess among all V tokens is worth 1/V; a model that has learnt to
    answer some value of the context, but not which, 1/K.

    Source: Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra, Ré (2023), arXiv:2312.04927.

    Raises ValueError for settings that no sequence fits: length is even, 4·pairs ≤ length < vocab_size, 0 < power ≤ 1.
    """

    probes: ClassVar[str] = "recall of many pairs"
    source: ClassVar[str] = "Arora et al. 2023, arXiv:2312.04927"

    length: int = 64
    """Sequence length T, even."""
    pairs: int = 4
    """Key-value pairs K, at most a quarter of the length."""
    vocab_size: int = 8192
    """Vocabulary V, larger than the length."""
    power: float = 0.01
    """The exponent a of the slot law, in (0, 1]; 1 draws slots uniformly."""
    random_non_queries: bool = True
    """Whether fillers are random tokens (True) or all 0 (False)."""

    def __post_init__(self) -> None:
        """Check the settings against one another."""
        super().__post_init__()
        if self.length % 2 or self.length < 4:
            raise ValueError(f"length is {self.length}; the slots hold two tokens each: give an even length, 4 or more")
        if not 1 <= self.pairs <= self.length // 4:
            raise ValueError(
                f"pairs is {self.pairs} at length {self.length}; 4·pairs ≤ length allows 1 … {self.length // 4} "
                f"(this many pairs need a length of {4 * max(self.pairs, 1)} or more)"
            )
        if self.vocab_size <= self.length:
            raise ValueError(f"vocab_size is {self.vocab_size} at length {self.length}; give {self.length + 1} or more")
        if not 0.0 < self.power <= 1.0:
            raise ValueError(f"power is {self.power}; it lies in (0, 1], where 1 draws slots uniformly")

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32, 4 pairs, 64 tokens."""
        return cls(length=32, pairs=4, vocab_size=64, validation_examples=200, test_examples=200)

    @property
    def channels(self) -> int:
        """Inputs are tokens: 0."""
        return 0

    @property
    def num_classes(self) -> int:
        """The vocabulary V."""
        return self.vocab_size

    @property
    def max_length(self) -> int:
        """The length T of every sequence."""
        return self.length

    @property
    def per_position(self) -> bool:
        """A target a position: True."""
        return True

    @property
    def chance(self) -> float:
        """One over the number of values, 1/⌈V/2⌉: each value answers equally often."""
        return 1.0 / (self.vocab_size - self.vocab_size // 2)

    @property
    def slots(self) -> int:
        """The number of two-token slots after the context, (T − 2K)/2."""
        return self.length // 2 - self.pairs

    @property
    def need(self) -> SpectralNeed:
        """A pair is kept until its question, at most to the end."""
        return SpectralNeed(memory=self.length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the four sizes of the paper with fillers 0, and that of Rickenbach et al. 2025, "tli"."""
        sizes = ((64, 4), (128, 8), (256, 16), (512, 64))
        published = {
            f"zoology-{length}-{pairs}": cls(
                length=length, pairs=pairs, random_non_queries=False, train_examples=100_000, test_examples=3000
            )
            for length, pairs in sizes
        }
        return {"tiny": cls.tiny(), **published, "tli": cls(length=512, pairs=64)}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each question: steps from the pair's value to where its key is asked."""
        keys = batch.inputs[:, 0 : 2 * self.pairs : 2]
        steps = torch.arange(self.length)
        lag = torch.full_like(batch.targets, -1)
        rows, places = batch.scored.nonzero(as_tuple=True)
        pair = (keys[rows] == batch.inputs[rows, places, None]).long().argmax(1)
        lag[rows, places] = steps[places] - (2 * pair + 1)
        return {"lag": lag}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        pairs, slots, first_value = self.pairs, self.slots, self.vocab_size // 2
        keyed = stream_keys(self.seed, split, indices)
        drawn = words(keyed, 0, 2 * pairs + slots)
        keys = 1 + distinct(drawn[:, :pairs], first_value - 1)
        values = first_value + distinct(drawn[:, pairs : 2 * pairs], self.vocab_size - first_value)
        chosen = weighted_distinct(drawn[:, 2 * pairs :], inverse_power_law(slots, self.power), pairs)
        asked = 2 * pairs + 2 * chosen

        inputs = self._fillers(keyed)
        inputs[:, 0 : 2 * pairs : 2] = keys
        inputs[:, 1 : 2 * pairs : 2] = values
        np.put_along_axis(inputs, asked, keys, axis=1)
        targets = np.full_like(inputs, UNSCORED)
        np.put_along_axis(targets, asked, values, axis=1)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _fillers(
        self,
        keyed: NDArray[np.uint64],  # (B,)
    ) -> NDArray[np.int64]:  # (B, T)
        if not self.random_non_queries:
            return np.zeros((keyed.size, self.length), dtype=np.int64)
        return below(words(keyed, 2 * self.pairs + self.slots, self.length), self.vocab_size)
