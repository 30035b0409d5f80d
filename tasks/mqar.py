"""Multi-query associative recall: many keys met once, asked for again at power-law distances."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import below, distinct, inverse_power_law, stream_keys, weighted_distinct, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split, TokenTask

__all__ = ["MQAR"]

Variant = Literal["plain", "forgetting", "compositional"]
Mix = Literal["none", "based", "squares"]


class _Size(NamedTuple):
    length: int
    pairs: int


class _Published(NamedTuple):
    """A training mix: sizes with the ninths of the examples that have them, and the sizes that are tested."""

    training: tuple[tuple[_Size, int], ...]
    tested: tuple[_Size, ...]

    @classmethod
    def of(cls, training: tuple[tuple[int, int], ...], tested: tuple[tuple[int, int], ...]) -> "_Published":
        """100,000 examples of the first size to 20,000 of each other."""
        ninths = (5, *(1 for _ in training[1:]))
        sizes = tuple((_Size(*size), part) for size, part in zip(training, ninths, strict=True))
        return cls(sizes, tuple(_Size(*size) for size in tested))

    @property
    def longest(self) -> _Size:
        return self.training[-1][0]


_MIXES: Mapping[str, _Published] = {
    "based": _Published.of(
        ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64)),
        ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)),
    ),
    # pair counts that are squares, which the compositional variant needs
    "squares": _Published.of(
        ((64, 4), (128, 9), (256, 16), (256, 25), (256, 36)),
        ((64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class MQAR(TokenTask):
    """Multi-query associative recall, by the rules of the Zoology benchmark.

    Probes recall: how many key-value pairs a fixed-size state keeps apart, and for how long. Token 0 is the filler,
    keys are 1 … ⌊V/2⌋ − 1, values ⌊V/2⌋ … V − 1. A sequence opens with K pairs k₁ v₁ k₂ v₂ … of distinct keys and
    distinct values, `passes` times over. The rest is cut in slots of two tokens; key i stands first in a slot, slots
    being drawn one after another without replacement with weights ∝ (slot + 1)^(a − 1), so most questions come early
    and a few very late. The value is the target where its key is asked; every other position is unscored. The other
    tokens are fillers: uniform over the vocabulary (they may repeat a key, without a target: part of the benchmark),
    or 0.

    Variants: "forgetting" follows the pairs by `updates` of their keys, distinct and at random, each with another value
    than before, uniformly; the last value of a key is its answer. In "compositional" the vocabulary is cut in thirds,
    first keys 1 … ⌊V/3⌋ − 1, second keys and values; √K first and √K second keys make K pairs of keys, shuffled, each
    pair followed by its value: neither key alone tells it. Slots hold three tokens; the answer is at the second key.

    A published defect, kept with `faithful`: the value that a rewritten key must not take is that of the first, second,
    … key and not its own, so that a key may be rewritten with the value it had.

    Sizes: (T, K) = (64, 4), (128, 8), (256, 16), (512, 64) with V = 8192 in the paper, which trains on 100,000 examples
    with fillers 0. A `mix` trains on five sizes at once, 5/9 of the first and 1/9 of each other, padded to the longest
    (the sources take each batch from one size), and is scored on seven more: "based" are those of arXiv:2402.18668,
    "squares" those of Zoology's configurations of the variants. Inputs (B, T) tokens, targets (B, T), V classes.

    Chance: 1/⌈V/2⌉ (one over the values, V − 2⌊V/3⌋, where compositional), any one value always. A uniform guess among
    all V tokens is worth 1/V; a model that has learnt to answer some value of the context, but not which, 1/K.

    Source: Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra, Ré (2023), arXiv:2312.04927; repeated passes Arora,
    Timalsina, Singhal et al. (2024), arXiv:2407.05483; the variants are of the Zoology repository.

    Raises ValueError for settings that no sequence fits: length is even and below vocab_size, 0 < power ≤ 1, and
    2·pairs·passes + 2·pairs ≤ length (2·updates more where forgetting; 6·pairs ≤ length where compositional).
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
    passes: int = 1
    """How often the pairs are shown before the questions."""
    variant: Variant = "plain"
    """Which rule: "plain", "forgetting" or "compositional"."""
    updates: int = 4
    """Keys that are given another value, where forgetting."""
    faithful: bool = False
    """Whether a rewritten key may keep its value, as in the published code of the forgetting variant."""
    mix: Mix = "none"
    """Which published sizes are mixed; `length` and `pairs` are then the largest of them."""

    def __post_init__(self) -> None:
        """Check the settings against one another."""
        super().__post_init__()
        for name, allowed in (("variant", get_args(Variant)), ("mix", get_args(Mix))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; there are {', '.join(allowed)}")
        if not 0.0 < self.power <= 1.0:
            raise ValueError(f"power is {self.power}; it lies in (0, 1], where 1 draws slots uniformly")
        self._check_variant()
        if self.mix != "none" and _MIXES[self.mix].longest != (self.length, self.pairs):
            length, pairs = _MIXES[self.mix].longest
            raise ValueError(
                f"mix {self.mix!r} reaches length {length} with {pairs} pairs, and length is {self.length} and pairs "
                f"{self.pairs}: give length={length} and pairs={pairs}"
            )
        for size, _ in self._training:
            self._check_size(size)

    def _check_variant(self) -> None:
        if self.passes < 1 or (self.passes > 1 and self.variant != "plain"):
            raise ValueError(f"passes is {self.passes}; give 1 or more, and 1 where the variant is not plain")
        if self.variant == "forgetting" and not 1 <= self.updates <= min(size.pairs for size, _ in self._training):
            raise ValueError(f"updates is {self.updates}; of {self.pairs} pairs, 1 … {self.pairs} can be rewritten")
        if self.faithful and self.variant != "forgetting":
            raise ValueError(f"faithful keeps a defect of the forgetting variant; the variant is {self.variant!r}")

    def _check_size(self, size: _Size) -> None:
        length, pairs = size
        if length % 2 or length < 4:
            raise ValueError(f"length is {length}; the slots hold two tokens each: give an even length, 4 or more")
        if self.variant == "compositional" and (pairs < 1 or isqrt(pairs) ** 2 != pairs):
            raise ValueError(f"pairs is {pairs}; first and second keys make a square of pairs: give 1, 4, 9, 16, …")
        each, more, rule = self._demand
        most = max(0, length - more) // each
        if not 1 <= pairs <= most:
            raise ValueError(
                f"pairs is {pairs} at length {length}; {rule} ≤ length allows 1 … {most} "
                f"(this many pairs need a length of {each * max(pairs, 1) + more} or more)"
            )
        if self.vocab_size <= length:
            raise ValueError(f"vocab_size is {self.vocab_size} at length {length}; give {length + 1} or more")

    @property
    def _demand(self) -> tuple[int, int, str]:
        """Tokens that each pair takes, tokens besides, and how that is said."""
        if self.variant == "compositional":
            return 6, 0, "6·pairs"
        if self.variant == "forgetting":
            return 4, 2 * self.updates, "4·pairs + 2·updates"
        return 2 * self.passes + 2, 0, "4·pairs" if self.passes == 1 else "2·pairs·passes + 2·pairs"

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32, 4 pairs, 64 tokens."""
        return cls(length=32, pairs=4, vocab_size=64, validation_examples=200, test_examples=200)

    @property
    def max_length(self) -> int:
        """The length T of every sequence, or of the longest."""
        return self.length

    @property
    def chance(self) -> float:
        """One over the number of values: each answers equally often."""
        return 1.0 / (self.vocab_size - self._first_value)

    @property
    def slots(self) -> int:
        """The number of slots after the context, (T − 2K)/2 where nothing is repeated, updated or composed."""
        return self._slots(_Size(self.length, self.pairs))

    @property
    def need(self) -> SpectralNeed:
        """A pair is kept until its question, at most to the end."""
        return SpectralNeed(memory=self.length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the four sizes of the paper with fillers 0, the mixes, and Rickenbach et al. 2025, "tli"."""
        sizes = ((64, 4), (128, 8), (256, 16), (512, 64))
        published = {
            f"zoology-{length}-{pairs}": cls(
                length=length, pairs=pairs, random_non_queries=False, train_examples=100_000, test_examples=3000
            )
            for length, pairs in sizes
        }
        squares = cls(length=256, pairs=36, mix="squares", train_examples=180_000)
        return {
            "tiny": cls.tiny(),
            **published,
            "based": cls(length=256, pairs=64, mix="based", train_examples=180_000),
            "forgetting": replace(squares, variant="forgetting"),
            "compositional": replace(squares, variant="compositional"),
            "tli": cls(length=512, pairs=64),
        }

    def extrapolations(self) -> Mapping[str, Self]:
        """Return the sizes that a mix is tested on, "length-64-pairs-4" and so on; none without a mix."""
        if self.mix == "none":
            return {}
        return {
            f"length-{length}-pairs-{pairs}": replace(self, length=length, pairs=pairs, mix="none")
            for length, pairs in _MIXES[self.mix].tested
            if length < self.vocab_size
        }

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag of each question, steps from the pair's last value to where its (second) key is asked.

        Besides, the number of pairs in its sequence; where forgetting, whether the key was rewritten (1) or not (0).
        """
        rows, places = batch.scored.nonzero(as_tuple=True)
        pairs = batch.scored.sum(dim=1)
        shown = pairs * self.passes + self._rewritten
        group = self._group
        known = torch.arange(int(shown.max()))
        matching = known < shown[rows, None]
        for offset in range(group - 1):
            keys = batch.inputs[:, offset : group * known.numel() : group]
            matching &= keys[rows] == batch.inputs[rows, places - (group - 2) + offset, None]
        last = torch.where(matching, known, -1).amax(dim=1)
        found = {"lag": places - (group * last + group - 1), "pairs": pairs[rows]}
        if self.variant == "forgetting":
            found["rewritten"] = (last >= pairs[rows]).long()
        values = {name: torch.full_like(batch.targets, -1) for name in found}
        for name, each in found.items():
            values[name][rows, places] = each
        return values

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`; of a mix, the index modulo 9 decides the size."""
        keyed = stream_keys(self.seed, split, indices)
        if self.mix == "none":
            inputs, targets = self._draw(keyed, _Size(self.length, self.pairs))
            return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
        inputs = np.zeros((indices.size, self.length), dtype=np.int64)
        targets = np.full_like(inputs, UNSCORED)
        mask = np.zeros(inputs.shape, dtype=bool)
        for size, rows in self._parts(indices):
            inputs[rows, : size.length], targets[rows, : size.length] = self._draw(keyed[rows], size)
            mask[rows, : size.length] = True
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))

    def _parts(self, indices: NDArray[np.int64]) -> Iterator[tuple[_Size, NDArray[np.intp]]]:
        """Yield each size of the mix that occurs, with the rows that have it."""
        ends = np.cumsum([part for _, part in self._training])
        which = np.searchsorted(ends, indices % ends[-1], side="right")
        for number, (size, _) in enumerate(self._training):
            rows = np.flatnonzero(which == number)
            if rows.size:
                yield size, rows

    def _draw(
        self,
        keyed: NDArray[np.uint64],  # (B,)
        size: _Size,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # inputs (B, T), targets (B, T)
        slots, group = self._slots(size), self._group
        own, start = self._context_words(size.pairs), group * (size.pairs * self.passes + self._rewritten)
        drawn = words(keyed, 0, own + slots)
        context, answers = self._context(drawn[:, :own], size.pairs)
        chosen = weighted_distinct(drawn[:, own:], inverse_power_law(slots, self.power), size.pairs)
        asked = start + group * chosen

        inputs = self._fillers(keyed, own + slots, size.length)
        inputs[:, :start] = context
        for offset in range(group - 1):
            np.put_along_axis(inputs, asked + offset, context[:, offset : group * size.pairs : group], axis=1)
        targets = np.full_like(inputs, UNSCORED)
        np.put_along_axis(targets, asked + group - 2, answers, axis=1)
        return inputs, targets

    def _context(
        self,
        drawn: NDArray[np.uint64],  # (B, N), as many as `_context_words`
        pairs: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # the context, and the answer of each pair (B, K)
        values = self._first_value + distinct(drawn[:, pairs : 2 * pairs], self.vocab_size - self._first_value)
        if self.variant == "compositional":
            return _interleaved(*self._composed(drawn, pairs), values), values
        keys = 1 + distinct(drawn[:, :pairs], self._first_value - 1)
        if self.variant == "plain":
            return np.tile(_interleaved(keys, values), (1, self.passes)), values
        which = distinct(drawn[:, 2 * pairs : 2 * pairs + self.updates], pairs)
        former = values[:, : self.updates] if self.faithful else np.take_along_axis(values, which, axis=1)
        written = below(drawn[:, 2 * pairs + self.updates :], self.vocab_size - self._first_value - 1)
        written += self._first_value
        written += written >= former
        answers = values.copy()
        np.put_along_axis(answers, which, written, axis=1)
        rewritten = _interleaved(np.take_along_axis(keys, which, axis=1), written)
        return np.concatenate([_interleaved(keys, values), rewritten], axis=1), answers

    def _composed(
        self,
        drawn: NDArray[np.uint64],  # (B, N)
        pairs: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # first and second keys (B, K)
        side, third = isqrt(pairs), self.vocab_size // 3
        cell = distinct(drawn[:, :pairs], pairs)
        first = 1 + distinct(drawn[:, 2 * pairs : 2 * pairs + side], third - 1)
        second = third + distinct(drawn[:, 2 * pairs + side :], third)
        return np.take_along_axis(first, cell // side, axis=1), np.take_along_axis(second, cell % side, axis=1)

    def _fillers(
        self,
        keyed: NDArray[np.uint64],  # (B,)
        start: int,
        length: int,
    ) -> NDArray[np.int64]:  # (B, T)
        if not self.random_non_queries:
            return np.zeros((keyed.size, length), dtype=np.int64)
        return below(words(keyed, start, length), self.vocab_size)

    def _context_words(self, pairs: int) -> int:
        more = {"plain": 0, "forgetting": 2 * self.updates, "compositional": 2 * isqrt(pairs)}
        return 2 * pairs + more[self.variant]

    @property
    def _training(self) -> tuple[tuple[_Size, int], ...]:
        if self.mix == "none":
            return ((_Size(self.length, self.pairs), 1),)
        return _MIXES[self.mix].training

    @property
    def _first_value(self) -> int:
        return 2 * (self.vocab_size // 3) if self.variant == "compositional" else self.vocab_size // 2

    @property
    def _group(self) -> int:
        """Tokens of a pair, and of a slot: its keys, and its value or one filler."""
        return 3 if self.variant == "compositional" else 2

    @property
    def _rewritten(self) -> int:
        """Pairs that follow the passes."""
        return self.updates if self.variant == "forgetting" else 0

    def _slots(self, size: _Size) -> int:
        return size.length // self._group - size.pairs * self.passes - self._rewritten


def _interleaved(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first entries of all columns, then the second, and so on, (B, N·columns)."""
    return np.stack(columns, axis=2).reshape(len(columns[0]), -1)
