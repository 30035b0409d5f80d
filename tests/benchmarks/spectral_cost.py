"""What a spectral term adds to a training step, and what handing out systems adds to a forward pass.

Both sides alternate in one process and CPU time is counted, so that a busy machine shows little. Prints medians in
milliseconds and the ratio; the budget for each is 1.05. Run as
``OMP_NUM_THREADS=1 python tests/benchmarks/spectral_cost.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from specreg.estimators import Exact
from specreg.models.backbone import Backbone
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer
from specreg.penalties import TimescaleDistance
from specreg.targets import LogUniformTimescale
from specreg.terms import Term

BUDGET = 1.05
WIDTH, LENGTH, BATCH, LAYERS, CLASSES = 128, 1024, 8, 2, 10
MIXERS: dict[str, Callable[[], Mixer]] = {"LRU": lambda: LRU(WIDTH), "Mamba-2": lambda: Mamba2(WIDTH)}
TERM = Term("memory", Exact(), TimescaleDistance(LogUniformTimescale(1, LENGTH)), weight=0.01)


def alternate(first: Callable[[], None], second: Callable[[], None], repetitions: int) -> tuple[float, float, float]:
    """Median CPU seconds of each, and the median of the ratios second : first of neighbouring runs."""
    times: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        order = [(first, times[0]), (second, times[1])]
        for function, found in order if repetition % 2 else order[::-1]:
            start = time.process_time()
            function()
            found.append(time.process_time() - start)
    a, b = times[0][1:], times[1][1:]  # the first round warms up
    return median(a), median(b), median(y / x for x, y in zip(a, b, strict=True))


class Training:
    """One model, one batch, and its step with and without the term."""

    def __init__(self, mixer: Callable[[], Mixer]) -> None:
        torch.manual_seed(0)
        self.model = Backbone(
            [mixer() for _ in range(LAYERS)], num_classes=CLASSES, max_length=LENGTH, vocab_size=256, norm="rms"
        )
        self.tokens = torch.randint(256, (BATCH, LENGTH))
        self.labels = torch.randint(CLASSES, (BATCH,))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def plain(self) -> None:
        self._step(self._loss(self.model(self.tokens)))

    def penalised(self) -> None:
        logits, systems = self.model.with_systems(self.tokens)
        self._step(self._loss(logits) + TERM(systems).loss)

    @torch.no_grad()
    def forward(self) -> None:
        self.model(self.tokens)

    @torch.no_grad()
    def handing_out(self) -> None:
        self.model.with_systems(self.tokens)

    def _loss(self, logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, self.labels)

    def _step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def main(repetitions: int = 15) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), d_model {WIDTH}, L {LENGTH}, B {BATCH}")
    over = 0
    for name, mixer in MIXERS.items():
        training = Training(mixer)
        pairs = {
            "training step with a term": (training.plain, training.penalised),
            "with_systems, not read": (training.forward, training.handing_out),
        }
        for what, (without, with_it) in pairs.items():
            a, b, ratio = alternate(without, with_it, repetitions)
            over += ratio > BUDGET
            print(f"{name:8} {what:26} {1e3 * a:8.1f} → {1e3 * b:8.1f} ms  ×{ratio:.3f}{' OVER' * (ratio > BUDGET)}")
    return over


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
