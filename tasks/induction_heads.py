"""Induction heads: what stood after the prefix the last time stands after it again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.in_context import InContextTask
from specreg.tasks.streams import below
from specreg.tasks.task import Batch, SpectralNeed

__all__ = ["InductionHeads"]

_SHORTEST = 64  # of the lengths that longer sequences are tested at
_TESTED_STEPS = 2**24  # of all examples of one such length together


@dataclass(frozen=True, kw_only=True)
class InductionHeads(InContextTask):
    """Induction heads, by the rules of the Safari repository: the prefix comes again, and so does what followed it.

    Probes selection by content: a step is to be kept because of the token before it, wherever that is. N symbols are
    drawn uniformly with repetition; a trigger, the prefix token, takes the place of one, uniform on 0 … N − 2 − c. The
    sequence ends with the prefix again, and the c = `copied` symbols that followed the trigger are the answer. With
    `triggers` > 1, half the sequences have one trigger and the others that many, at independent places: a trigger less
    than c + 1 steps after the one before is left out, and after each stand the same symbols as after the first.
    Vocabulary, splits and what is scored: see `InContextTask`. Whether all next tokens are trained on decides success
    for some models (state-spaces/mamba issue 62), hence `scored`.

    Sizes: the sequence length is T = N + c. N = 30, V = 20, 5,000 training and 500 test sequences, all next tokens
    scored in training, in Safari; V = 16, T = 256, the last token scored, in the Mamba paper, which tests lengths
    2⁶ … 2²⁰ (`extrapolate_to`; here with as many examples as make 2²⁴ steps). Inputs (B, T) tokens, targets (B, T), V
    classes.

    A published defect, kept with `faithful`: repeated sequences are removed inside a split, but not across splits, so
    that a small vocabulary leaks. Ours are drawn independently inside a split.

    Chance: 1/(V − 2), any one symbol always.

    Source: Olsson et al. (2022), arXiv:2209.11895; Fu, Dao, Saab, Thomas, Rudra, Ré (2022), arXiv:2212.14052; Gu, Dao
    (2023), arXiv:2312.00752.

    Raises ValueError for vocab_size < 4, copied or triggers < 1, length < copied + 2, fewer than 200 different
    sequences, or an empty split.
    """

    probes: ClassVar[str] = "recall by the token before"
    source: ClassVar[str] = "Fu et al. 2022, arXiv:2212.14052; Gu, Dao 2023, arXiv:2312.00752"

    length: int = 30
    """Symbols and triggers N before the last prefix."""
    copied: int = 1
    """Symbols c that are repeated."""
    triggers: int = 1
    """The largest number of triggers before the last prefix."""
    extrapolate_to: int = 0
    """The longest sequence that a trained model is also scored on, from 64 in powers of two; 0: none."""

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("vocab_size", 4), ("copied", 1), ("triggers", 1), ("length", self.copied + 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more")
        super().__post_init__()

    @classmethod
    def tiny(cls) -> Self:
        """Return 15 symbols and triggers, 8 tokens."""
        return cls(length=15, vocab_size=8, validation_examples=200, test_examples=200)

    @property
    def max_length(self) -> int:
        """The length N + c of every sequence."""
        return self.length + self.copied

    @property
    def chance(self) -> float:
        """One over the number of symbols, 1/(V − 2)."""
        return 1.0 / (self.vocab_size - 2)

    @property
    def need(self) -> SpectralNeed:
        """One step before another; then kept to the end, lags differing from example to example."""
        return SpectralNeed(memory=self.max_length)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", Safari's setting and that of the Mamba paper."""
        safari = cls(scored="all", train_examples=5000, validation_examples=500, test_examples=500)
        return {"tiny": cls.tiny(), "safari": safari, "mamba": cls(length=255, vocab_size=16, extrapolate_to=2**20)}

    def extrapolations(self) -> Mapping[str, Self]:
        """Return sequences of 64, 128, … up to `extrapolate_to` steps."""
        lengths = [2**power for power in range(self.extrapolate_to.bit_length()) if 2**power >= _SHORTEST]
        return {
            f"length-{length}": replace(
                self,
                length=length - self.copied,
                validation_examples=self._tested(self.validation_examples, length),
                test_examples=self._tested(self.test_examples, length),
            )
            for length in lengths
        }

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the lag from a symbol after the first trigger to where it is asked, and the number of triggers."""
        shown = batch.inputs[:, : self.length] == self.prefix
        found = {"lag": self.length - 1 - shown.int().argmax(dim=1), "triggers": shown.sum(dim=1)}
        values = {name: torch.full_like(batch.targets, -1) for name in found}
        for name, each in found.items():
            values[name][:, -self.copied :] = each[:, None]
        return values

    @staticmethod
    def _tested(examples: int, length: int) -> int:
        return max(1, min(examples, _TESTED_STEPS // length))

    @property
    def _answers(self) -> int:
        return self.copied

    @property
    def _space(self) -> int:
        return int((self.vocab_size - 2) ** min(self.length - 1, 40))

    @property
    def _words(self) -> int:
        return self.length + self.triggers + 1

    def _spelt(
        self,
        drawn: NDArray[np.uint64],  # (B, N + triggers + 1)
    ) -> NDArray[np.int64]:  # (B, N + 1 + c)
        length, copied = self.length, self.copied
        sequences = np.empty((len(drawn), length + 1 + copied), dtype=np.int64)
        sequences[:, :length] = 1 + below(drawn[:, :length], self.vocab_size - 2)
        sequences[:, length] = self.prefix
        places = self._places(drawn[:, length:])
        after = places[:, :1] + np.arange(1, copied + 1)
        answer = np.take_along_axis(sequences, after, axis=1)
        for trigger in range(places.shape[1]):
            place = places[:, trigger : trigger + 1]
            np.put_along_axis(sequences, place, self.prefix, axis=1)
            np.put_along_axis(sequences, place + np.arange(1, copied + 1), answer, axis=1)
        sequences[:, length + 1 :] = answer
        return sequences

    def _places(
        self,
        drawn: NDArray[np.uint64],  # (B, triggers + 1)
    ) -> NDArray[np.int64]:  # (B, triggers), in order; one left out is as the first
        places = below(drawn[:, :-1], self.length - 1 - self.copied)
        if self.triggers > 1:
            alone = drawn[:, -1:] >> np.uint64(63) == 0
            places = np.sort(np.where(alone, places[:, :1], places), axis=1)
            last = places[:, 0].copy()
            for trigger in range(1, self.triggers):
                apart = places[:, trigger] - last > self.copied
                places[:, trigger] = np.where(apart, places[:, trigger], places[:, 0])
                last = np.where(apart, places[:, trigger], last)
        return places
