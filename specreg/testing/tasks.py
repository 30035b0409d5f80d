"""The conformance tests of a task, for our members and for anybody's.

A task passes when its examples are a pure function of (settings, seed, split, index), its splits share nothing, its
answers are those of a brute-force reference, and its score, loss and chance level mean what they say. Plain assertions:
any runner that calls methods named `test_…` will do.
"""

import math
import pickle
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from hashlib import sha256
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["BatchLike", "TaskConformance", "TaskLike"]

Split = Literal["train", "validation", "test"]

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_UNSCORED = -100
_SAMPLE = 1000  # examples of a split that are looked at
_LARGE_SAMPLE = 5000  # where only contents are compared; the largest training set walked through to its end


class BatchLike(Protocol):
    """What a batch holds: see `specreg.tasks.task.Batch`."""

    @property
    def inputs(self) -> Tensor:
        """(B, T) int64 tokens, or (B, T, C) float32 values."""

    @property
    def targets(self) -> Tensor:
        """(B,) int64, or (B, T) int64 with −100 where nothing is scored."""

    @property
    def mask(self) -> Tensor | None:
        """(B, T) bool, True on real steps; None: every step is real."""


class TaskLike(Protocol):
    """What a task offers: see `specreg.tasks.task.Task`."""

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
        """The number of classes."""

    @property
    def max_length(self) -> int:
        """The longest sequence."""

    @property
    def per_position(self) -> bool:
        """Whether targets and logits have a position axis."""

    @property
    def chance(self) -> float:
        """The score of the best constant answer."""

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None: endless."""

    def batch(self, split: Split, indices: ArrayLike) -> BatchLike:
        """Return the examples at `indices`."""

    def train_batch(self, step: int, batch_size: int) -> BatchLike:
        """Return the training batch of a step."""

    def batches(self, split: Split, batch_size: int) -> Iterator[BatchLike]:
        """Yield the whole of a split in order."""

    def score(self, logits: Tensor, batch: Any) -> Tensor:
        """Return (B,) accuracies in [0, 1]."""

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean cross-entropy over scored positions."""


class TaskConformance(ABC):
    """The tests that every task passes: subclass it, give `task` and `reference`.

    Two attributes may be set, with a reason beside them: `overlap`, the share of held-out examples that may occur in
    the training sample (a small space of examples cannot avoid it), and `reseeded`, whether another seed draws other
    held-out examples (a fixed data set does not). Examples may be padded differently in different batches: where a
    task gives a mask, real steps alone are compared.
    """

    overlap: float = 0.0
    reseeded: bool = True

    @property
    @abstractmethod
    def task(self) -> TaskLike:
        """The task under test, a frozen dataclass."""

    @abstractmethod
    def reference(
        self,
        task: TaskLike,
        batch: BatchLike,  # its targets are blanked: 0 where an answer is scored, −100 elsewhere
    ) -> Tensor:  # in the shape of the targets; what stands at unscored positions is not looked at
        """Return the answers by brute force, from the inputs alone and not by the task's own code."""

    def test_same_bytes_on_every_call(self) -> None:
        """A batch asked for twice is the same, also from a task that went through pickle, as to a worker."""
        for split in _SPLITS:
            indices = _sample(self.task, split)
            first = _contents(self.task.batch(split, indices))
            copy: TaskLike = pickle.loads(pickle.dumps(self.task))
            assert _contents(self.task.batch(split, indices)) == first
            assert _contents(copy.batch(split, indices)) == first

    def test_same_bytes_at_every_batch_size(self) -> None:
        """An example does not depend on its neighbours: batches of 1, 7 and all, forwards and backwards, agree."""
        for split in _SPLITS:
            indices = _sample(self.task, split)
            whole = _contents(self.task.batch(split, indices))
            for size in (1, 7, indices.size - 1):
                for first in range(0, min(indices.size, 10 * size), size):
                    part = self.task.batch(split, indices[first : first + size])
                    assert _contents(part) == whole[first : first + size]
            assert _contents(self.task.batch(split, indices[::-1])) == whole[::-1]

    def test_global_generators_are_left_alone(self) -> None:
        """Drawing reads and moves no global random state."""
        torch_before, numpy_before = torch.get_rng_state(), pickle.dumps(np.random.get_state())
        self.task.train_batch(0, 8)
        assert torch.equal(torch.get_rng_state(), torch_before)
        assert pickle.dumps(np.random.get_state()) == numpy_before

    def test_seed_changes_the_examples(self) -> None:
        """Another data seed gives other training batches, and other held-out examples where they are drawn."""
        task: Any = self.task
        other: TaskLike = replace(task, seed=task.seed + 1)
        assert _contents(task.train_batch(0, 32)) != _contents(other.train_batch(0, 32))
        indices = _sample(self.task, "validation")
        same = _contents(task.batch("validation", indices)) == _contents(other.batch("validation", indices))
        assert same is not self.reseeded

    def test_settings_cannot_be_changed(self) -> None:
        """A task is a frozen dataclass: hashable, equal to its copy, and refusing assignment."""
        task: Any = self.task
        assert replace(task) == task
        assert hash(replace(task)) == hash(task)
        try:
            task.seed = 1
        except FrozenInstanceError:
            return
        raise AssertionError("a setting was assigned to; a task is a frozen dataclass")

    def test_splits_are_disjoint(self) -> None:
        """No held-out example occurs in training or in the other held-out split, beyond the declared overlap."""
        train, validation, test = (
            _digests(self.task.batch(split, _sample(self.task, split, _LARGE_SAMPLE))) for split in _SPLITS
        )
        for held_out, others in ((validation, set(train)), (test, set(train)), (test, set(validation))):
            shared = sum(digest in others for digest in held_out) / len(held_out)
            assert shared <= self.overlap, f"{shared:.1%} of held-out examples occur elsewhere"

    def test_shapes_types_and_ranges(self) -> None:
        """Inputs, targets and mask are what the task's properties say, and every example has something to score."""
        for split in _SPLITS:
            indices = _sample(self.task, split)
            batch = self.task.batch(split, indices)
            self._check_inputs(batch, indices.size)
            self._check_targets(batch, indices.size)
            self._check_mask(batch)

    def test_batches_walk_a_split_in_order(self) -> None:
        """`batches` gives a held-out split whole, in order, whatever the batch size; the last batch may be smaller."""
        size = self.task.size("validation")
        assert size is not None, "only training may be endless"
        seen = [_digests(batch) for batch in self.task.batches("validation", 97)]
        assert [len(part) for part in seen[:-1]] == [97] * (len(seen) - 1)
        expected = _digests(self.task.batch("validation", np.arange(size)))
        assert [digest for part in seen for digest in part] == expected

    def test_training_batches_are_random_access(self) -> None:
        """The batch of step s is the same whether or not earlier ones were drawn."""
        direct = _contents(self.task.train_batch(6, 16))
        for step in range(6):
            self.task.train_batch(step, 16)
        assert _contents(self.task.train_batch(6, 16)) == direct
        halves = _contents(self.task.train_batch(12, 8)) + _contents(self.task.train_batch(13, 8))
        assert halves == direct, "the batch size changes which examples come next"

    def test_training_set_is_visited_once_an_epoch(self) -> None:
        """A finite training set is walked through whole in each epoch, each time in another order."""
        size = self.task.size("train")
        if size is None or size > _LARGE_SAMPLE:
            seen = _digests(self.task.train_batch(0, _SAMPLE)) + _digests(self.task.train_batch(1, _SAMPLE))
            assert len(set(seen)) >= len(seen) * (1 - self.overlap), "training examples came back within an epoch"
            return
        everything = Counter(_digests(self.task.batch("train", np.arange(size))))
        first, second = _digests(self.task.train_batch(0, size)), _digests(self.task.train_batch(1, size))
        assert Counter(first) == Counter(second) == everything
        assert first != second

    def test_answers_agree_with_the_reference(self) -> None:
        """The brute-force answer is the target wherever one is scored."""
        for split in _SPLITS:
            batch: Any = self.task.batch(split, _sample(self.task, split))
            scored = batch.targets != _UNSCORED
            blank = replace(batch, targets=torch.where(scored, 0, _UNSCORED))
            answers = self.reference(self.task, blank)
            assert torch.equal(answers[scored], batch.targets[scored])

    def test_chance_is_the_best_constant_answer(self) -> None:
        """The class that is commonest in training scores `chance` on held-out examples, within five standard errors."""
        chance = self.task.chance
        assert 0 < chance < 1
        train = self.task.batch("train", _sample(self.task, "train"))
        commonest = int(train.targets[train.targets != _UNSCORED].bincount().argmax())
        scores, answers = [], 0
        for indices in np.array_split(_sample(self.task, "validation"), 20):  # a large vocabulary makes large logits
            held_out = self.task.batch("validation", indices)
            constant = torch.full_like(held_out.targets, commonest)
            scores.append(self.task.score(one_hot(constant, self.task.num_classes).float(), held_out))
            answers += int((held_out.targets != _UNSCORED).sum())
        measured = torch.cat(scores).mean().item()
        assert abs(measured - chance) <= 5 * math.sqrt(chance * (1 - chance) / answers)

    def test_score_of_known_answers(self) -> None:
        """Right answers score 1, wrong ones 0, NaN 0; one wrong answer of n costs 1/n."""
        batch = self.task.train_batch(0, 16)
        right = one_hot(batch.targets.clamp(min=0), self.task.num_classes).float()
        ones = torch.ones(len(batch.targets))
        assert torch.equal(self.task.score(right, batch), ones)
        assert torch.equal(self.task.score(right.roll(1, dims=-1), batch), 0 * ones)
        assert torch.equal(self.task.score(torch.full_like(right, math.nan), batch), 0 * ones)
        if self.task.per_position:
            self._check_partial_score(right, batch)

    def test_loss_of_known_answers(self) -> None:
        """Uniform logits cost log(num_classes), right ones nothing, and only scored positions have a gradient."""
        batch = self.task.train_batch(0, 16)
        shape = (*batch.targets.shape, self.task.num_classes)
        uniform = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        loss = self.task.loss(uniform, batch)
        assert loss.shape == ()
        assert abs(loss.item() - math.log(self.task.num_classes)) < 1e-12
        (gradient,) = torch.autograd.grad(loss, uniform)
        assert torch.equal(gradient.abs().sum(-1) > 0, batch.targets != _UNSCORED)
        right = 1e3 * one_hot(batch.targets.clamp(min=0), self.task.num_classes).float()
        assert self.task.loss(right, batch).item() == 0.0
        half = self.task.loss(uniform.detach().to(torch.bfloat16), batch)
        assert abs(half.item() - math.log(self.task.num_classes)) < 1e-5

    def _check_inputs(self, batch: BatchLike, size: int) -> None:
        inputs, vocab_size = batch.inputs, self.task.vocab_size
        assert inputs.shape[0] == size
        assert 1 <= inputs.shape[1] <= self.task.max_length
        if vocab_size is None:
            assert inputs.dtype == torch.float32
            assert inputs.shape[2:] == (self.task.channels,)
            assert bool(inputs.isfinite().all())
            return
        assert self.task.channels == 0
        assert inputs.dtype == torch.int64
        assert inputs.ndim == 2
        assert 0 <= int(inputs.min()) <= int(inputs.max()) < vocab_size

    def _check_targets(self, batch: BatchLike, size: int) -> None:
        targets = batch.targets
        assert targets.dtype == torch.int64
        assert targets.shape == (batch.inputs.shape[:2] if self.task.per_position else (size,))
        scored = targets != _UNSCORED
        assert bool(scored.reshape(size, -1).any(dim=1).all()), "an example has nothing to score"
        assert 0 <= int(targets[scored].min()) <= int(targets[scored].max()) < self.task.num_classes

    def _check_mask(self, batch: BatchLike) -> None:
        mask = batch.mask
        if mask is None:
            return
        assert mask.dtype == torch.bool
        assert mask.shape == batch.inputs.shape[:2]
        assert bool(mask[:, 0].all()), "a sequence has no real step"
        assert not bool((mask[:, 1:] & ~mask[:, :-1]).any()), "padding stands on the right"
        if self.task.per_position:
            assert not bool(((batch.targets != _UNSCORED) & ~mask).any()), "a padded position is scored"

    def _check_partial_score(self, right: Tensor, batch: BatchLike) -> None:
        """With the first scored position of each example answered wrongly, the score is 1 − 1/(positions scored)."""
        scored = batch.targets != _UNSCORED
        first = scored & (scored.cumsum(dim=1) == 1)
        logits = torch.where(first.unsqueeze(-1), right.roll(1, dims=-1), right)
        torch.testing.assert_close(self.task.score(logits, batch), 1 - 1 / scored.sum(dim=1))


def _sample(task: TaskLike, split: Split, largest: int = _SAMPLE) -> NDArray[np.int64]:
    """Return indices from all over a split, the first and the last among them; all where they are few."""
    size = task.size(split)
    if size is None or size <= largest:
        return np.arange(largest if size is None else size, dtype=np.int64)
    # at random, since even steps through a split sorted by class can meet one class too often
    inner = np.random.default_rng(0).choice(size - 2, largest - 2, replace=False)
    return np.concatenate([[0], 1 + np.sort(inner), [size - 1]])


def _contents(batch: BatchLike) -> list[tuple[bytes, bytes]]:
    """Return each example's inputs and targets as bytes, padding left out."""
    size, steps = batch.inputs.shape[:2]
    inputs, targets = batch.inputs.numpy(), batch.targets.reshape(size, -1).numpy()
    lengths = [steps] * size if batch.mask is None else batch.mask.sum(dim=1).tolist()
    # a single label is one "position", which every length keeps
    return [(inputs[row, :length].tobytes(), targets[row, :length].tobytes()) for row, length in enumerate(lengths)]


def _digests(batch: BatchLike) -> list[bytes]:
    """Return a digest of each example's inputs, padding left out."""
    return [sha256(inputs).digest() for inputs, _ in _contents(batch)]
