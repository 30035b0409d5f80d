"""Words of a finite group: the product so far, at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from specreg.tasks.formal_language import FormalLanguage, steps_answered
from specreg.tasks.groups import Group, group
from specreg.tasks.streams import stream_keys
from specreg.tasks.strings import answered_at_every_step, follow, real
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["GroupWords"]

_PUBLISHED = ("Z60", "A4xZ5", "A5")


@dataclass(frozen=True, kw_only=True)
class GroupWords(FormalLanguage):
    """Words of a finite group: the product of the elements so far, left to right, at every step.

    Probes state tracking up to its hardest: uniform elements g₁ g₂ … and the target g₁·…·g_t at step t. In a
    commutative group roots of unity do it; in S3 or A4×Z5, solvable but not commutative, one diagonal layer does not;
    in A5 and S5, which are not solvable, no fixed number of diagonal layers does (the problem is complete for NC¹).

    Tokens are the elements, 0 the identity, then the start token n, which opens the sequence unless `start` is off and
    is not scored; it is padding too, on the right. Groups: S_n, A_n (permutations in lexicographic order, a·b is first
    a, then b), Z_n, and direct products such as "A4xZ5", up to 1,000 elements. Words belong to splits by content.

    Sizes: 60 elements (Z60, A4×Z5, A5) or 120 (S5); words of 6 … 12 and 20 elements in the paper, up to 1 million
    distinct, four fifths to train on. With `pairs` and a finite training set its first n² examples are all words of two
    elements, whatever split they belong to, as the paper has it. Inputs (B, T) tokens, targets (B, T), n classes.

    Chance: 1/n.

    Source: Merrill, Petty, Sabharwal (2024), arXiv:2404.08819; the training set is drawn with replacement here, where
    theirs is not.

    Raises ValueError for an unknown or too large group, lengths out of order, a group and length with too few words to
    split, and `pairs` without a training set that holds them.
    """

    probes: ClassVar[str] = "state tracking in a group"
    source: ClassVar[str] = "Merrill, Petty, Sabharwal 2024, arXiv:2404.08819"

    group: str = "A5"
    """The group: "S5", "A5", "Z60", "A4xZ5", …."""
    shortest: int = 12
    """The shortest word."""
    longest: int = 12
    """The longest word."""
    start: bool = True
    """Whether a start token opens the sequence."""
    pairs: bool = False
    """Whether a finite training set begins with all words of two elements."""

    def __post_init__(self) -> None:
        """Check the group, the lengths and the training set."""
        if self.order < 2:
            raise ValueError(f"group is {self.group!r}, of one element; give one of two elements or more")
        super().__post_init__()
        if not self.pairs:
            return
        if self.train_examples is None or self.train_examples < self.order**2 or self.longest < 2:
            given = f"pairs is set with train_examples {self.train_examples} and longest {self.longest}"
            raise ValueError(f"{given}; give a training set of {self.order**2:,} or more and words of 2 or more")

    @property
    def _group(self) -> Group:
        return group(self.group)

    @property
    def order(self) -> int:
        """The number of elements n."""
        return self._group.order

    @property
    def alphabet(self) -> int:
        """The elements; the start token is one more."""
        return self.order

    @property
    def num_classes(self) -> int:
        """The elements."""
        return self.order

    @property
    def padded(self) -> bool:
        """Whether lengths differ."""
        return super().padded or (self.pairs and self.longest > 2)

    @property
    def max_length(self) -> int:
        """The longest word and the start token."""
        return self.longest + self.start

    @property
    def need(self) -> SpectralNeed:
        """The orders of the elements, kept to the end; what is not commutative needs more than a spectrum."""
        if self._group.commutative:
            note = ""
        elif self._group.solvable:
            note = "not commutative: one diagonal layer does not suffice"
        else:
            note = "not solvable: no diagonal spectrum suffices, at any fixed depth"
        return SpectralNeed(memory=self.longest, periods=self._group.element_orders, note=note)

    @classmethod
    def tiny(cls) -> Self:
        """Return words of 8 elements of S3."""
        return cls(group="S3", shortest=8, longest=8, validation_examples=200, test_examples=200)

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the paper's three groups at 12 and 20 elements, and S5."""
        published = {
            f"{name}-{length}".lower(): cls(
                group=name,
                shortest=length,
                longest=length,
                train_examples=800_000,
                validation_examples=8192,
                pairs=True,
            )
            for name in (*_PUBLISHED, "S5")
            for length in (12, 20)
        }
        return {"tiny": cls.tiny(), **published}

    def lengths_of(self, batch: Batch) -> Tensor:
        """Return the elements of each word."""
        return batch.lengths - int(self.start)

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how many elements each answer multiplies."""
        return {"length": steps_answered(batch, before=int(self.start))}

    def token_name(self, token: int) -> str:
        """Return the element, a permutation as the images of 1, 2, …; "·" for the start and padding."""
        return "·" if token == self.order else self._group.names[token]

    def class_name(self, label: int) -> str:
        """Return the element."""
        return self._group.names[label]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        words, counts = self.strings(split, stream_keys(self.seed, split, indices))
        if self.pairs and split == "train":
            short = np.flatnonzero(indices < self.order**2)
            words[short] = 0
            words[short, :2] = np.stack(np.divmod(indices[short], self.order), axis=1)
            counts[short] = 2
        batch = answered_at_every_step(
            np.where(real(counts, self.longest), words, self.order) if self.padded else words,
            counts,
            follow(self._group.table, words),
            padded=self.padded,
        )
        return self._opened(batch) if self.start else batch

    def _opened(self, batch: Batch) -> Batch:
        """Return the batch with the start token before each word."""
        inputs = functional.pad(batch.inputs, (1, 0), value=self.order)
        targets = functional.pad(batch.targets, (1, 0), value=UNSCORED)
        mask = None if batch.mask is None else functional.pad(batch.mask, (1, 0), value=True)
        return Batch(inputs, targets, mask)
