"""Fuzzy in-context recall: keys and values of one to three tokens, from MAD."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import perm
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.mad import Integers, MADTask, Words, previous_places
from specreg.tasks.streams import below, below_each, stream_keys, words, words_at
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["FuzzyRecall"]

_LARGEST_MOTIF = 4  # tokens of a key; the keys are numbered, and so many there may be


@dataclass(frozen=True)
class _Alphabet:
    """Motifs: 1 to `longest` distinct tokens of first … first + size − 1 in any order."""

    first: int
    size: int
    longest: int

    @property
    def counts(self) -> Integers:
        """How many motifs have 0, 1, … tokens, as bounds to draw below; (longest + 1,)."""
        return np.array([1, *(perm(self.size, length) for length in range(1, self.longest + 1))])

    @property
    def begins(self) -> Integers:
        """The number of the first motif of each length, numbered by length; (longest + 1,)."""
        return np.array([0, *accumulate(self.counts[1:].tolist(), initial=0)])[:-1]

    def tokens(self, lengths: Integers, numbers: Integers) -> Integers:  # (..., longest)
        """Return the motifs of these lengths and numbers below `counts`; what lies beyond a length is anything."""
        found = np.zeros((*lengths.shape, self.longest), dtype=np.int64)
        for length in range(1, self.longest + 1):
            here = lengths == length
            found[here, :length] = self.first + self._arrangement(numbers[here], length)
        return found

    def _arrangement(self, numbers: Integers, length: int) -> Integers:  # (N, length)
        """Return arrangement number n of `length` out of `size`: each entry names one of those that are left."""
        left = np.empty((numbers.size, length), dtype=np.int64)
        for place in range(length - 1, -1, -1):
            numbers, left[:, place] = np.divmod(numbers, self.size - place)
        for place in range(1, length):
            for taken in np.sort(left[:, :place], axis=1).T:
                left[:, place] += left[:, place] >= taken
        return left


@dataclass(frozen=True)
class _Sequences:
    """Pairs laid out one after another, the last of them the question; B sequences of up to P pairs."""

    real: NDArray[np.bool_]  # (B, P), which pairs there are
    starts: Integers  # (B, P)
    keys: Integers  # (B, P), their numbers
    key_lengths: Integers  # (B, P)
    value_lengths: Integers  # (B, P)
    asked: NDArray[np.bool_]  # (B, P), shown before, or the last


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(MADTask):
    """Fuzzy in-context recall: as `in-context-recall`, with keys and values of one to `motif` tokens.

    Probes recall where what belongs together must be found first. The V − 1 tokens before the last, which pads, are
    keys (the lower half) and values. A motif is a number of distinct tokens in order, its length uniform on
    1 … `motif`, then the motif uniform among those of its length; keys have `motif` tokens in the held-out splits, 1 to
    `motif` in training. A sequence is pairs of a key and the value that the sequence's random map gives it, until no
    more may fit; then the question, one more pair, whose key was shown: it stands once at the first boundary at or
    after a random place, unless drawn before. Where a key was shown before, its value's tokens are the targets of the
    positions before them (teacher forcing); every other position is unscored.

    Sizes: V = 16, L = 128, motif 3, 12,800 training and 1,280 test examples; varied one at a time: V = 32, 64, 128;
    L = 256, 512, 1024; 6,400, 3,200, 1,600, 800 training examples. Inputs (B, L) tokens, padded on the right (the
    reference pads on the left); targets (B, L), V classes.

    With `faithful`, as in the reference: training scores every next token (its padding too, which is not done here),
    and the random place may lie so late that the question's key is never shown: it cannot be answered then. Without,
    places are drawn early enough.

    Chance: one over the number of values, any one value token always. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli et al. (2024), arXiv:2403.17844.

    Raises ValueError for a motif outside 1 … 4, a length below 6·motif, and a vocab_size below 2·motif + 1.
    """

    name: ClassVar[str] = "fuzzy-recall"
    probes: ClassVar[str] = "recall of groups of tokens"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    motif: int = 3
    """The most tokens of a key, and of a value."""
    faithful: bool = False
    """Whether the reference's defects are kept."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 1 <= self.motif <= _LARGEST_MOTIF:
            raise ValueError(f"motif is {self.motif}; give 1 … {_LARGEST_MOTIF} tokens")
        if self.length < 6 * self.motif:
            raise ValueError(
                f"length is {self.length} with motif {self.motif}; give 6·motif = {6 * self.motif} or more"
            )
        least = 2 * self.motif + 1
        if self.vocab_size < least or perm(self._values.size, self.motif) > 2**32:
            raise ValueError(
                f"vocab_size is {self.vocab_size} with motif {self.motif}; give 2·motif + 1 = {least} or more, and so "
                f"few that there are at most 2**32 values"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Return length 40, 12 tokens, motifs of one or two."""
        return cls(vocab_size=12, length=40, motif=2, validation_examples=200, test_examples=200)

    @property
    def chance(self) -> float:
        """One over the number of value tokens."""
        return 1.0 / self._values.size

    @property
    def need(self) -> SpectralNeed:
        """A pair is kept until its key comes again, at most to the end."""
        return SpectralNeed(memory=self.max_length)

    @property
    def padding(self) -> int:
        """The token that pads, V − 1."""
        return self.vocab_size - 1

    @property
    def _keys(self) -> _Alphabet:
        return _Alphabet(0, (self.vocab_size - 1) // 2, self.motif)

    @property
    def _values(self) -> _Alphabet:
        keys = self._keys.size
        return _Alphabet(keys, self.vocab_size - 1 - keys, self.motif)

    def token_name(self, token: int) -> str:
        """Return "k3" for a key's token, "v3" for a value's, "." for padding."""
        if token == self.padding:
            return "."
        first = self._values.first
        return f"k{token}" if token < first else f"v{token - first}"

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return which of its value's tokens a position asks for, counted from 0."""
        scored = batch.scored
        count = scored.long().cumsum(dim=1)
        before = torch.where(scored, 0, count).cummax(dim=1).values
        return {"place": torch.where(scored, count - before - 1, -1)}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        keyed = stream_keys(self.seed, split, indices)
        laid = self._laid_out(keyed, 1 if split == "train" else self.motif)
        width = self.length + 2 * self.motif  # what is no token of a motif is written here and cut off
        sequence = np.full((keyed.size, width), self.padding, dtype=np.int64)
        asked = np.zeros((keyed.size, width), dtype=np.bool_)
        key_numbers = laid.keys - self._keys.begins[laid.key_lengths]
        value_lengths, value_numbers = self._value_of(keyed, laid.keys)
        value_starts = laid.starts + laid.key_lengths
        for alphabet, starts, lengths, numbers in (
            (self._keys, laid.starts, laid.key_lengths, key_numbers),
            (self._values, value_starts, value_lengths, value_numbers),
        ):
            tokens = alphabet.tokens(lengths, numbers)
            for place in range(self.motif):
                rows, pairs = np.nonzero(laid.real & (lengths > place))
                sequence[rows, starts[rows, pairs] + place] = tokens[rows, pairs, place]
        for place in range(self.motif):
            rows, pairs = np.nonzero(laid.asked & (value_lengths > place))
            asked[rows, value_starts[rows, pairs] + place - 1] = True
        ends = np.where(laid.real, value_starts + value_lengths, 0).max(axis=1)
        return self._shifted(split, sequence, asked, ends)

    def _shifted(self, split: Split, sequence: Integers, asked: NDArray[np.bool_], ends: Integers) -> Batch:
        """Return inputs without the last token, and as targets the next ones where they are asked for."""
        real = np.arange(self.length) < ends[:, None] - 1
        scored = real if self.faithful and split == "train" else asked[:, : self.length]
        targets = np.where(scored, sequence[:, 1 : self.length + 1], UNSCORED)
        inputs = np.where(real, sequence[:, : self.length], self.padding)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(real))

    def _laid_out(self, keyed: Words, shortest: int) -> _Sequences:
        """Return which pairs stand where; a pair is `shortest` key tokens and one value token long, or longer."""
        most = self.length // (shortest + 1) + 1  # more pairs than fit
        drawn = words(keyed, 0, 2 * most + 3)
        asked_for, asked_length = self._key(drawn[:, :1], drawn[:, 1:2], shortest)
        keys, key_lengths = self._key(drawn[:, 2 : most + 2], drawn[:, most + 2 : -1], shortest)
        pair_lengths = key_lengths + self._value_of(keyed, keys)[0]
        question = (asked_length + self._value_of(keyed, asked_for)[0])[:, 0]
        limit = self.length - question - 2 * self.motif  # from here on no pair begins

        bound = self.length - 2 * question if self.faithful else limit - 2 * self.motif + 1
        starts = np.cumsum(pair_lengths, axis=1) - pair_lengths
        place = (starts < below_each(drawn[:, -1], bound)[:, None]).sum(axis=1)
        column = np.arange(most + 2)
        shown = ((keys == asked_for) & (column[:most] < place[:, None])).any(axis=1)
        place = np.where(shown, most + 2, place)[:, None]  # shown already: the pair is not added once more

        keys = _with_column(keys, asked_for, place)
        key_lengths = _with_column(key_lengths, asked_length, place)
        pair_lengths = key_lengths + self._value_of(keyed, keys)[0]
        starts = np.cumsum(pair_lengths, axis=1) - pair_lengths
        count = (starts < limit[:, None]).sum(axis=1)[:, None]
        last, real = column[: most + 1] == count, column[: most + 1] <= count
        keys, key_lengths = np.where(last, asked_for, keys), np.where(last, asked_length, key_lengths)
        names = np.where(real, keys, self._keys.begins[-1] + self._keys.counts[-1])
        again = (previous_places(names) >= 0) & real
        return _Sequences(real, starts, keys, key_lengths, pair_lengths - key_lengths, again | last)

    def _key(self, lengths: Words, motifs: Words, shortest: int) -> tuple[Integers, Integers]:
        """Return keys, numbered by length, and their lengths."""
        drawn = shortest + below(lengths, self.motif - shortest + 1)
        return self._keys.begins[drawn] + below_each(motifs, self._keys.counts[drawn]), drawn

    def _value_of(self, keyed: Words, keys: Integers) -> tuple[Integers, Integers]:  # (B, P), (B, P)
        """Return the length and number of each key's value: two words of the stream that are the key's own."""
        start = 2 * (self.length // 2 + 1) + 3  # after those that training or the held-out splits draw first
        lengths = 1 + below(words_at(keyed, start + 2 * keys), self.motif)
        return lengths, below_each(words_at(keyed, start + 2 * keys + 1), self._values.counts[lengths])


def _with_column(table: Integers, column: Integers, place: Integers) -> Integers:  # (B, P + 1)
    """Return the table with a column inserted, in each row at a place of its own; past the end, one of no meaning."""
    wide = np.column_stack([table, column])
    here = np.arange(wide.shape[1])
    moved = np.take_along_axis(wide, np.where(here > place, here - 1, here), axis=1)
    return np.where(here == place, column, moved)
