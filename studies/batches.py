"""Training batches in their order, drawn ahead so that a step does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from specreg.tasks.task import Batch, Task

BLOCK, BLOCK_STEPS = 1024, 2**18  # examples, and time steps, drawn at once: a generator costs most at each call
AHEAD = 4  # batches that wait on a GPU's host


def train_batches(task: Task, batch_size: int, first: int, device: torch.device) -> Iterator[Batch]:
    """The batches of the steps from `first` on, on `device`; what they hold is `task.train_batch`'s, bit for bit.

    Beside a GPU a thread draws them while the device works. On a CPU such a thread would take a core from the step
    itself: batches are cut from larger draws instead.
    """
    batches = cut_from_blocks(task, batch_size, first)
    return drawn_ahead(batches, device) if device.type == "cuda" else (batch.to(device) for batch in batches)


def cut_from_blocks(task: Task, batch_size: int, first: int) -> Iterator[Batch]:
    """Each step's batch, cut from one draw for several steps."""
    steps = max(1, min(BLOCK, BLOCK_STEPS // task.max_length) // batch_size)
    step = first
    while True:
        # blocks begin at multiples of their length, wherever a run goes on
        block = task.train_batch(step // steps, steps * batch_size) if step % steps == 0 else None
        if block is None or block.mask is not None:  # a block may be padded further than a batch of it
            yield task.train_batch(step, batch_size)
            step += 1
            continue
        for inputs, targets in zip(block.inputs.split(batch_size), block.targets.split(batch_size), strict=True):
            yield Batch(inputs, targets)
        step += steps


def drawn_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same, drawn by a thread of its own and sent to the device without waiting for it."""
    pool, waiting = ThreadPoolExecutor(1, "specreg-batches"), deque[Future[Batch]]()

    def pinned() -> Batch:
        batch = next(batches)
        mask = None if batch.mask is None else batch.mask.pin_memory()
        return Batch(batch.inputs.pin_memory(), batch.targets.pin_memory(), mask)

    try:
        while True:
            while len(waiting) <= AHEAD:
                waiting.append(pool.submit(pinned))
            yield waiting.popleft().result().to(device, non_blocking=True)
    finally:
        pool.shutdown(cancel_futures=True)
