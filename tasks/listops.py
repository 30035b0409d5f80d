"""ListOps: the value of a nested expression of MIN, MAX, MED and sums modulo 10; generated, or the official files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.files import DataFormatError, Flat, data_directory
from specreg.tasks.listops_files import FILES, load
from specreg.tasks.listops_law import kept_share, law
from specreg.tasks.listops_trees import END, LARGEST_ARITY, OPERATOR, PADDING, VOCABULARY, Grammar, tokens_and_values
from specreg.tasks.streams import stream_keys
from specreg.tasks.task import Batch, GeneratedTask, SpectralNeed, Split, Task

__all__ = ["ListOps"]

_SHORTEST = 20  # shorter trees are few enough to occur in two splits
_SMALLEST_SHARE = 0.01  # of trees that are kept
_LARGEST_LENGTH = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ListOps(GeneratedTask):
    """ListOps, the first task of the Long Range Arena: the value of a nested expression of lists of digits.

    Probes nested structure: a stack, or tree-like pooling, over a thousand steps. A tree's node is a digit, or with
    probability ¼ one of the operators MIN, MAX, MED (the median's integer part) and SM (the sum modulo 10) with 2 to
    `max_args` arguments, each count equally likely; nodes at depth `max_depth` are digits. Trees whose length, digits
    plus 2 for each operator, does not lie strictly between `longer_than` and `shorter_than` are drawn anew. The target
    is the tree's value. A lone digit at the root is never long enough, so the root is drawn as an operator.

    Tokens: 0 pads on the right, to a length of shorter_than − 1; 1 … 10 are the digits 0 … 9, 11 … 14 `[MIN`, `[MAX`,
    `[MED`, `[SM`, and 15 is `]`. As in the Long Range Arena the parentheses of the official files are left out and `]`
    is kept as a token of its own; its first loader dropped `]` too.

    Sizes: 96,000 for training, 2,000 for validation, 2,000 for test; 500 < length < 2000, mean 1,035; 8.28 % of all
    trees are kept. Inputs (B, shorter_than − 1) tokens, targets (B,), 10 classes. The official trees are distinct;
    ours are independent draws, among which two are equal with a probability that does not count.

    Chance: the share of the commonest value, exact from the grammar's generating function: 0.1696 at the published
    sizes, for 0 (9 follows with 0.1682); with files, its share in the training file.

    Data: with `files`, `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` (columns Source and Target) are read
    from the directory `data`, else SPECREG_DATA, else ~/.cache/specreg, or its folder `listops-1000` or `listops`.
    Sizes are then those of the files, the seed sets the order of training only, and of the other settings
    `shorter_than` alone counts. What was read is kept in the cache folder.

    Source: Nangia, Bowman (2018), arXiv:1804.06028; the task, Tay et al. (2020), arXiv:2011.04006.

    Raises ValueError for max_depth < 2, max_args outside 2 … 31, longer_than < 20 (shorter trees are so few that they
    would occur in two splits), shorter_than > 65,536, or limits that keep less than a hundredth of the trees;
    MissingDataError and DataFormatError when the files are first asked for.
    """

    probes: ClassVar[str] = "nested structure"
    source: ClassVar[str] = "Tay et al. 2020, arXiv:2011.04006"
    vocab_size: ClassVar[int] = len(VOCABULARY)
    """Padding, ten digits, four operators and the closing bracket: 16."""
    num_classes: ClassVar[int] = 10

    train_examples: int | None = 96_000
    """Size of the training set; None: an endless stream."""
    validation_examples: int = 2000
    """Size of the validation set."""
    test_examples: int = 2000
    """Size of the test set."""
    max_depth: int = 10
    """The depth at which nodes are digits; the root's is 1."""
    max_args: int = 10
    """The largest number of arguments."""
    longer_than: int = 500
    """Trees have more tokens than this."""
    shorter_than: int = 2000
    """Trees have fewer tokens than this."""
    files: bool = False
    """Whether the official files are read instead of generating."""
    data: Path | None = None
    """The directory of the files; None: see the class."""

    def __post_init__(self) -> None:
        """Check the settings; with files those of the generator do not count."""
        if self.data is not None:
            object.__setattr__(self, "data", Path(self.data))  # a configuration file gives a string
        if not _SHORTEST < self.shorter_than <= _LARGEST_LENGTH:
            allowed = f"{_SHORTEST + 1} … {_LARGEST_LENGTH:,}"
            raise ValueError(f"shorter_than is {self.shorter_than}; it lies in {allowed}")
        if self.files:
            Task.__post_init__(self)  # the files have their sizes, which are looked up when they are asked for
            return
        super().__post_init__()
        if self.max_depth < 2 or not 2 <= self.max_args <= LARGEST_ARITY:
            given = f"max_depth is {self.max_depth} and max_args {self.max_args}"
            raise ValueError(f"{given}; give a depth of 2 or more and 2 … {LARGEST_ARITY} arguments")
        if self.longer_than < _SHORTEST:
            raise ValueError(
                f"longer_than is {self.longer_than}; give {_SHORTEST} or more: there are so few shorter trees that "
                f"training and test would share them"
            )
        self._check_share()

    def _check_share(self) -> None:
        share = kept_share(self.grammar) if self.longer_than + 1 < self.shorter_than else 0.0
        if share < _SMALLEST_SHARE:
            raise ValueError(
                f"{max(share, 0.0):.2%} of trees of depth {self.max_depth} with up to {self.max_args} arguments are "
                f"longer than {self.longer_than} and shorter than {self.shorter_than}; {_SMALLEST_SHARE:.0%} or more "
                f"must be: allow more lengths, or another depth or number of arguments"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Return depth 4, up to 5 arguments, 21 to 59 tokens."""
        return cls(
            max_depth=4,
            max_args=5,
            longer_than=20,
            shorter_than=60,
            validation_examples=200,
            test_examples=200,
        )

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", the Long Range Arena's task generated here, and its official files."""
        return {"tiny": cls.tiny(), "lra-listops": cls(), "lra-listops-files": cls(files=True)}

    @property
    def grammar(self) -> Grammar:
        """Which trees are generated."""
        return Grammar(self.max_depth, self.max_args, self.longer_than, self.shorter_than)

    @property
    def max_length(self) -> int:
        """One less than `shorter_than`."""
        return self.shorter_than - 1

    @property
    def chance(self) -> float:
        """The share of the commonest value, from the grammar, or counted in the training file."""
        if not self.files:
            return max(law(self.grammar).values)
        labels = self._read("train").labels
        return float(np.bincount(labels).max() / labels.size)

    @property
    def need(self) -> SpectralNeed:
        """An operator is kept until its bracket closes, the first to the end."""
        return SpectralNeed(memory=self.max_length, note="a stack of open operators, not one timescale")

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split, or of lines in its file."""
        return int(self._read(split).labels.size) if self.files else super().size(split)

    def token_name(self, token: int) -> str:
        """Return the token as the official files write it, "." for padding."""
        return VOCABULARY[token]

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return each tree's length, rounded down to hundreds (to tens where trees are shorter), and its depth."""
        unit = 100 if self.max_length >= 500 else 10
        inner = (batch.inputs >= OPERATOR) & (batch.inputs < END)
        open_operators = (inner.long() - (batch.inputs == END).long()).cumsum(dim=1)
        return {"length": batch.lengths // unit * unit, "depth": 1 + open_operators.amax(dim=1)}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        if self.files:
            tokens, lengths, values = self._gathered(split, indices)
        else:
            tokens, lengths, values = tokens_and_values(self.grammar, stream_keys(self.seed, split, indices))
        mask = np.arange(self.max_length) < lengths[:, None]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(values), torch.from_numpy(mask))

    def _gathered(
        self, split: Split, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        flat = self._read(split)
        starts, lengths = flat.offsets[indices], np.diff(flat.offsets)[indices]
        real = np.arange(self.max_length) < lengths[:, None]
        tokens = np.full(real.shape, PADDING, dtype=np.int64)
        tokens[real] = flat.data[(starts[:, None] + np.arange(self.max_length))[real]]
        return tokens, lengths, flat.labels[indices].astype(np.int64)

    def _read(self, split: Split) -> Flat:
        flat = load(data_directory(self.data), FILES[split])
        longest = int(np.diff(flat.offsets).max())
        if longest > self.max_length:
            raise DataFormatError(
                f"{FILES[split]} has a tree of {longest:,} tokens, and shorter_than is {self.shorter_than:,}; "
                f"give {longest + 1:,} or more"
            )
        return flat
