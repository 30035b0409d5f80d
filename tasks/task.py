"""What a task is: batches by random access, the score, the loss and the chance level.

A task is a frozen dataclass of settings. Example i of a split is a pure function of (settings, data seed, split, i), so
a run that resumes, a worker that starts late and a test that looks at one example all see the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from specreg.tasks.files import Download, data_directory
from specreg.tasks.streams import permutation

__all__ = [
    "UNSCORED",
    "Batch",
    "FileTask",
    "GeneratedTask",
    "RegressionTask",
    "SpectralNeed",
    "Split",
    "Task",
    "TokenTask",
]

Split = Literal["train", "validation", "test"]

UNSCORED = -100
"""The target of a position that is not scored, torch's `ignore_index`."""

_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples and their answers."""

    inputs: Tensor
    """(B, T) int64 tokens, or (B, T, C) float32 values; (B, 2, T) tokens where a task compares two sequences."""
    targets: Tensor
    """(B,) int64, one label a sequence; or (B, T) int64, one a position, UNSCORED where nothing is scored; for real
    answers (B, C) or (B, T, C) float32, NaN where nothing is scored."""
    mask: Tensor | None = None
    """(B, T) bool, (B, 2, T) for two sequences, True on real steps (padding stands on the right); None: all are."""

    def __len__(self) -> int:
        """Return the number of examples B."""
        return self.inputs.shape[0]

    @property
    def scored(self) -> Tensor:
        """Where an answer is scored, bool in the shape of `targets`."""
        return ~self.targets.isnan() if self.targets.is_floating_point() else self.targets != UNSCORED

    @property
    def lengths(self) -> Tensor:
        """The number of real steps of each sequence, (B,) int64, (B, 2) for two sequences."""
        if self.mask is not None:
            return self.mask.sum(dim=-1)
        return torch.full(self.inputs.shape[:1], self.inputs.shape[1], device=self.inputs.device)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on another device; from pinned memory, the host need not wait for it."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        inputs, targets = (each.to(device, non_blocking=non_blocking) for each in (self.inputs, self.targets))
        return Batch(inputs, targets, mask)


@dataclass(frozen=True)
class SpectralNeed:
    """What is known of the spectrum that a task asks for, to choose a target by; empty where nothing is known."""

    memory: int | None = None
    """Steps over which something has to be kept: timescales up to here."""
    lags: tuple[int, ...] = ()
    """Exact delays between an input and where it is answered."""
    periods: tuple[int, ...] = ()
    """Periods p of the states to be tracked: eigenvalues of modulus 1 with the phases 2πk/p."""
    note: str = ""
    """What else is known, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A supervised sequence task.

    A member is a frozen dataclass in a module of its own whose fields are the settings; it says what its examples look
    like and defines `size` and `draw`. What is the same for all settings of a member may be a class attribute where a
    property stands here. `specreg.testing.tasks.TaskConformance` is the test that it must pass.
    """

    probes: ClassVar[str]
    """What the task probes, in a few words."""
    source: ClassVar[str]
    """Who published it: authors, year, arXiv or DOI."""

    seed: int = 0
    """The data seed: which examples are drawn, or in which order a fixed training set is walked."""

    def __post_init__(self) -> None:
        """Check the seed; a member with settings of its own checks those and calls this."""
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}; a data seed lies in 0 … 2**64 - 1")

    @property
    def vocab_size(self) -> int | None:
        """The number of input tokens V; None where inputs are real values."""
        return None

    @property
    def channels(self) -> int:
        """The number of real values a step C: one unless the task says otherwise; 0 where inputs are tokens."""
        return 1 if self.vocab_size is None else 0

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """The number of classes a model gives logits for."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The longest sequence T."""

    @property
    def per_position(self) -> bool:
        """Whether targets and logits have a position axis; False: one answer a sequence."""
        return False

    @property
    def from_last_state(self) -> bool:
        """Whether the answers at all positions are decoded from what a model holds after its last real step, alone."""
        return False

    @property
    def published_accuracy(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], float] | None:
        """What makes the accuracy that is published of answers and targets, a pair a test example; None: the mean."""
        return None

    @property
    @abstractmethod
    def chance(self) -> float:
        """The score of the best answer that does not look at the input: a constant class, the commonest."""

    @property
    def need(self) -> SpectralNeed:
        """What is known of the spectrum that these settings ask for."""
        return SpectralNeed()

    @property
    def towers(self) -> int:
        """Sequences that one example holds: 1, or 2 that are to be compared."""
        return 1

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Rows and columns of the image that a sequence of values is read from; None: it is no image."""
        return None

    @abstractmethod
    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None for an endless stream, which only training may be."""

    @abstractmethod
    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`, which `batch` has checked; pure in settings, seed, split and index."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return a small preset that tests and smoke runs finish in seconds."""

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return the named settings: "tiny", and those that were published, under their names."""
        return {"tiny": cls.tiny()}

    @classmethod
    def example(cls) -> Self:
        """Return the instance that conformance tests find a member by: `tiny`."""
        return cls.tiny()

    def data_files(self) -> tuple[Path, ...]:
        """Return the files and folders that are read; none for a generated task."""
        return ()

    def downloads(self) -> tuple[Download, ...]:
        """Return the public files that may be fetched into the data directory where there are none; none known."""
        return ()

    def extrapolations(self) -> Mapping[str, Self]:
        """Return the same task at other sizes that a model trained on this one is also scored on, by name."""
        return {}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what scores are broken down by, such as "lag" or "length": int64 in the shape of the targets.

        The accuracy of each value is then part of the score; −1 belongs to no slice.
        """
        return {}

    def token_name(self, token: int) -> str:
        """Return how an input token is shown."""
        return str(token)

    def class_name(self, label: int) -> str:
        """Return how an answer is shown."""
        return self.token_name(label) if self.num_classes == self.vocab_size else str(label)

    def batch(self, split: Split, indices: ArrayLike) -> Batch:
        """Return the examples at the given indices of a split, in the order given; the same bytes on every call.

        Raises ValueError for a split that does not exist and for indices that are not one axis of integers, IndexError
        for one outside the split.
        """
        _check_split(split)
        positions = np.asarray(indices)
        if positions.ndim != 1 or positions.size == 0 or not np.issubdtype(positions.dtype, np.integer):
            given = f"shape {positions.shape} and dtype {positions.dtype}"
            raise ValueError(f"indices have {given}; give one axis of integers, at least one")
        size, smallest, largest = self.size(split), int(positions.min()), int(positions.max())
        allowed = 2**61 if size is None else size
        if smallest < 0 or largest >= allowed:
            raise IndexError(f"indices reach from {smallest} to {largest}; {split!r} has 0 … {allowed - 1}")
        return self.draw(split, positions.astype(np.int64))

    def train_batch(self, step: int, batch_size: int) -> Batch:
        """Return the training batch of a step, counted from 0, whatever was drawn before.

        An endless task takes examples step·B … step·B + B − 1. A finite one walks through its training set in an order
        drawn anew for each epoch from (seed, epoch): every example once an epoch, a batch that meets the end taking the
        rest from the next.
        """
        if step < 0 or batch_size < 1:
            raise ValueError(f"step is {step} and batch_size {batch_size}; step is 0 or more and batch_size 1 or more")
        places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        size = self.size("train")
        if size is None:
            return self.batch("train", places)
        epochs, offsets = places // size, places % size
        indices = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = permutation(self.seed, "order", epoch, size)[offsets[here]]
        return self.batch("train", indices)

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Yield the whole of a split in its order; the last batch may be smaller.

        Raises ValueError for an endless split, before anything is drawn.
        """
        _check_split(split)
        size = self.size(split)
        if size is None:
            raise ValueError(f"{split!r} is an endless stream; ask for train_batch(step, batch_size)")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is 1 or more")
        return (
            self.batch(split, np.arange(first, min(first + batch_size, size), dtype=np.int64))
            for first in range(0, size, batch_size)
        )

    def score(
        self,
        logits: Tensor,  # (B, num_classes), or (B, T, num_classes) where `per_position`
        batch: Batch,
    ) -> Tensor:  # (B,) float32 in [0, 1]
        """Return each example's accuracy over its scored positions; NaN among a position's logits makes it wrong."""
        right = self.right(logits, batch)
        if not self.per_position:
            return right.float()
        return right.sum(dim=-1) / batch.scored.sum(dim=-1)

    def right(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return which answers are right, bool in the shape of the targets, False where nothing is scored."""
        self._check_logits(logits, batch)
        best, answers = logits.detach().max(dim=-1)
        return (answers == batch.targets) & ~best.isnan()

    def loss(
        self,
        logits: Tensor,  # (B, num_classes), or (B, T, num_classes) where `per_position`
        batch: Batch,
    ) -> Tensor:  # ()
        """Return the mean cross-entropy over the batch's scored positions, in nats, computed in float32 at least."""
        self._check_logits(logits, batch)
        targets = batch.targets
        if self.per_position:
            # few positions are scored and the vocabulary may be large: choose before the softmax, not after
            places = batch.scored.flatten().nonzero().squeeze(1)
            logits = logits.flatten(0, 1).index_select(0, places)
            targets = targets.flatten().index_select(0, places)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return functional.cross_entropy(logits, targets)

    def _check_logits(self, logits: Tensor, batch: Batch) -> None:
        expected = (*batch.targets.shape, self.num_classes)
        if logits.shape != expected:
            raise ValueError(f"logits have shape {tuple(logits.shape)}; this task's batch asks for {tuple(expected)}")


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task whose examples are drawn, not read: each split has its own streams and any size."""

    train_examples: int | None = None
    """Size of the training set; None: an endless stream, no stream used twice."""
    validation_examples: int = 1000
    """Size of the validation set."""
    test_examples: int = 1000
    """Size of the test set."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        super().__post_init__()
        for split in get_args(Split):
            size = self.size(split)
            if size is not None and size < 1:
                allowed = "1 or more, or None for an endless stream" if split == "train" else "1 or more"
                raise ValueError(f"{split}_examples is {size}; give {allowed}")

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None where training is endless."""
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        return sizes[split]


@dataclass(frozen=True, kw_only=True)
class TokenTask(GeneratedTask):
    """A task whose inputs and answers are tokens of one vocabulary, an answer a position."""

    per_position: ClassVar[bool] = True

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The vocabulary V, special tokens among it."""

    @property
    def num_classes(self) -> int:
        """The vocabulary V."""
        return self.vocab_size


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """A task whose examples stand in files of one directory."""

    data: Path | None = None
    """The directory of the data files; None: the environment variable SPECREG_DATA, else ~/.cache/specreg."""
    validation_examples: int | None = None
    """The most examples of validation, the first of them; None: all."""

    def __post_init__(self) -> None:
        """Check the size, and take the directory's name for a path."""
        super().__post_init__()
        if self.validation_examples is not None and self.validation_examples < 1:
            raise ValueError(f"validation_examples is {self.validation_examples}; give 1 or more, or None for all")
        if self.data is not None:
            object.__setattr__(self, "data", Path(self.data))  # a configuration file gives a string

    def size(self, split: Split) -> int:
        """Return the number of examples in a split."""
        whole, most = self.whole(split), self.validation_examples
        return whole if split != "validation" or most is None else min(whole, most)

    @abstractmethod
    def whole(self, split: Split) -> int:
        """Return how many examples of a split the files have."""

    @abstractmethod
    def data_files(self) -> tuple[Path, ...]:
        """Return the files and folders that are read; `digests` in `specreg.tasks.files` names their content."""

    @property
    def directory(self) -> Path:
        """Where the files are looked for."""
        return data_directory(self.data)


@dataclass(frozen=True, kw_only=True)
class RegressionTask(GeneratedTask):
    """A task whose answers are real numbers, `num_classes` of them; targets are float32, NaN where nothing is scored.

    Float values may differ between processors in the last digits; everything else about a batch is the same.
    """

    tolerance: float = 0.05
    """The largest error that counts as right."""

    def __post_init__(self) -> None:
        """Check the tolerance."""
        super().__post_init__()
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"tolerance is {self.tolerance}; give a positive number")

    def score(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the share of each example's scored answers that are within `tolerance`, (B,) float32."""
        return self.right(logits, batch).flatten(1).sum(dim=1) / batch.scored.flatten(1).sum(dim=1)

    def right(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return which answers are within `tolerance`, bool in the shape of the targets."""
        self._check_logits(logits, batch)
        return (logits.detach() - batch.targets).abs() <= self.tolerance

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error over the batch's scored answers, computed in float32 at least."""
        self._check_logits(logits, batch)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        scored = batch.scored
        return functional.mse_loss(logits[scored], batch.targets[scored].to(logits.dtype))

    def _check_logits(self, logits: Tensor, batch: Batch) -> None:
        if logits.shape != batch.targets.shape:
            expected = tuple(batch.targets.shape)
            raise ValueError(f"answers have shape {tuple(logits.shape)}; this task's batch asks for {expected}")


def _check_split(split: str) -> None:
    allowed = get_args(Split)
    if split not in allowed:
        nearest = get_close_matches(split, allowed, n=1, cutoff=0.0)[0]
        raise ValueError(f"no split is called {split!r}; there are {', '.join(allowed)}: did you mean {nearest!r}?")
