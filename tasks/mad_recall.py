"""Recall of pairs that come again and again, the rule that MAD's in-context and noisy recall share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.mad import Integers, MADTask, Words, previous_places
from specreg.tasks.streams import below, below_each, stream_keys, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["RecallTask"]


@dataclass(frozen=True, kw_only=True)
class RecallTask(MADTask):
    """Keys and values in turn; a key that comes again has the value that it had before."""

    faithful: bool = False
    """Whether the reference's defects are kept."""

    @property
    def noise_tokens(self) -> int:
        """How many tokens are noise."""
        return 0

    @property
    def noise(self) -> float:
        """The share of slots that hold noise."""
        return 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length % 2 or self.length < 4:
            raise ValueError(f"length is {self.length}; pairs take two tokens each: give an even length, 4 or more")
        if self.vocab_size - self.noise_tokens < 4:
            noise = f", {self.noise_tokens} of them noise" if self.noise_tokens else ""
            least = 4 + self.noise_tokens
            raise ValueError(f"vocab_size is {self.vocab_size}{noise}; give {least} or more: two keys and two values")

    @property
    def keys(self) -> int:
        """The number of keys, half of the tokens that are not noise."""
        return (self.vocab_size - self.noise_tokens) // 2

    @property
    def values(self) -> int:
        """The number of values."""
        return self.vocab_size - self.noise_tokens - self.keys

    @property
    def max_length(self) -> int:
        """The length L; with `faithful` one less, since the reference feeds no last value."""
        return self.length - self.faithful

    @property
    def chance(self) -> float:
        """One over the number of values."""
        return 1.0 / self.values

    @property
    def need(self) -> SpectralNeed:
        """A pair is kept until its key comes again, at most to the end."""
        return SpectralNeed(memory=self.max_length)

    def token_name(self, token: int) -> str:
        """Return "k3" for a key, "v3" for a value, "n3" for noise."""
        starts = {"n": self.keys + self.values, "v": self.keys, "k": 0}
        letter = next(letter for letter, start in starts.items() if token >= start)
        return f"{letter}{token - starts[letter]}"

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each question: steps from the pair's value, where it was last shown, to its key."""
        first = batch.inputs[:, 0::2].numpy()
        place = np.arange(first.shape[1])
        names = np.where(first < self.keys, first, self.keys + place)  # noise is never met again
        previous = previous_places(names)
        lag = torch.full_like(batch.targets, -1)
        steps = torch.from_numpy(np.where(previous >= 0, 2 * (place - previous) - 1, -1))
        lag[:, 0::2] = torch.where(batch.scored[:, 0::2], steps, -1)
        return {"lag": lag}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed = stream_keys(self.seed, split, indices)
        sequence, asked = self._sequence(keyed)
        targets = np.full_like(sequence, UNSCORED)
        targets[:, 0::2] = np.where(asked, sequence[:, 1::2], UNSCORED)
        if self.faithful:
            if split == "train":
                targets[:, :-1] = sequence[:, 1:]
            sequence, targets = sequence[:, :-1].copy(), targets[:, :-1].copy()
        return Batch(torch.from_numpy(sequence), torch.from_numpy(targets))

    def _sequence(
        self,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, NDArray[np.bool_]]:  # (B, L), (B, L/2)
        """Return the tokens, and which pairs are asked for: those shown before, the last always."""
        pairs, keys = self.length // 2 - 1, self.keys
        drawn = words(keyed, 0, keys + pairs + 1)
        table = keys + below(drawn[:, :keys], self.values)
        chosen = below(drawn[:, keys:-1], keys)
        real = self._real(keyed, keys + pairs + 1, pairs)

        names = np.where(real, chosen, keys + np.arange(pairs))
        again = previous_places(names) >= 0
        new = real & ~again
        rank = below_each(drawn[:, -1], new.sum(axis=1))  # which of the keys shown is asked for at the end
        place = (new & (np.cumsum(new, axis=1) == rank[:, None] + 1)).argmax(axis=1)
        chosen = np.column_stack([chosen, np.take_along_axis(chosen, place[:, None], axis=1)])

        sequence = np.empty((keyed.size, self.length), dtype=np.int64)
        sequence[:, 0::2], sequence[:, 1::2] = chosen, np.take_along_axis(table, chosen, axis=1)
        if self.noise_tokens:
            noise = keys + self.values + below(words(keyed, keys + 2 * pairs + 2, 2 * pairs), self.noise_tokens)
            sequence[:, :-2] = np.where(np.repeat(real, 2, axis=1), sequence[:, :-2], noise)
        return sequence, np.column_stack([again, np.ones(keyed.size, dtype=np.bool_)])

    def _real(self, keyed: Words, start: int, pairs: int) -> NDArray[np.bool_]:  # (B, pairs)
        """Return which slots hold a pair, not noise; one that is protected always does."""
        if not self.noise_tokens:
            return np.ones((keyed.size, pairs), dtype=np.bool_)
        drawn = words(keyed, start, pairs + 1)
        threshold = np.uint64(round(self.noise * 2**32))
        # the reference protects one slot of a count that includes the last, where there is no noise anyway
        protected = below(drawn[:, -1:], pairs + self.faithful)
        real: NDArray[np.bool_] = ((drawn[:, :-1] >> np.uint64(32)) >= threshold) | (np.arange(pairs) == protected)
        real[~real.any(axis=1), 0] = True  # there the reference has nothing to ask for and raises
        return real
