"""Multi-query associative recall at the setting of Rickenbach et al. 2025 (arXiv 2510.09379), on a CUDA machine.

Length 512, 64 pairs, vocabulary 8192, random fillers; width 128, two layers, one head, state 128, no MLP, batch 64.
Trains until 99 % of 1,000 held-out sequences' answers are right, and prints one JSON document a line for each run:
steps and seconds to get there (evaluations included), and each layer's |λ| before and after. For example

    python tests/benchmarks/mqar.py softmax-attention --rates 1e-3 --seeds 0 1 2 --steps 3000 --seconds 40
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from specreg.studies.configuration import Budget, Optimiser, Run
from specreg.studies.recorded_spectra import read_spectra
from specreg.studies.run_directory import RunDirectory
from specreg.studies.training import DivergedError, train

ENOUGH = 0.99
TASK = {"name": "mqar", "length": 512, "pairs": 64, "vocab_size": 8192, "random_non_queries": True}
SHARED = {"d_model": 128, "depth": 2, "d_state": 128, "heads": 1, "mlp_ratio": 0.0, "tied": True}
MODELS: dict[str, dict[str, Any]] = {
    "softmax-attention": {"positions": "learned"},
    "softmax-attention, convolution": {"positions": "learned", "convolution_width": 4},
    "mamba2": {"expand": 1, "convolution_width": 4},
}


def run_of(model: str, rate: float, spectral: float, seed: int, steps: int, warmup: int) -> Run:
    """The configuration of one run."""
    return Run(
        model={"name": model.split(",")[0], **SHARED, **MODELS[model]},
        task=dict(TASK),
        optimiser=Optimiser(
            rate, spectral_learning_rate=spectral * rate, weight_decay=0.1, warmup_share=warmup / steps
        ),
        budget=Budget(steps=steps, batch_size=64, evaluate_every=100, evaluation_batch_size=64, checkpoint_every=steps),
        seed=seed,
        data_seed=seed,
        device="cuda",
        autocast=True,
    )


def solve(run: Run, seconds: float) -> dict[str, Any]:
    """Train until the score is enough, or the steps or seconds are spent."""
    best, curve = 0.0, []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        torch.cuda.synchronize()
        began = time.perf_counter()
        try:
            for step in train(run, directory):
                if step.evaluation is None:
                    continue
                spent = time.perf_counter() - began
                best = max(best, step.evaluation.accuracy)
                curve.append((step.step, round(spent, 1), round(step.evaluation.accuracy, 4)))
                if step.evaluation.accuracy >= ENOUGH or spent > seconds:
                    break
        except DivergedError as error:
            return {"solved": False, "best": best, "failure": str(error), "curve": curve}
        spectra = read_spectra(RunDirectory(directory), str(run.model["name"]), run, notes.append)
        assert spectra is not None, notes
        heads = {
            head.label: {
                when: [round(float(value), 6) for value in values.quantiles(0.05, 0.25, 0.5, 0.75, 0.95)]
                for when, values in (("before", head.before), ("after", head.after))
            }
            for head in spectra.heads
        }
    return {"solved": best >= ENOUGH, "best": best, "curve": curve, "quantiles_5_25_50_75_95": heads}


def warm_up(run: Run) -> None:
    """A few steps that nobody times: opening the device and loading its libraries, 9 s, is not training."""
    for step in train(replace(run, budget=replace(run.budget, evaluate_every=3))):
        if step.step == 5:
            return


def main() -> None:
    """Each run after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spectral", type=float, default=1.0, help="rate of spectral parameters over the others'")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=math.inf, help="when a run is given up")
    arguments = parser.parse_args()
    given = (arguments.steps, arguments.warmup)
    warm_up(run_of(arguments.model, arguments.rates[0], arguments.spectral, 0, *given))
    for rate in arguments.rates:
        for seed in arguments.seeds:
            run = run_of(arguments.model, rate, arguments.spectral, seed, *given)
            found = solve(run, arguments.seconds)
            about = {"model": arguments.model, "rate": rate, "spectral": arguments.spectral, "seed": seed}
            versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
            print(json.dumps(about | found | {"gpu": torch.cuda.get_device_name()} | versions), flush=True)


if __name__ == "__main__":
    main()
