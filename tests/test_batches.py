"""Batches drawn ahead are those that the task draws for each step."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from specreg.studies.batches import cut_from_blocks, drawn_ahead, train_batches
from specreg.tasks.cifar10_gray import CIFAR10Gray
from specreg.tasks.digits import Digits
from specreg.tasks.mqar import MQAR
from specreg.tasks.task import Batch, Task

CPU = torch.device("cpu")


def same(one: Batch, other: Batch) -> bool:
    masks = (one.mask is None and other.mask is None) or torch.equal(one.mask, other.mask)  # type: ignore[arg-type]
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets) and masks


@pytest.mark.parametrize("task", [MQAR.tiny(), Digits(seed=3)], ids=["endless", "finite"])
@pytest.mark.parametrize(("batch_size", "first"), [(1, 0), (32, 0), (32, 45), (100, 7), (2000, 1)])
def test_each_step_has_its_own_batch(task: Task, batch_size: int, first: int) -> None:
    found = islice(train_batches(task, batch_size, first, CPU), 70 if batch_size < 2000 else 3)
    for step, batch in enumerate(found, first):
        assert same(batch, task.train_batch(step, batch_size)), step


def test_a_block_is_no_larger_than_memory_should_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        CIFAR10Gray, "train_batch", lambda self, step, size: drawn.append(size) or Digits().train_batch(0, size)
    )
    next(cut_from_blocks(CIFAR10Gray(length=1024), 50, 0))
    assert drawn == [250]


def test_a_thread_that_is_left_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # needs a GPU's driver
    task = MQAR.tiny()
    batches = drawn_ahead(cut_from_blocks(task, 16, 0), CPU)
    for step, batch in enumerate(islice(batches, 100)):
        assert same(batch, task.train_batch(step, 16))
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(batches)


def test_what_fails_in_the_thread_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)

    def broken() -> None:
        yield MQAR.tiny().train_batch(0, 4)
        raise OSError("the disk is gone")

    batches = drawn_ahead(broken(), CPU)  # type: ignore[arg-type]
    next(batches)
    with pytest.raises(OSError, match="disk is gone"):
        next(batches)
