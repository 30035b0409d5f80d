"""What the tasks on formal languages share: lengths, splits by content, layouts, extrapolation and slices."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import below_each, stream_keys, words
from specreg.tasks.strings import Integers, Words, answered_once, real, settle, string_to_string, symbols
from specreg.tasks.task import Batch, GeneratedTask, Split

__all__ = [
    "FinalAnswer",
    "FormalLanguage",
    "StringToString",
    "TwoLayouts",
    "Variant",
    "check_modulus",
    "check_variant",
    "measured_chance",
    "steps_answered",
]

Variant = Literal["xlstm", "chomsky"]

_LENGTHS = (100, 256, 500)  # that models trained on shorter strings are also tested on
_MEASURED = 4096


@dataclass(frozen=True, kw_only=True)
class FormalLanguage(GeneratedTask):
    """Strings with lengths uniform between two bounds; a string's content decides which split it belongs to.

    Held-out lengths begin where there are three strings or more, since fewer cannot be split: training alone has the
    shorter ones. A split of a space of a few hundred strings does not have all answers equally often.

    The last token is none of the alphabet: the query, or what starts or pads a sequence.
    """

    per_position: ClassVar[bool] = True

    shortest: int = 1
    """The shortest length."""
    longest: int = 40
    """The longest length."""

    smallest: ClassVar[int] = 1
    """The shortest length that there can be."""

    def __post_init__(self) -> None:
        """Check the lengths."""
        super().__post_init__()
        if not self.smallest <= self.shortest <= self.longest:
            given = f"shortest is {self.shortest} and longest {self.longest}"
            raise ValueError(f"{given}; give {self.smallest} ≤ shortest ≤ longest")
        if self.longest < self.divisible:
            raise ValueError(
                f"longest is {self.longest}; there are fewer than three such strings, one for each split: "
                f"give {self.divisible} or more"
            )

    @property
    @abstractmethod
    def alphabet(self) -> int:
        """The number of symbols."""

    @property
    def vocab_size(self) -> int:
        """The symbols and one more token."""
        return self.alphabet + 1

    @property
    def max_length(self) -> int:
        """The longest string and the query after it."""
        return self.longest + 1

    @property
    def divisible(self) -> int:
        """The shortest length with three strings or more."""
        return 2 if self.alphabet == 2 else 1

    @property
    def chance(self) -> float:
        """One over the number of answers, all equally likely."""
        return 1.0 / self.num_classes

    @property
    def slots(self) -> int:
        """Steps of a length that hold no symbol."""
        return 0

    @property
    def held_out(self) -> range:
        """The lengths of validation and test."""
        return range(max(self.shortest, self.divisible), self.longest + 1)

    @property
    def padded(self) -> bool:
        """Whether lengths differ."""
        return self.shortest < self.longest

    def extrapolations(self) -> Mapping[str, Self]:
        """Return longer strings: the lengths 100, 256 and 500, and 40 to 256 for models trained up to 40."""
        longer = {f"length-{n}": replace(self, shortest=n, longest=n) for n in _LENGTHS if n > self.longest}
        if self.longest == 40:
            longer["length-40-256"] = replace(self, shortest=40, longest=256)
        return longer

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the length of each string, at its scored steps."""
        lengths = self.lengths_of(batch)
        return {"length": torch.where(batch.scored, lengths[:, None], -1)}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the length of each string in the batch as the settings count it, (B,) int64: steps before a query."""
        return batch.lengths - 1

    def token_name(self, token: int) -> str:
        """Return the symbol's number, "?" for the query, which also pads."""
        return "?" if token == self.vocab_size - 1 else str(token)

    def class_name(self, label: int) -> str:
        """Return the answer."""
        return str(label)

    def strings(
        self,
        split: Split,
        keyed: Words,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, N), (B,)
        """Return uniform strings of the split, 0 outside, and their numbers of symbols.

        Of an example's words two choose the length and the split's part, the others are symbols.
        """
        chosen, steps = words(keyed, 0, 2), self.longest - self.slots
        counts = self.lengths(split, chosen[:, 0]) - self.slots
        strings = symbols(keyed, 2, steps, self.alphabet)
        if self.padded:
            strings *= real(counts, steps)
        settle(split, chosen[:, 1], strings, counts, self.alphabet)
        return strings, counts

    def lengths(
        self,
        split: Split,
        draws: Words,  # (B,)
    ) -> Integers:  # (B,)
        """Return lengths uniform on those of the split."""
        allowed = range(self.shortest, self.longest + 1) if split == "train" else self.held_out
        return allowed.start + below_each(draws, len(allowed))


@dataclass(frozen=True, kw_only=True)
class FinalAnswer(FormalLanguage):
    """A formal language with one answer a string, the target of a query token that follows the string."""

    @property
    @abstractmethod
    def answers(self) -> int:
        """The number of different answers."""

    @abstractmethod
    def solve(
        self,
        strings: Integers,  # (B, N), 0 outside the string
        counts: Integers,  # (B,)
    ) -> Integers:  # (B,)
        """Return the answers, 0, 1, …."""

    @property
    def num_classes(self) -> int:
        """The answers."""
        return self.answers

    @property
    def chance(self) -> float:
        """One over the number of answers, all equally likely."""
        return 1.0 / self.answers

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        strings, counts = self.strings(split, stream_keys(self.seed, split, indices))
        return self.lay_out(strings, counts, self.solve(strings, counts))

    def lay_out(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
        answers: Integers,  # (B,)
    ) -> Batch:
        """Return the batch, the query after each string and the answer there."""
        query = self.vocab_size - 1
        tokens = strings if not self.padded else np.where(real(counts, strings.shape[1]), strings, query)
        return answered_once(tokens, counts, answers, query=query, padded=self.padded)


@dataclass(frozen=True, kw_only=True)
class TwoLayouts(FinalAnswer):
    """A formal language with one answer a string, laid out as xLSTM's code or as DeepMind's does.

    "xlstm": token 0 is padding, symbols are 1, 2, …; a length counts the answer's slot; the answer is a token and the
    target of the last symbol. "chomsky": symbols are 0, 1, …; a query token follows, whose target is the class.
    """

    variant: Variant = "xlstm"
    """Whose layout: "xlstm" or "chomsky"."""
    shortest: int = 3
    """The shortest length, the answer counted in "xlstm"."""

    def __post_init__(self) -> None:
        """Check the variant, then the lengths."""
        check_variant(self.variant)
        super().__post_init__()
        least = self.slots + 1
        if self.shortest < least:
            raise ValueError(f"shortest is {self.shortest}; {self.slots} of it hold no symbol: give {least} or more")

    @property
    def first_answer(self) -> int:
        """The class of answer 0: in "xlstm" an answer is the token of a symbol, the first of which is 1."""
        return 1 if self.variant == "xlstm" else 0

    @property
    def slots(self) -> int:
        """Steps of a length that hold no symbol: the answer's in "xlstm"."""
        return 1 if self.variant == "xlstm" else 0

    @property
    def divisible(self) -> int:
        """The shortest length with three strings or more."""
        return self.slots + super().divisible

    @property
    def num_classes(self) -> int:
        """All tokens in "xlstm", the answers in "chomsky"."""
        return self.vocab_size if self.variant == "xlstm" else self.answers

    @property
    def max_length(self) -> int:
        """The longest string, with its query in "chomsky"."""
        return self.longest - 1 if self.variant == "xlstm" else self.longest + 1

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the lengths of xLSTM's code and DeepMind's."""
        return {"tiny": cls.tiny(), "xlstm": cls(), "chomsky": cls(variant="chomsky", shortest=1)}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the published lengths: steps and the answer's slot, or steps without the query."""
        return batch.lengths + (1 if self.variant == "xlstm" else -1)

    def token_name(self, token: int) -> str:
        """Return the symbol's number, "·" for padding, "?" for the query."""
        if self.variant == "xlstm":
            return "·" if token == 0 else str(token - 1)
        return super().token_name(token)

    def class_name(self, label: int) -> str:
        """Return the answer; in "xlstm" a token that answers nothing is "·"."""
        return str(label - self.first_answer) if label >= self.first_answer else "·"

    def lay_out(
        self,
        strings: Integers,  # (B, N)
        counts: Integers,  # (B,)
        answers: Integers,  # (B,)
    ) -> Batch:
        """Return the batch in the layout of the variant."""
        if self.variant != "xlstm":
            return super().lay_out(strings, counts, answers)
        tokens = strings + 1
        if self.padded:
            tokens *= real(counts, strings.shape[1])
        return answered_once(tokens, counts, answers + self.first_answer, query=None, padded=self.padded)


@dataclass(frozen=True, kw_only=True)
class StringToString(FormalLanguage):
    """A formal language whose answer is a string, laid out as DeepMind's code does.

    The string is followed by one query token for each symbol of the answer, and the targets stand there.
    """

    def __post_init__(self) -> None:
        """Check the alphabet, then the lengths."""
        if not 2 <= self.alphabet <= 1000:
            raise ValueError(f"symbols is {self.alphabet}; give 2 … 1000")
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """The output symbols."""
        return self.alphabet

    @property
    def max_length(self) -> int:
        """The longest string and its answer."""
        return self.longest + self.extent(self.longest)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and DeepMind's setting."""
        return {"tiny": cls.tiny(), "chomsky": cls()}

    def extent(self, length: int) -> int:
        """Return how many outputs are asked for after a string of a length."""
        return length

    @abstractmethod
    def solve(
        self,
        strings: Integers,  # (B, N), 0 outside the string
        counts: Integers,  # (B,)
    ) -> tuple[Integers, Integers]:  # (B, M), (B,)
        """Return the outputs and how many of each row's are scored."""

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the steps before the first query."""
        return (batch.inputs == self.vocab_size - 1).long().argmax(dim=1)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        strings, counts = self.strings(split, stream_keys(self.seed, split, indices))
        outputs, scored = self.solve(strings, counts)
        query = self.vocab_size - 1
        asked = np.array([self.extent(length) for length in range(self.longest + 1)])[counts]
        tokens = np.where(real(counts, strings.shape[1]), strings, query)
        return string_to_string(tokens, counts, outputs, lengths=asked, scored=scored, query=query, padded=self.padded)


def check_variant(variant: str) -> None:
    """Raise ValueError for a layout that nobody published."""
    if variant not in get_args(Variant):
        raise ValueError(f"variant is {variant!r}; give one of {', '.join(get_args(Variant))}")


def check_modulus(modulus: int) -> None:
    """Raise ValueError for a modulus without arithmetic of its own, or with a large alphabet."""
    if not 3 <= modulus <= 100:
        raise ValueError(f"modulus is {modulus}; give 3 … 100")


def steps_answered(batch: Batch, before: int = 0) -> Tensor:
    """Return how many symbols each answer is about where every step is answered, `before` steps coming first."""
    steps = torch.arange(1, batch.inputs.shape[1] + 1, device=batch.inputs.device) - before
    return torch.where(batch.scored, steps, -1)


@lru_cache(maxsize=64)
def measured_chance(task: FormalLanguage) -> float:
    """Return the score of the best constant answer at the held-out lengths, measured on 4,096 training examples.

    Training has seven eighths of all strings: what it says is less of a matter of chance than a small held-out split.
    """
    law = replace(task, shortest=task.held_out.start, train_examples=None)
    batch = law.draw("train", np.arange(_MEASURED))
    scored = batch.scored.sum(dim=1)
    shares = [(batch.targets == label).sum(dim=1) / scored for label in range(task.num_classes)]
    return max(float(share.double().mean()) for share in shares)
