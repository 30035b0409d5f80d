"""The share of wall time that training waits for its batches, inside `next()`, over steps 6 to 65: at most 2 %.

Smallest presets of digits, MQAR and IMDb, and on a GPU MQAR at length 512, at the step time that the model takes and,
with ``--step 10``, at 10 ms a step: on a GPU the device is kept busy for the rest of it, on a CPU the process is. One
JSON object a line: the median of three shares, and of the milliseconds a step.

Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/next_share.py --device cuda``; IMDb is left out unless ``--data``
names the directory of its archive.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import cached_property
from statistics import median

import torch

from specreg.studies.batches import train_batches
from specreg.studies.building import build_parts, optimiser_groups, task_settings
from specreg.studies.configuration import Budget, Run
from specreg.studies.training import compiled, update

SMALLEST = ("digits:tiny", "mqar:tiny", "imdb:tiny")
LONG = ("mqar:zoology-512-64", "mqar:tli")  # seconds a step on a CPU, where their share is no question
FIRST, LAST = 6, 65
MOST = 0.02


class Steps:
    """A training run that is timed: seconds inside `next()`, and in all."""

    def __init__(self, name: str, data: str | None, device: str, batch_size: int) -> None:
        budget = Budget(steps=LAST, batch_size=batch_size, evaluate_every=LAST)
        task = task_settings(name) | ({} if data is None else {"data": data})
        self.run = Run(model={"name": "lru", "d_model": 32}, task=task, budget=budget, device=device)
        self.parts = build_parts(self.run)
        self.optimiser = torch.optim.AdamW(optimiser_groups(self.parts.model, self.run.optimiser))
        self.forward = compiled(self.run, self.parts)
        self.on_gpu = self.parts.device.type == "cuda"

    def timed(self, step_seconds: float) -> tuple[float, float]:
        """The share of time inside `next()`, and seconds a step, each step lasting `step_seconds` or longer."""
        batches = train_batches(self.parts.task, self.run.budget.batch_size, 0, self.parts.device)
        waited, began = 0.0, 0.0
        for done in range(LAST):
            started = time.perf_counter()
            if done == FIRST - 1:
                began = started
            batch = next(batches)
            if done >= FIRST - 1:
                waited += time.perf_counter() - started
            update(self.run, self.parts, self.optimiser, self.forward, batch, done)
            self.settle()
            self.last_until(started + step_seconds)
        whole = time.perf_counter() - began
        batches.close()  # type: ignore[attr-defined]
        return waited / whole, whole / (LAST - FIRST + 1)

    def settle(self) -> None:
        """Wait for the device: what it has not done yet is no time of the next batch's."""
        if self.on_gpu:
            torch.cuda.synchronize(self.parts.device)

    def last_until(self, end: float) -> None:
        """Let a step of a larger model pass: the host's thread waits for a device that is busy, or is busy itself."""
        left = end - time.perf_counter()
        if left <= 0:
            return
        if self.on_gpu:
            torch.cuda._sleep(int(left * 1e6 * self.clock_megahertz))
            self.settle()
            return
        while time.perf_counter() < end:
            pass

    @cached_property
    def clock_megahertz(self) -> float:
        """Cycles a microsecond of the device, as `torch.cuda._sleep` counts them."""
        torch.cuda._sleep(1000)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        end.synchronize()
        return 1e4 / begin.elapsed_time(end)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--step", type=float, default=0.0, metavar="MS", help="the least milliseconds of a step")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--data", help="directory of aclImdb_v1.tar.gz or aclImdb-labelled.tar.xz")
    given = parser.parse_args()
    misses = 0
    for name in (*SMALLEST, *(LONG if given.device != "cpu" else ())):
        reads = name.startswith("imdb")
        if reads and given.data is None:
            continue
        steps = Steps(name, given.data if reads else None, given.device, given.batch_size)
        found = [steps.timed(given.step / 1000) for _ in range(3)]
        share, seconds = (median(each) for each in zip(*found, strict=True))
        misses += share > MOST
        line = {"task": name, "device": given.device, "batch_size": given.batch_size, "least_step_ms": given.step}
        print(json.dumps(line | {"share": round(share, 5), "step_ms": round(1000 * seconds, 3)}), flush=True)
    return misses


if __name__ == "__main__":
    sys.exit(main())
