"""A closed-form spectral term costs at most 5 % of a training step, and systems handed out but not read at most 5 %.

LRU and Mamba-2, width 128, length 1024. The peer is our own model without the term, and the plain forward pass. Run as
``OMP_NUM_THREADS=1 python tests/benchmarks/spectral_cost.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from measure import in_turn, time_row
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

    def handing_out(self) -> None:
        logits, _ = self.model.with_systems(self.tokens)
        self._step(self._loss(logits))

    @torch.no_grad()
    def forward(self) -> None:
        self.model(self.tokens)

    @torch.no_grad()
    def forward_with_systems(self) -> None:
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
            "a step with a term": (training.penalised, training.plain),
            "a step, systems not read": (training.handing_out, training.plain),
            "forward alone, systems not read": (training.forward_with_systems, training.forward),
        }
        for what, (ours, plain) in pairs.items():
            times = in_turn({"ours": ours, "plain": plain}, repetitions)
            over += time_row(f"{name}, {what}", times["ours"], "plain", times["plain"], most_ratio=BUDGET)
    return over


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
