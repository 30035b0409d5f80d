"""Examples as bytes: what a task and its batches offer, and what two draws of the same example have to share."""

import multiprocessing
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "SAMPLE",
    "SPLITS",
    "UNSCORED",
    "BatchLike",
    "Split",
    "TaskLike",
    "assert_workers_agree",
    "contents",
    "digests",
    "real_steps",
    "real_tokens",
    "sample",
    "scored",
]

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNSCORED = -100
SAMPLE = 1000
"""Examples of a split that are looked at."""


class BatchLike(Protocol):
    """What a batch holds: see `specreg.tasks.task.Batch`."""

    @property
    def inputs(self) -> Tensor:
        """(B, T) int64 tokens, (B, 2, T) where two sequences are compared, or (B, T, C) float32 values."""

    @property
    def targets(self) -> Tensor:
        """(B,) or (B, T) int64, −100 where nothing is scored; real answers (B, C) or (B, T, C) float32, NaN there."""

    @property
    def mask(self) -> Tensor | None:
        """Bool in the shape of the steps, True on real ones; None: every step is real."""

    @property
    def lengths(self) -> Tensor:
        """The number of real steps of each sequence."""


class TaskLike(Protocol):
    """What a task offers: see `specreg.tasks.task.Task`."""

    @property
    def probes(self) -> str:
        """What the task probes."""

    @property
    def source(self) -> str:
        """Who published it."""

    @property
    def seed(self) -> int:
        """The data seed."""

    @property
    def vocab_size(self) -> int | None:
        """The number of input tokens; None where inputs are real values."""

    @property
    def channels(self) -> int:
        """The number of real values a step; 0 where inputs are tokens."""

    @property
    def num_classes(self) -> int:
        """The number of classes, or of real answers."""

    @property
    def max_length(self) -> int:
        """The longest sequence."""

    @property
    def per_position(self) -> bool:
        """Whether targets and logits have a position axis."""

    @property
    def chance(self) -> float:
        """The score of the best constant answer."""

    @property
    def need(self) -> Any:
        """What is known of the spectrum: `memory`, `lags`, `periods`, `note`."""

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Rows and columns, where a sequence is an image."""

    def presets(self) -> "Mapping[str, TaskLike]":
        """Return the named settings."""

    def extrapolations(self) -> "Mapping[str, TaskLike]":
        """Return the same task at other sizes."""

    def slices(self, batch: Any) -> Mapping[str, Tensor]:
        """Return what scores are broken down by."""

    def token_name(self, token: int) -> str:
        """Return how a token is shown."""

    def class_name(self, label: int) -> str:
        """Return how an answer is shown."""

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None: endless."""

    def batch(self, split: Split, indices: ArrayLike) -> BatchLike:
        """Return the examples at `indices`."""

    def train_batch(self, step: int, batch_size: int) -> BatchLike:
        """Return the training batch of a step."""

    def batches(self, split: Split, batch_size: int) -> Iterator[BatchLike]:
        """Yield the whole of a split in order."""

    def score(self, logits: Tensor, batch: Any) -> Tensor:
        """Return (B,) shares of right answers in [0, 1]."""

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean loss over scored answers."""


def scored(batch: BatchLike) -> Tensor:
    """Return where an answer is scored, bool in the shape of the targets."""
    return ~batch.targets.isnan() if batch.targets.is_floating_point() else batch.targets != UNSCORED


def real_steps(batch: BatchLike) -> Tensor:
    """Return where steps are real, bool: (B, T), or (B, 2, T) for two sequences."""
    if batch.mask is not None:
        return batch.mask
    steps = batch.inputs[..., 0] if batch.inputs.is_floating_point() else batch.inputs
    return torch.ones_like(steps, dtype=torch.bool)


def real_tokens(batch: BatchLike) -> Iterator[list[int]]:
    """Yield each example's tokens without padding."""
    for tokens, kept in zip(batch.inputs, real_steps(batch), strict=True):
        yield tokens[kept].tolist()


def contents(batch: BatchLike) -> list[tuple[bytes, bytes]]:
    """Return each example's inputs and targets as bytes, padding left out."""
    real, inputs, targets = (part.numpy() for part in (real_steps(batch), batch.inputs, batch.targets))
    stepwise = targets.ndim == (3 if batch.targets.is_floating_point() else 2)
    examples = []
    for row, kept in enumerate(real):
        lengths = kept.sum(axis=-1).tobytes()  # tells two sequences of lengths 3 and 2 from those of 2 and 3
        answers = targets[row][kept] if stepwise else targets[row]
        examples.append((lengths + inputs[row][kept].tobytes(), answers.tobytes()))
    return examples


def digests(batch: BatchLike) -> list[bytes]:
    """Return a digest of each example's inputs, padding left out."""
    return [sha256(inputs).digest() for inputs, _ in contents(batch)]


def sample(task: TaskLike, split: Split, largest: int = SAMPLE) -> NDArray[np.int64]:
    """Return indices from all over a split, the first and the last among them; all where they are few."""
    size = task.size(split)
    if size is None or size <= largest:
        return np.arange(largest if size is None else size, dtype=np.int64)
    # at random, since even steps through a split sorted by class can meet one class too often
    inner = np.random.default_rng(0).choice(size - 2, largest - 2, replace=False)
    return np.concatenate([[0], 1 + np.sort(inner), [size - 1]])


def assert_workers_agree(
    task: TaskLike, workers: tuple[int, ...] = (1, 2, 4), batch_sizes: tuple[int, ...] = (1, 7, SAMPLE)
) -> None:
    """Assert that worker processes draw the bytes drawn here, however many there are and however they share the work.

    It starts processes, each of which imports torch: one call for one task of a kind is enough.
    """
    started = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(started)
    if started == "forkserver":
        context.set_forkserver_preload([__name__, type(task).__module__])  # torch is imported once
    indices = sample(task, "train")
    expected = contents(task.batch("train", indices))
    for count in workers:
        with context.Pool(count) as pool:
            for size in batch_sizes:
                parts = [(task, indices[first : first + size]) for first in range(0, indices.size, size)]
                drawn = [example for part in pool.starmap(_drawn, parts, chunksize=1) for example in part]
                assert drawn == expected, f"{count} workers with batches of {size} draw other bytes"


def _drawn(task: TaskLike, indices: NDArray[np.int64]) -> list[tuple[bytes, bytes]]:
    return contents(task.batch("train", indices))
