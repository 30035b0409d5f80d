"""What a CUDA machine makes of it: identities on the device, training with a spectral term, and what the term costs.

Prints one JSON document. Run as ``python tests/benchmarks/gpu.py``; times are medians of CUDA events, both sides
alternating in one process, float32 without TF32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from specreg.estimators import Exact
from specreg.models.backbone import Backbone
from specreg.models.linear_attention import LinearAttention
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer
from specreg.models.norm_attention import NormAttention
from specreg.models.softmax_attention import SoftmaxAttention
from specreg.penalties import TimescaleDistance
from specreg.studies.configuration import Budget, Optimiser, Run
from specreg.studies.training import train
from specreg.targets import LogUniformTimescale
from specreg.terms import Term

WIDTH, LENGTH, BATCH, LAYERS = 128, 1024, 32, 2
MIXERS: dict[str, Callable[[], Mixer]] = {
    "lru": lambda: LRU(WIDTH),
    "mamba2": lambda: Mamba2(WIDTH),
    "linear-attention": lambda: LinearAttention(WIDTH),
    "norm-attention": lambda: NormAttention(WIDTH),
    "softmax-attention": lambda: SoftmaxAttention(WIDTH),
}
TERM = Term("memory", Exact(), TimescaleDistance(LogUniformTimescale(1, LENGTH)), weight=0.01)


def identity(mixer: Mixer) -> float:
    """Largest relative difference of `unroll` and the fast core in float64 on the device."""
    torch.manual_seed(0)
    mixer = mixer.double().cuda()
    u = torch.randn(2, 200, WIDTH, dtype=torch.float64, device="cuda")
    core, _, applied = mixer.mix(u, None, None)
    return float((mixer.system(applied).unroll() - core).abs().max() / core.abs().max())


def alternate(first: Callable[[], None], second: Callable[[], None], repetitions: int = 30) -> dict[str, float]:
    """Median milliseconds of each and the median ratio second : first."""
    times: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 5):
        for function, found in zip((first, second), times, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            end.synchronize()
            if repetition >= 5:
                found.append(begin.elapsed_time(end))
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return {"plain_ms": median(times[0]), "other_ms": median(times[1]), "ratio": ratio}


def costs(mixer: Callable[[], Mixer]) -> dict[str, Any]:
    """A training step with and without a spectral term, and with systems handed out but not read."""
    torch.manual_seed(0)
    model = Backbone([mixer() for _ in range(LAYERS)], num_classes=10, max_length=LENGTH, vocab_size=256).cuda()
    tokens = torch.randint(256, (BATCH, LENGTH), device="cuda")
    labels = torch.randint(10, (BATCH,), device="cuda")

    def step(kind: str) -> None:
        model.zero_grad(set_to_none=True)
        if kind == "plain":
            logits, extra = model(tokens), 0.0
        else:
            logits, systems = model.with_systems(tokens)
            extra = TERM(systems).loss if kind == "term" else 0.0
        (torch.nn.functional.cross_entropy(logits, labels) + extra).backward()

    return {kind: alternate(lambda: step("plain"), lambda k=kind: step(k)) for kind in ("term", "unread")}


def trained(name: str) -> dict[str, Any]:
    """200 steps on the real digits with a penalty that moves the spectrum."""
    run = Run(
        model={"name": name, "d_model": 64, "depth": 2, "gate": True, "convolution_width": 4},
        task={"name": "digits"},
        init="ring(0.9, 0.99)" if name in ("lru", "mamba2") else None,
        penalties=("timescale_distance(log_uniform_timescale(1, 1024))*0.1",),
        optimiser=Optimiser(learning_rate=1e-2, spectral_learning_rate=0.05),
        budget=Budget(steps=200, evaluate_every=100),
        device="cuda",
    )
    *_, last = train(run)
    assert last.evaluation is not None and last.spectrum is not None
    return {"accuracy": last.evaluation.accuracy, "distance": last.spectrum["spectral_distance"]}


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "identity": {name: identity(make()) for name, make in MIXERS.items()},
        "trained": {name: trained(name) for name in ("lru", "mamba2", "softmax-attention")},
        "cost": {name: costs(make) for name, make in MIXERS.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
