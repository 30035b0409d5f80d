"""How fast tasks make their examples, and how much of a training step waits for them.

Rates: examples a second on one thread in batches of 256, the best of five draws, beside what is required. Waiting: the
share of wall time inside `next()` over steps 6 to 65 of the smallest presets, median of three; at most 2 %. Run as
``OMP_NUM_THREADS=1 python tests/benchmarks/generation.py [NAME …]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import row

from specreg.studies import members, training
from specreg.studies.building import make_task, task_settings
from specreg.studies.configuration import Budget, Run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
REQUIRED: dict[str, tuple[dict[str, Any], float]] = {
    "mqar": ({"length": 512, "pairs": 64}, 50_000),
    "listops": ({}, 5_000),
    "pathfinder:pathfinder": ({"cache": False}, 250),
    "pathfinder:path-x": ({"cache": False}, 30),
    "group-words": ({"shortest": 40, "longest": 40}, 1_000_000),
    "parity": ({"shortest": 40, "longest": 40}, 1_000_000),
}
WAITING = {"digits": {}, "mqar:tiny": {}, "imdb:tiny": {"data": str(DATA)}}
MOST_WAITING = 0.02
FIRST, LAST = 6, 65


def rate(name: str, settings: dict[str, Any]) -> float:
    """Examples a second, over draws of at least a twentieth of a second."""
    task, best = make_task(task_settings(name) | settings), 0.0
    task.batch("train", np.arange(256))
    for attempt in range(5):
        began, drawn = time.perf_counter(), 0
        for part in count():
            task.draw("train", np.arange(256) + 256 * (part + 1000 * attempt))
            drawn += 256
            if time.perf_counter() - began > 0.05:
                break
        best = max(best, drawn / (time.perf_counter() - began))
    return best


class Timed:
    """An iterator that adds up the time spent in its `next`."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds, self.steps = batches, 0.0, 0

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = next(self.batches)
        self.steps += 1
        if self.steps >= FIRST:
            self.seconds += time.perf_counter() - began
        return batch


def waiting(name: str, settings: dict[str, Any]) -> float:
    """The share of a training run's time inside `next()`."""
    budget = Budget(steps=LAST, batch_size=32, evaluate_every=LAST)
    run = Run(model={"name": "lru", "d_model": 32}, task=task_settings(name) | settings, budget=budget)
    timed: list[Timed] = []
    plain = training.train_batches

    def watched(*arguments: Any) -> Timed:
        timed.append(Timed(plain(*arguments)))
        return timed[-1]

    training.train_batches = watched  # type: ignore[assignment]
    try:
        began = 0.0
        for step in training.train(run):
            if step.step == FIRST - 1:
                began = time.perf_counter()
            if step.step == LAST - 1:  # the last step evaluates too
                return timed[0].seconds / (time.perf_counter() - began)
    finally:
        training.train_batches = plain
    raise AssertionError("the run ended early")


def main(*names: str) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    misses = 0
    for name, (settings, required) in REQUIRED.items():
        if name.split(":")[0] in members.tasks() and (not names or name in names):
            found = rate(name, settings)
            misses += found < required
            print(f"{name:20} {found:12,.0f} examples/s, required {required:,.0f}{' UNDER' * (found < required)}")
    for name, settings in WAITING.items():
        if name.split(":")[0] in members.tasks() and (not names or name in names):
            share = median(waiting(name, dict(settings)) for _ in range(3))
            misses += row(f"{name}, share of a step in next()", share, "", None, most=MOST_WAITING)
    return misses


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
