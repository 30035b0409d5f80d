"""The conformance tests of a task, for our members and for anybody's.

A task passes when its examples are a pure function of (settings, seed, split, index), its splits share nothing, its
answers are those of a brute-force reference, its score, loss and chance level mean what they say, and what it declares
of itself fits. Plain assertions: any runner that calls methods named `test_…` will do.
"""

import math
import pickle
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from specreg.testing.examples import (
    SAMPLE,
    SPLITS,
    UNSCORED,
    BatchLike,
    TaskLike,
    assert_workers_agree,
    contents,
    digests,
    real_steps,
    sample,
    scored,
)

__all__ = ["BatchLike", "TaskConformance", "TaskLike", "assert_workers_agree"]

_LARGE_SAMPLE = 5000  # where only contents are compared; the largest training set walked through to its end
_NAMED = 1000  # tokens and classes whose names are looked at


class TaskConformance(ABC):
    """The tests that every task passes: subclass it, give `task` and `reference`.

    Three attributes may be set, with a reason beside them: `overlap`, the share of held-out examples that may occur in
    the training sample, `repeats`, the share of training examples that may have occurred before (a small space of
    examples cannot avoid it), and `reseeded`, whether another seed draws other held-out examples (a fixed data set does
    not). Examples may be padded differently in different batches: where a
    task gives a mask, real steps alone are compared.
    """

    overlap: float = 0.0
    repeats: float = 0.0
    reseeded: bool = True

    @property
    @abstractmethod
    def task(self) -> TaskLike:
        """The task under test, a frozen dataclass."""

    @abstractmethod
    def reference(
        self,
        task: TaskLike,
        batch: BatchLike,  # its targets are blanked: 0 where an answer is scored, −100 or NaN elsewhere
    ) -> Tensor:  # in the shape of the targets; what stands at unscored positions is not looked at
        """Return the answers by brute force, from the inputs alone and not by the task's own code."""

    def test_same_bytes_on_every_call(self) -> None:
        """A batch asked for twice is the same, also from a task that went through pickle, as to a worker."""
        for split in SPLITS:
            indices = sample(self.task, split)
            first = contents(self.task.batch(split, indices))
            copy: TaskLike = pickle.loads(pickle.dumps(self.task))
            assert contents(self.task.batch(split, indices)) == first
            assert contents(copy.batch(split, indices)) == first

    def test_same_bytes_at_every_batch_size(self) -> None:
        """An example does not depend on its neighbours: batches of 1, 7 and all, forwards and backwards, agree."""
        for split in SPLITS:
            indices = sample(self.task, split)
            whole = contents(self.task.batch(split, indices))
            for size in (1, 7, indices.size - 1):
                for first in range(0, min(indices.size, 10 * size), size):
                    part = self.task.batch(split, indices[first : first + size])
                    assert contents(part) == whole[first : first + size]
            assert contents(self.task.batch(split, indices[::-1])) == whole[::-1]

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
        assert contents(task.train_batch(0, 32)) != contents(other.train_batch(0, 32))
        indices = sample(self.task, "validation")
        same = contents(task.batch("validation", indices)) == contents(other.batch("validation", indices))
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
            digests(self.task.batch(split, sample(self.task, split, _LARGE_SAMPLE))) for split in SPLITS
        )
        for held_out, others in ((validation, set(train)), (test, set(train)), (test, set(validation))):
            shared = sum(digest in others for digest in held_out) / len(held_out)
            assert shared <= self.overlap, f"{shared:.1%} of held-out examples occur elsewhere"

    def test_shapes_types_and_ranges(self) -> None:
        """Inputs, targets and mask are what the task's properties say, and every example has something to score."""
        for split in SPLITS:
            indices = sample(self.task, split)
            batch = self.task.batch(split, indices)
            self._check_inputs(batch, indices.size)
            self._check_targets(batch, indices.size)
            self._check_mask(batch)

    def test_batches_walk_a_split_in_order(self) -> None:
        """`batches` gives a held-out split whole, in order, whatever the batch size; the last batch may be smaller."""
        size = self.task.size("validation")
        assert size is not None, "only training may be endless"
        seen = [digests(batch) for batch in self.task.batches("validation", 97)]
        assert [len(part) for part in seen[:-1]] == [97] * (len(seen) - 1)
        expected = digests(self.task.batch("validation", np.arange(size)))
        assert [digest for part in seen for digest in part] == expected

    def test_training_batches_are_random_access(self) -> None:
        """The batch of step s is the same whether or not earlier ones were drawn."""
        direct = contents(self.task.train_batch(6, 16))
        for step in range(6):
            self.task.train_batch(step, 16)
        assert contents(self.task.train_batch(6, 16)) == direct
        halves = contents(self.task.train_batch(12, 8)) + contents(self.task.train_batch(13, 8))
        assert halves == direct, "the batch size changes which examples come next"

    def test_training_set_is_visited_once_an_epoch(self) -> None:
        """A finite training set is walked through whole in each epoch, each time in another order."""
        size = self.task.size("train")
        if size is None or size > _LARGE_SAMPLE:
            seen = digests(self.task.train_batch(0, SAMPLE)) + digests(self.task.train_batch(1, SAMPLE))
            assert len(set(seen)) >= len(seen) * (1 - max(self.overlap, self.repeats)), (
                "training examples came back within an epoch"
            )
            return
        everything = Counter(digests(self.task.batch("train", np.arange(size))))
        first, second = digests(self.task.train_batch(0, size)), digests(self.task.train_batch(1, size))
        assert Counter(first) == Counter(second) == everything
        assert first != second

    def test_answers_agree_with_the_reference(self) -> None:
        """The brute-force answer is the target wherever one is scored; real ones to float32's precision."""
        for split in SPLITS:
            batch: Any = self.task.batch(split, sample(self.task, split))
            places = scored(batch)
            blank = torch.full_like(batch.targets, math.nan if batch.targets.is_floating_point() else UNSCORED)
            answers = self.reference(self.task, replace(batch, targets=blank.masked_fill(places, 0)))
            torch.testing.assert_close(answers[places], batch.targets[places])

    def test_chance_is_the_best_constant_answer(self) -> None:
        """The commonest class of one held-out split, or the median of its real answers, scores `chance` on the other.

        Within five standard errors, held-out splits being scored by one rule where training may have another.
        """
        chance = self.task.chance
        assert 0 < chance < 1
        constant = self._constant_answer(self.task.batch("test", sample(self.task, "test")))
        scores, answers = [], 0
        indices = sample(self.task, "validation")
        for part in np.array_split(indices, min(20, indices.size)):  # a large vocabulary makes large logits
            held_out = self.task.batch("validation", part)
            scores.append(self.task.score(constant.expand(self._logits_shape(held_out)), held_out))
            answers += int(scored(held_out).sum())
        share = torch.cat(scores).double()
        # what an example scores at its positions may be correlated, and a rare class may not have been met
        error = max(math.sqrt(chance * (1 - chance) / answers), share.std().item() / math.sqrt(share.numel()))
        assert abs(share.mean().item() - chance) <= 5 * error, f"a constant scores {share.mean():.4f}, not {chance:.4f}"

    def test_score_of_known_answers(self) -> None:
        """Right answers score 1, wrong ones 0, NaN 0; one wrong answer of n costs 1/n."""
        batch = self.task.train_batch(0, 16)
        right, wrong = self._right_and_wrong(batch)
        ones = torch.ones(len(batch.targets))
        assert torch.equal(self.task.score(right, batch), ones)
        assert torch.equal(self.task.score(wrong, batch), 0 * ones)
        assert torch.equal(self.task.score(torch.full_like(right, math.nan), batch), 0 * ones)
        counted = scored(batch)
        flat = counted.flatten(1) if counted.ndim > 1 else counted[:, None]
        first = (flat & (flat.cumsum(dim=1) == 1)).view_as(counted)
        mixed = torch.where(first if right.shape == first.shape else first.unsqueeze(-1), wrong, right)
        torch.testing.assert_close(self.task.score(mixed, batch), 1 - 1 / flat.sum(dim=1))

    def test_loss_of_known_answers(self) -> None:
        """Uniform logits cost log(num_classes), an error of 1 costs 1, right answers nothing.

        Only scored positions have a gradient, and half precision is computed in float32.
        """
        batch = self.task.train_batch(0, 16)
        right, _ = self._right_and_wrong(batch)
        if batch.targets.is_floating_point():
            logits, cost, sure = right.double() + 1, 1.0, right
        else:
            logits, cost, sure = torch.zeros_like(right).double(), math.log(self.task.num_classes), 1e3 * right
        logits.requires_grad_()
        loss = self.task.loss(logits, batch)
        assert loss.shape == ()
        assert abs(loss.item() - cost) < 1e-12
        (gradient,) = torch.autograd.grad(loss, logits)
        moved = gradient != 0 if batch.targets.is_floating_point() else gradient.abs().sum(-1) > 0
        assert torch.equal(moved, scored(batch))
        assert self.task.loss(sure, batch).item() == 0.0
        half = logits.detach().to(torch.bfloat16)
        single = self.task.loss(half, batch)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, self.task.loss(half.float(), batch))

    def test_slices_fit_the_targets(self) -> None:
        """Slices are int64 in the shape of the targets, −1 where nothing is scored, and each example's own."""
        indices = sample(self.task, "test", 100)
        batch, part = (self.task.batch("test", some) for some in (indices, indices[:7]))
        before, own = contents(batch), self.task.slices(part)
        for name, values in self.task.slices(batch).items():
            assert values.dtype == torch.int64
            assert values.shape == batch.targets.shape
            assert int(values.min()) >= -1
            assert bool((values[~scored(batch)] == -1).all()), f"{name} counts positions that are not scored"
            assert torch.equal(values[:7][scored(batch)[:7]], own[name][scored(part)]), f"{name} depends on neighbours"
        assert contents(batch) == before

    def test_presets_construct(self) -> None:
        """Every preset is a task of the same class, "tiny" among them; a model can answer other sizes as it is."""
        presets = self.task.presets()
        assert "tiny" in presets
        for each in [*presets.values(), *(size for one in presets.values() for size in one.extrapolations().values())]:
            assert type(each) is type(self.task)
        for other in self.task.extrapolations().values():
            for name in ("vocab_size", "channels", "num_classes", "per_position"):
                assert getattr(other, name) == getattr(self.task, name)

    def test_declarations(self) -> None:
        """What is probed, by whom published, what spectrum is needed and what image is seen are said, and possible."""
        task = self.task
        assert task.probes.strip()
        assert task.source.strip()
        assert task.need.memory is None or task.need.memory >= 1
        assert all(1 <= lag <= task.max_length for lag in task.need.lags)
        assert all(period >= 1 for period in task.need.periods)
        assert task.image_shape is None or math.prod(task.image_shape) == task.max_length

    def test_names_can_be_shown(self) -> None:
        """Every token and every class has a name of printable characters."""
        names = [self.task.token_name(token) for token in range(min(_NAMED, self.task.vocab_size or 0))]
        names += [self.task.class_name(label) for label in range(min(_NAMED, self.task.num_classes))]
        assert all(name and name.isprintable() for name in names)

    def _check_inputs(self, batch: BatchLike, size: int) -> None:
        inputs, vocab_size = batch.inputs, self.task.vocab_size
        assert inputs.shape[0] == size
        assert 1 <= real_steps(batch).shape[-1] <= self.task.max_length
        if vocab_size is None:
            assert inputs.dtype == torch.float32
            assert inputs.shape[2:] == (self.task.channels,)
            assert bool(inputs.isfinite().all())
            return
        assert self.task.channels == 0
        assert inputs.dtype == torch.int64
        assert inputs.ndim == 2 or (inputs.ndim == 3 and inputs.shape[1] == 2)
        assert 0 <= int(inputs.min()) <= int(inputs.max()) < vocab_size

    def _check_targets(self, batch: BatchLike, size: int) -> None:
        targets, real_valued = batch.targets, batch.targets.is_floating_point()
        expected = batch.inputs.shape[:2] if self.task.per_position else (size,)
        assert targets.shape == ((*expected, self.task.num_classes) if real_valued else expected)
        assert bool(scored(batch).reshape(size, -1).any(dim=1).all()), "an example has nothing to score"
        if real_valued:
            assert targets.dtype == torch.float32
            assert not bool(targets.isinf().any())
            return
        answers = targets[scored(batch)]
        assert targets.dtype == torch.int64
        assert 0 <= int(answers.min()) <= int(answers.max()) < self.task.num_classes

    def _check_mask(self, batch: BatchLike) -> None:
        real = real_steps(batch)
        assert torch.equal(batch.lengths, real.sum(dim=-1))
        if batch.mask is None:
            return
        assert real.dtype == torch.bool
        assert real.shape == (batch.inputs[..., 0] if self.task.vocab_size is None else batch.inputs).shape
        assert bool(real[..., 0].all()), "a sequence has no real step"
        assert not bool((real[..., 1:] & ~real[..., :-1]).any()), "padding stands on the right"
        if self.task.per_position:
            assert not bool(scored(batch)[~real].any()), "a padded position is scored"

    def _right_and_wrong(self, batch: BatchLike) -> tuple[Tensor, Tensor]:
        """Return answers that are all right, and such that are all wrong."""
        if batch.targets.is_floating_point():
            right = batch.targets.nan_to_num()
            return right, right + 1e6
        right = one_hot(batch.targets.clamp(min=0), self.task.num_classes).float()
        return right, right.roll(1, dims=-1)

    def _constant_answer(self, batch: BatchLike) -> Tensor:
        """Return logits of the commonest class, or each output's median, (num_classes,)."""
        if batch.targets.is_floating_point():
            return batch.targets.reshape(-1, self.task.num_classes).nanmedian(dim=0).values
        commonest = batch.targets[scored(batch)].bincount().argmax()
        return one_hot(commonest, self.task.num_classes).float()

    def _logits_shape(self, batch: BatchLike) -> tuple[int, ...]:
        shape = tuple(batch.targets.shape)
        return shape if batch.targets.is_floating_point() else (*shape, self.task.num_classes)
